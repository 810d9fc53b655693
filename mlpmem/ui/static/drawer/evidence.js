// @ts-check
/* The datastore's neighbours for one token: title, context, distance, weight. */
/** @import { Columns, NeighbourRow, Reader, Step } from "../core/types.js" */
import { glyph, h, percent, quote, setText, short } from "../core/dom.js";
import { agreement, divergence, entriesOf, hasSource, neighbourOf, partsOf, without } from "../core/mix.js";
import { groupTag, page } from "../core/state.js";

const LN2 = Math.log(2);

/** @typedef {{ use: (ticked: boolean) => void, cite: (title: string) => void,
 *   read: Reader | null }} Acts */

/** @param {NeighbourRow} neighbour @param {number} chosen @param {Acts} on @param {boolean} ticked */
function item(neighbour, chosen, on, ticked) {
  const n = neighbourOf(neighbour);
  const share = n.weight ?? 0;
  const use = h("input", { type: "checkbox", class: "neighbour-use", checked: ticked,
    "aria-label": `Use neighbour ${n.title}, weight ${percent(share)} %, …${n.left.slice(-30)}`, on: { change: () => on.use(use.checked) } });
  return h("li", { class: "neighbour", "data-entry": n.entry, "data-same": n.targetId === chosen, "data-left": ticked ? null : "" },
    h("div", { class: "neighbour-head" }, h("label", { class: "neighbour-box" }, use),
      h("button", { type: "button", class: "neighbour-title", dir: "auto",
        title: "Mark the tokens this document is evidence for", "data-title": n.title,
        on: { click: () => on.cite(n.title) } }, n.title),
      groupTag(n.group)),
    h("p", { class: "neighbour-text", dir: "auto" },
      n.left && `…${glyph(n.left)}`, n.target.startsWith(" ") ? " " : "",
      h("mark", null, glyph(n.target).trimStart() || "␣"), n.right && `${glyph(n.right)}…`),
    h("div", { class: "neighbour-numbers" },
      h("span", { class: "weight-bar", "aria-hidden": "true" },
        h("i", { style: { width: `${100 * share}%` } })),
      h("span", null, `weight ${percent(share)}\u00a0%`),
      h("span", null, `distance ${short(n.distance ?? NaN)}`),
      on.read ? h("button", { type: "button", class: "neighbour-read",
        "aria-label": `open in Corpus: ${n.title}, …${n.left.slice(-30)}`, on: { click: () => on.read?.(n) } }, "open in Corpus") : ""));
}

/** The agreement of memory and datastore at this token, as a sentence; `fewer` tells that some neighbours
 * are left out. @type {(step: Step, fewer: boolean) => string} */
const agreementText = (step, fewer) => {
  if (step.js === null || step.js === undefined) {
    return hasSource([step], "knn")
      ? "Memory and datastore were not compared here."
      : "The datastore has no answer here, so it cannot be compared with the memory.";
  }
  const js = fewer ? divergence(step) : step.js;
  return `Memory and datastore ${agreement(js)} here: Jensen-Shannon divergence ` +
    `${fewer ? "at least " : ""}${js.toFixed(2)} of at most ${LN2.toFixed(2)} nats.`;
};

/** The unticked neighbours and what was recomputed, as a sentence; `mixed` tells that the column mixes the
 * datastore. @type {(step: Step, left: Set<number>, mixed: boolean) => string} */
const leftText = (step, left, mixed) => {
  if (!left.size) return "";
  const mass = [...left].reduce((sum, i) => sum + (step.nn[i][8] || 0), 0);
  const count = left.size === 1 ? "1 neighbour" : `${left.size} neighbours`;
  if (!(without(step, left).left > 0)) {
    return `Without ${count}, no neighbour is left: the datastore says what the decoder says.`;
  }
  const what = mixed ? "datastore and mix are" : "the datastore is";
  return `Without ${count} (${percent(mass)} % of the weight), ${what} recomputed from the others. ` +
    (mixed ? "The text after this token was written with all of them." : "This column does not mix it.");
};

export class Evidence {
  /** on.leave(step) is called with the step without the unticked neighbours, on.cite(title) when a
   * title is clicked.
   * @param {{ leave: (step: Step) => void, cite: (title: string) => void }} on */
  constructor(on) {
    this.on = on;
    /** @type {Step | null} */
    this.step = null;
    /** @type {Columns | null} */
    this.view = null;
    /** @type {Set<number>} */
    this.left = new Set(); // unticked positions in the step's list; the view keeps it
    this.system = ""; // the column's
    this.lack = h("p", { class: "left-out", role: "status" });
    this.cited = h("p", { class: "cited", role: "status" });
    this.agree = h("p", { class: "agreement" });
    this.list = h("ol", { class: "neighbours" });
    this.root = h("div", { class: "evidence", "data-needs": "knn" },
      h("h3", null, "The datastore's neighbours"), this.agree, this.lack, this.cited, this.list);
  }

  /** Shows a step's neighbours; those unticked before at this position, in any column, still are.
   * @param {Step} step @param {Columns} view @param {string} system */
  render(step, view, system) {
    this.step = step;
    this.system = system;
    const key = entriesOf(step);
    this.view = view;
    this.left = view.unticked.get(key) ?? new Set();
    if (key) view.unticked.set(key, this.left);
    this.list.replaceChildren(...(step.nn || []).map((n, i) => item(n, step.id, {
      use: (ticked) => this.#use(i, ticked), cite: this.on.cite,
      read: view.own ? null : page.read,
    }, !this.left.has(i))));
    this.#tell();
    if (this.left.size) this.on.leave(without(step, this.left));
    this.list.scrollTop = 0;
  }

  /** @param {number} i @param {boolean} ticked */
  #use(i, ticked) {
    if (!this.step) return;
    if (ticked) this.left.delete(i);
    else this.left.add(i);
    this.list.children[i].toggleAttribute("data-left", !ticked);
    this.#tell();
    this.on.leave(this.left.size ? without(this.step, this.left) : this.step);
    if (this.view) page.emit("view", this.view);
  }

  #tell() {
    if (!this.step) return;
    const { left, step } = this;
    setText(this.agree, agreementText(left.size ? without(step, left) : step, left.size > 0));
    setText(this.lack, leftText(step, left, partsOf(this.system).includes("knn")));
  }

  /** Shows which document is marked in the text, and its number of tokens.
   * @param {string | null} title @param {number} count */
  cite(title, count) {
    setText(this.cited, title === null ? ""
      : `${quote(title)} is evidence for ${count} ${count === 1 ? "token" : "tokens"}, marked above.`);
    for (const button of /** @type {NodeListOf<HTMLElement>} */ (this.list.querySelectorAll(".neighbour-title"))) {
      button.setAttribute("aria-pressed", String(button.dataset.title === title));
    }
  }
}

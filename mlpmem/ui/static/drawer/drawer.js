// @ts-check
/* The token drawer: four distributions over one candidate list, the rest, the evidence.
 * The page has one drawer, which moves into the view whose token is selected. */
/** @import { Candidate, Columns, Packed, Pane, Probs, Props, Shown, Step, Watch } from "../core/types.js" */
import { h, isFrom, lambdaText, percent, quote, setText, single } from "../core/dom.js";
import { SOURCES, candidateOf, lambdaAt, mix, otherOf, ranked, tokensOf } from "../core/mix.js";
import { inline, kindOf, lambdaOf, nameOf, page, unpack } from "../core/state.js";
import { Evidence } from "./evidence.js";
import { Place } from "./place.js";
import { Probe } from "./probe.js";

const COLUMNS = ["lm", "memory", "knn", "fused"];
/** @type {{ [column: string]: string }} */
const HEADS = { lm: "decoder", memory: "memory", knn: "datastore", fused: "mix" };

/** @typedef {{ root: HTMLElement, fill: HTMLElement, text: HTMLElement }} Slot */
/** @typedef {{ root: HTMLElement, cells: { [column: string]: Slot }, p: Probs }} Row */

/** The cells of a row, one per column. @type {() => { [column: string]: Slot }} */
const cellsOf = () => Object.fromEntries(COLUMNS.map((column) => {
  const fill = h("i", { "aria-hidden": "true" });
  const text = h("b", null, "–");
  return [column, { root: h("td", { class: "p", "data-source": column }, h("span", null, fill, text)), fill, text }];
}));

/** @param {Slot} slot @param {number | null | undefined} p */
function put(slot, p) {
  setText(slot.text, percent(p));
  slot.fill.style.setProperty("--p", String(p ?? 0));
}

/** @type {{ [direction: string]: { [key: string]: number } }} */
const STEPS = { vertical: { ArrowUp: -1, ArrowDown: 1 }, across: { ArrowLeft: -1, ArrowRight: 1 } };

export class Drawer {
  constructor() {
    /** The token on screen, null while the drawer is closed; `step` is without the unticked neighbours.
     * @type {{ view: Columns, pane: Pane, index: number, trace: Shown, step: Step } | null} */
    this.at = null;
    this.name = h("h3", { class: "drawer-title", "aria-live": "polite" });
    this.story = h("p", { class: "story" });
    this.formula = h("p", { class: "formula" });
    this.decoderHead = h("th", { scope: "col", "data-source": "lm" });
    this.mixHead = h("th", { scope: "col", "data-source": "fused" });
    this.body = h("tbody");
    /** @type {(Row & { id: number })[]} */
    this.rows = [];
    /** @type {Row} */
    this.rest = { root: h("tr"), cells: cellsOf(), p: { lm: 0 } };
    this.evidence = new Evidence({
      leave: (step) => this.#leave(step), cite: (title) => this.at?.view.cite(title),
    });
    this.probe = new Probe(this);
    this.root = h("section", { id: "drawer", class: "drawer", "aria-label": "Token in detail",
      hidden: true,
      on: { keydown: (event) => this.#pressed(event) } },
    this.#head(), this.story, this.formula,
    h("div", { class: "drawer-grid" }, this.#table(), this.evidence.root));
    page.on("lambda", () => this.repaint());
    this.place = new Place(this.root);
    page.on("cite", (view) => this.#cited(view));
  }

  /** @param {Columns} view */
  #cited(view) {
    if (view !== this.at?.view) return;
    const title = view.cited;
    this.evidence.cite(title, title === null ? 0 : tokensOf(this.at.trace.steps, title).size);
  }

  /** Updates the datastore's column and the mix for a step without some neighbours. @param {Step} step */
  #leave(step) {
    if (!this.at) return;
    this.at.step = step;
    const p = new Map(step.cand.map((row) => [row[0], candidateOf(row).p]));
    for (const row of this.rows) {
      row.p = p.get(row.id) ?? row.p;
      put(row.cells.knn, row.p.knn);
      row.root.setAttribute("data-knn", String(row.p.knn));
    }
    this.rest.p = step.rest;
    put(this.rest.cells.knn, step.rest.knn);
    this.repaint();
  }

  #head() {
    /** @type {(label: string, text: string, fn: () => void) => HTMLElement} */
    const button = (label, text, fn) => h("button", { type: "button", class: "icon-button",
      "aria-label": label, on: { click: fn } }, text);
    return h("header", { class: "drawer-head" }, this.name, h("span", { class: "drawer-keys" },
      button("Previous token", "‹", () => this.step(-1)),
      button("Next token", "›", () => this.step(1)),
      button("Close (Esc)", "✕", () => this.close())));
  }

  #table() {
    const heads = [this.decoderHead, ...COLUMNS.slice(1, 3).map((c) =>
      h("th", { scope: "col", "data-source": c }, HEADS[c]))];
    const scroll = h("div", { class: "candidates", tabindex: "0", role: "group",
      "aria-label": "Candidates" }, h("table", null,
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "token, %"), heads,
        this.mixHead)), this.body));
    return h("div", { class: "distributions" },
      h("h4", { class: "unseen" }, "Distributions of the next token"), scroll, this.probe.root);
  }

  /** Opens the drawer at a token of a view's pane.
   * @param {Columns} view @param {Pane} pane @param {number} index */
  show(view, pane, index) {
    const { trace } = pane;
    const step = trace?.steps[index];
    if (!trace || !step) return;
    if (this.at && this.at.view !== view) delete this.at.view.slot.dataset.open;
    this.at = { view, pane, index, trace, step };
    if (this.root.parentNode !== view.slot) view.slot.append(this.root);
    view.slot.dataset.open = "";
    this.root.hidden = false;
    this.root.dataset.system = pane.system;
    this.root.dataset.hue = kindOf(pane.system);
    const tuned = kindOf(pane.system) === "tuned";
    setText(this.decoderHead, tuned ? nameOf(pane.system).short : HEADS.lm);
    this.rows = ranked(step, pane.system, lambdaOf(trace)).map((c) => this.#row(c, step));
    this.rest = this.#restRow(step);
    this.body.replaceChildren(...this.rows.map((row) => row.root), this.rest.root);
    setText(this.name, `Token ${index + 1} of ${trace.steps.length}: ${quote(step.s)} · ` +
      inline(pane.system));
    this.evidence.render(step, view.own);
    this.probe.clear();
    this.probe.allow(!["tuned", "memory"].includes(kindOf(pane.system)));
    const [first] = this.#branches();
    if (first) first.tabIndex = 0;
    this.repaint();
    this.#cited(view);
    this.place.fit();
  }

  /** @param {Candidate} candidate @param {Step} step */
  #row(candidate, step) {
    const cells = cellsOf();
    const root = h("tr", { class: "candidate", "data-token-id": candidate.id,
      "data-chosen": candidate.id === step.id ? "" : null },
    h("th", { scope: "row", dir: "auto" }, this.#branch(candidate)),
    COLUMNS.map((c) => cells[c].root));
    for (const source of SOURCES) {
      const p = candidate.p[source];
      if (p !== null && p !== undefined) root.setAttribute(`data-${source}`, String(p));
      put(cells[source], p);
    }
    return { root, cells, p: candidate.p, id: candidate.id };
  }

  /** A candidate's text; in a view with a model, unless recorded, a button that branches with it.
   * @param {Candidate} candidate */
  #branch(candidate) {
    const { at } = this;
    if (!at?.view.ask || at.trace.recorded) return single(candidate.text);
    return h("button", { type: "button", class: "branch", tabindex: "-1",
      "aria-label": `Branch with ${quote(candidate.text)}`,
      on: { click: () => at.view.tree.branch(at.pane, at.index, candidate) } },
    h("span", null, single(candidate.text)));
  }

  /** @returns {HTMLElement[]} */
  #branches() {
    return [.../** @type {NodeListOf<HTMLElement>} */ (this.body.querySelectorAll(".branch"))];
  }

  /** Moves the focus up or down the candidates' buttons, one of which is a tab stop. @param {number} by */
  #walk(by) {
    const buttons = this.#branches();
    if (!buttons.length) return false;
    const at = buttons.indexOf(/** @type {HTMLElement} */ (document.activeElement));
    const next = buttons[at < 0 ? 0 : Math.max(0, Math.min(buttons.length - 1, at + by))];
    for (const button of buttons) button.tabIndex = button === next ? 0 : -1;
    next.focus();
    return true;
  }

  /** @param {Step} step @returns {Row} */
  #restRow(step) {
    const cells = cellsOf();
    const root = h("tr", { class: "rest" },
      h("th", { scope: "row" }, "everything else"), COLUMNS.map((c) => cells[c].root));
    for (const source of SOURCES) put(cells[source], step.rest[source]);
    return { root, cells, p: step.rest };
  }

  /** Mixes the fused column again for the page's lambda; no other column depends on it. */
  repaint() {
    if (!this.at) return;
    const { system } = this.at.trace;
    const lambda = lambdaAt(this.at.step, lambdaOf(this.at.trace));
    const fused = this.rows.map((row) => mix(row.p, system, lambda));
    const top = fused.indexOf(Math.max(...fused));
    this.rows.forEach((row, i) => {
      row.root.setAttribute("data-fused", String(fused[i]));
      put(row.cells.fused, fused[i]);
      row.root.toggleAttribute("data-top", i === top);
    });
    put(this.rest.cells.fused, mix(this.rest.p, system, lambda));
    this.probe.repaint(system, lambda);
    const routed = lambdaOf(this.at.trace) === "auto"; // a router's lambda has many digits
    const shown = routed ? lambda.toFixed(2) : lambdaText(lambda);
    setText(this.mixHead, "mix");
    this.#explain(this.at, lambda, shown);
  }

  /** Shows the token's probability as a sentence and as a formula.
   * @param {NonNullable<Drawer["at"]>} at @param {number} lambda @param {string} shown */
  #explain({ pane, trace, step: { p, s } }, lambda, shown) {
    const { system } = trace;
    const other = otherOf(p, system);
    const text = quote(s);
    const { source: name, alone = "The decoder" } = nameOf(pane.system);
    if (system === "lm" || other === null) {
      setText(this.story, `${alone} gives ${text} ${percent(p.lm)} %. ` +
        "This column has no mix.");
      setText(this.formula, `p = p(decoder) = ${p.lm.toFixed(3)}`);
      return;
    }
    const fused = mix(p, system, lambda);
    const chosen = lambdaOf(trace) === "auto" ? "The router chose this λ for this token." : "";
    setText(this.story, `The decoder gives ${text} ${percent(p.lm)} %, the ${name} ` +
      `${percent(other)} %. Mixed at λ ${shown}: ${percent(fused)} %. ${chosen}`);
    setText(this.formula, `${fused.toFixed(3)} = (1 − ${lambdaText(lambda)}) × ` +
      `${p.lm.toFixed(3)} + ${lambdaText(lambda)} × ${other.toFixed(3)}`);
  }

  /** @param {number} by */
  step(by) {
    if (!this.at) return;
    const { view, pane, index, trace } = this.at;
    view.select(pane.system, Math.max(0, Math.min(trace.steps.length - 1, index + by)), "drawer");
  }

  /** Closes the drawer; focus returns to the token only if the visitor closed it. */
  close(focus = true) {
    if (!this.at) return;
    const { view, pane, index } = this.at;
    this.at = null;
    delete view.slot.dataset.open;
    this.root.hidden = true;
    this.place.fit();
    this.body.replaceChildren();
    if (focus) pane.strip.select(index, true);
    view.deselect();
  }

  /** @param {KeyboardEvent} event */
  #pressed(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const down = STEPS.vertical[event.key];
    if (down && isFrom(event, ".candidates") && this.#walk(down)) event.preventDefault();
    const by = STEPS.across[event.key];
    if (by === undefined) return;
    event.preventDefault();
    this.step(by);
  }
}

/** @type {Drawer | null} */
let only = null;

/** The page's drawer, created on first use. @type {() => Drawer} */
export const drawer = () => (only ||= new Drawer());

/** Connects the probe to its Gradio component, which sends requests and receives replies.
 * @type {(props: Props<Packed>, watch: Watch, trigger: (data: object) => void) => void} */
export const mountProbe = (props, watch, trigger) => {
  drawer().probe.connect(trigger);
  watch("value", () => drawer().probe.receive(unpack(props.value)));
};

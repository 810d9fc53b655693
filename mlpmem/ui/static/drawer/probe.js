// @ts-check
/* The probe: the probability of any typed word at the drawer's position, with one request. */
/** @import { Probed, Probs } from "../core/types.js" */
import { h, percent, setText, single } from "../core/dom.js";
import { lambdaAt } from "../core/mix.js";
import { lambdaOf, page } from "../core/state.js";
import { chanceOf } from "../core/truth.js";

const COLUMNS = ["lm", "memory", "knn", "fused"];

export class Probe {
  /** @param {import("./drawer.js").Drawer} drawer */
  constructor(drawer) {
    this.drawer = drawer;
    /** @type {((data: object) => void) | null} */
    this.send = null; // set once its Gradio component is mounted
    this.number = 0; // of the last request
    /** @type {number | null} */
    this.waiting = null; // the number of the request without a reply yet
    this.input = h("input", { type: "text", class: "probe-input", maxlength: "40", dir: "auto",
      placeholder: "type any word", "aria-label": "Probe a word: its probability here",
      on: { keydown: (event) => this.#pressed(event) } });
    this.button = h("button", { type: "button", class: "pane-tool",
      on: { click: () => this.ask() } }, "Probe");
    this.note = h("p", { class: "probe-note", role: "status" });
    this.body = h("tbody");
    this.root = h("div", { class: "probe", hidden: true },
      h("div", { class: "probe-row" }, this.input, this.button, this.note),
      h("table", { class: "probe-table", "aria-label": "Probed tokens" }, this.body));
    /** @type {{ tokens: Probs[], cells: HTMLElement[], root: HTMLElement }[]} */
    this.rows = [];
  }

  /** Enables requests. @param {(data: object) => void} send */
  connect(send) {
    this.send = send;
    this.root.hidden = false;
  }

  /** Shows the probe only for columns of the page's own model. @param {boolean} on */
  allow(on) {
    this.root.hidden = !this.send || !on;
  }

  clear() {
    this.waiting = null;
    this.rows = [];
    this.body.replaceChildren();
    setText(this.note, "");
  }

  /** @param {KeyboardEvent} event */
  #pressed(event) {
    if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) this.ask();
    if (event.key !== "Escape" && !(event.ctrlKey || event.metaKey)) event.stopPropagation();
  }

  ask() {
    const { at } = this.drawer;
    const text = this.input.value;
    if (!this.send || !text.trim() || !at) return;
    if (!page.status.ready) {
      setText(this.note, "The model is still loading.");
      return;
    }
    this.number += 1;
    this.waiting = this.number;
    setText(this.note, "asking …");
    const before = at.trace.steps.slice(0, at.index).map((step) => step.id);
    this.send({ number: this.number, ids: [...(at.trace.prompt_ids || []), ...before], text, own: at.view.own });
  }

  /** @param {Probed | null} value */
  receive(value) {
    if (!value || value.number !== this.waiting) return;
    this.waiting = null;
    setText(this.note, value.error || "");
    this.rows = (value.rows || []).map((row) => this.#row(row));
    this.body.replaceChildren(...this.rows.map((row) => row.root));
    const { at } = this.drawer;
    if (at) this.repaint(at.trace.system, lambdaAt(at.step, lambdaOf(at.trace)));
  }

  /** @param {NonNullable<Probed["rows"]>[number]} row */
  #row({ id, named, p, tokens }) {
    const cells = COLUMNS.map((c) => h("td", { class: "p", "data-source": c }, percent(p[c])));
    const parts = tokens.length > 1 ? h("span", { class: "lead" }, ` ${tokens.length} tokens`) : null;
    return { tokens, cells, root: h("tr", { "data-token-id": id },
      h("th", { scope: "row", dir: "auto" }, single(named), parts), cells) };
  }

  /** @param {string} system @param {number} lambda */
  repaint(system, lambda) {
    for (const { tokens, cells } of this.rows) setText(cells[3], percent(chanceOf(tokens.map((p) => ({ p })), system, lambda)));
  }
}

// @ts-check
/* The token drawer: four distributions over one candidate list, the rest, the evidence.
 * The page has one drawer, which moves into the view whose token is selected. */
/** @import { Columns, Packed, Pane, Props, Shown, Step, Watch } from "../core/types.js" */
import { digits, h, isFrom, lambdaText, percent, quote, setText } from "../core/dom.js";
import { lambdaAt, mix, otherOf, tokensOf } from "../core/mix.js";
import { named } from "../core/pieces.js";
import { inline, kindOf, lambdaOf, nameOf, page, unpack } from "../core/state.js";
import { Candidates } from "./candidates.js";
import { choiceText } from "./choice.js";
import { Evidence } from "./evidence.js";
import { Place } from "./place.js";
import { Probe } from "./probe.js";

/** @type {{ [direction: string]: { [key: string]: number } }} */
const STEPS = { vertical: { ArrowUp: -1, ArrowDown: 1 }, across: { ArrowLeft: -1, ArrowRight: 1 } };

export class Drawer {
  constructor() {
    /** The token on screen, null while the drawer is closed; `step` is without the unticked neighbours.
     * @type {{ view: Columns, pane: Pane, index: number, trace: Shown, step: Step } | null} */
    this.at = null;
    this.name = h("h2", { class: "drawer-title", "aria-live": "polite" });
    this.story = h("p", { class: "story" });
    this.formula = h("p", { class: "formula" });
    this.choice = h("p", { class: "choice" });
    this.candidates = new Candidates((candidate) => {
      if (this.at) this.at.view.tree.branch(this.at.pane, this.at.index, candidate);
    });
    this.evidence = new Evidence({
      leave: (step) => this.#leave(step), cite: (title) => this.at?.view.cite(title),
    });
    this.probe = new Probe(this);
    this.root = h("section", { id: "drawer", class: "drawer", "aria-label": "Token in detail",
      hidden: true,
      on: { keydown: (event) => this.#pressed(event) } },
    this.#head(), this.story, this.formula,
    h("div", { class: "drawer-grid" }, h("div", { class: "distributions" },
      h("h3", { class: "unseen" }, "Distributions of the next token"), this.candidates.root, this.choice, this.probe.root),
    this.evidence.root));
    page.on("lambda", () => this.repaint(true));
    document.addEventListener("keydown", (event) => this.#entered(event));
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
    this.candidates.use(step);
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
    this.candidates.show(step, tuned ? nameOf(pane.system).short : "", Boolean(view.ask) && !trace.recorded);
    setText(this.name, `Token ${index + 1} of ${trace.steps.length}: ${named(trace.steps.map((one) => one.s), index)} · ` +
      inline(pane.system));
    this.evidence.render(step, view, trace.system);
    this.probe.clear();
    this.probe.allow(!["tuned", "memory"].includes(kindOf(pane.system)));
    this.repaint();
    this.#cited(view);
    this.place.fit();
  }

  /** Mixes the fused column again for the page's lambda; no other column depends on it. @param {boolean} [moves] */
  repaint(moves = false) {
    if (!this.at) return;
    const { system } = this.at.trace;
    const lambda = lambdaAt(this.at.step, lambdaOf(this.at.trace));
    this.candidates.repaint(system, lambda, moves);
    const whole = this.at.trace.steps[this.at.index] === this.at.step; // without neighbours, ranks are not known
    setText(this.choice, whole ? choiceText(this.at.step, this.at.trace, lambda) : "");
    this.probe.repaint(system, lambda);
    const routed = lambdaOf(this.at.trace) === "auto"; // a router's lambda has many digits
    const shown = routed ? lambda.toFixed(2) : lambdaText(lambda);
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
      setText(this.formula, `p = p(decoder) = ${digits(p.lm)}`);
      return;
    }
    const fused = mix(p, system, lambda);
    const chosen = lambdaOf(trace) === "auto" ? "The router chose this λ for this token." : "";
    setText(this.story, `The decoder gives ${text} ${percent(p.lm)} %, the ${name} ` +
      `${percent(other)} %. Mixed at λ ${shown}: ${percent(fused)} %. ${chosen}`);
    setText(this.formula, `${digits(fused)} = (1 − ${lambdaText(lambda)}) × ` +
      `${digits(p.lm)} + ${lambdaText(lambda)} × ${digits(other)}`);
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
    if (focus) pane.strip.select(index, true);
    view.deselect();
  }

  /** Down from the chosen token reaches the candidates. @param {KeyboardEvent} event */
  #entered(event) {
    const down = event.key === "ArrowDown" && isFrom(event, ".token[aria-selected=true]");
    if (down && this.at && this.candidates.walk(1)) event.preventDefault();
  }

  /** @param {KeyboardEvent} event */
  #pressed(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const down = STEPS.vertical[event.key];
    if (down && isFrom(event, ".candidates") && this.candidates.walk(down)) event.preventDefault();
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

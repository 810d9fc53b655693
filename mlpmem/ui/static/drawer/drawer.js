// @ts-check
/* The token drawer: four distributions on one candidate list, the rest, the evidence.
 * There is one drawer on the page; it moves into the view whose token was chosen. */
import { h, lambdaText, percent, quote, setText, single } from "../core/dom.js";
import { SOURCES, candidateOf, lambdaAt, mix, otherOf, ranked, tokensOf } from "../core/mix.js";
import { inline, kindOf, lambdaOf, nameOf, page, unpack } from "../core/state.js";
import { Evidence } from "./evidence.js";
import { Probe } from "./probe.js";

const COLUMNS = ["lm", "memory", "knn", "fused"];
const HEADS = { lm: "decoder", memory: "memory", knn: "datastore", fused: "mix" };

function cell(column) {
  const fill = h("i", { "aria-hidden": "true" });
  const text = h("span", null, "–");
  return { root: h("td", { class: "p", "data-source": column }, fill, text), fill, text };
}

function put(slot, p) {
  setText(slot.text, percent(p));
  slot.fill.style.setProperty("--p", Number.isFinite(p) ? p : 0);
}

class Drawer {
  constructor() {
    this.open = false;
    this.name = h("h3", { class: "drawer-title", "aria-live": "polite" });
    this.story = h("p", { class: "story" });
    this.formula = h("p", { class: "formula" });
    this.mixHead = h("th", { scope: "col", "data-source": "fused" });
    this.body = h("tbody");
    this.rows = [];
    this.evidence = new Evidence({
      leave: (step) => this.#leave(step), cite: (title) => this.view.cite(title),
    });
    this.probe = new Probe(this);
    this.root = h("section", { id: "drawer", class: "drawer", "aria-label": "Token in detail",
      hidden: true,
      on: { keydown: (event) => this.#pressed(event) } },
    this.#head(), this.story, this.formula,
    h("div", { class: "drawer-grid" }, this.#table(), this.evidence.root));
    page.on("lambda", () => this.repaint());
    page.on("cite", (view) => this.#cited(view));
  }

  #cited(view) {
    if (!this.open || view !== this.view) return;
    const title = this.view.cited ?? null;
    this.evidence.cite(title, title === null ? 0 : tokensOf(this.trace.steps, title).size);
  }

  /** Some neighbours are left out: the datastore's column and the mix follow. */
  #leave(step) {
    this.current = step;
    const p = new Map(step.cand.map((row) => [row[0], candidateOf(row).p]));
    for (const row of this.rows) {
      row.p = p.get(row.id);
      put(row.cells.knn, row.p.knn);
      row.root.setAttribute("data-knn", String(row.p.knn));
    }
    this.rest.p = step.rest;
    put(this.rest.cells.knn, step.rest.knn);
    this.repaint();
  }

  #head() {
    const button = (label, text, fn) => h("button", { type: "button", class: "icon-button",
      "aria-label": label, on: { click: fn } }, text);
    return h("header", { class: "drawer-head" }, this.name, h("span", { class: "drawer-keys" },
      button("Previous token", "‹", () => this.step(-1)),
      button("Next token", "›", () => this.step(1)),
      button("Close (Esc)", "✕", () => this.close())));
  }

  #table() {
    const heads = COLUMNS.slice(0, 3).map((c) => h("th", { scope: "col", "data-source": c },
      HEADS[c]));
    [this.decoderHead] = heads;
    const scroll = h("div", { class: "candidates", tabindex: "0", role: "group",
      "aria-label": "Candidates" }, h("table", null,
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "next token, %"), heads,
        this.mixHead)), this.body));
    return h("div", { class: "distributions" },
      h("h4", null, "What each would say next"), scroll, this.probe.root);
  }

  /** Opens on one token of a pane inside a view. */
  show(view, pane, index) {
    const step = pane.trace?.steps[index];
    if (!step) return;
    if (this.view && this.view !== view) delete this.view.slot.dataset.open;
    Object.assign(this, { view, pane, index, trace: pane.trace, current: step, open: true });
    if (this.root.parentNode !== view.slot) view.slot.append(this.root);
    view.slot.dataset.open = "";
    this.root.hidden = false;
    this.root.dataset.system = pane.system;
    this.root.dataset.hue = kindOf(pane.system);
    const tuned = kindOf(pane.system) === "tuned";
    setText(this.decoderHead, tuned ? nameOf(pane.system).short : HEADS.lm);
    this.rows = ranked(step, pane.system, lambdaOf(pane.trace)).map((c) => this.#row(c, step));
    this.rest = this.#restRow();
    this.body.replaceChildren(...this.rows.map((row) => row.root), this.rest.root);
    setText(this.name, `Token ${index + 1} of ${pane.trace.steps.length}: ${quote(step.s)} · ` +
      inline(pane.system));
    this.evidence.render(step, this.view.own);
    this.probe.clear();
    this.probe.allow(!["tuned", "memory"].includes(kindOf(pane.system)));
    const first = this.body.querySelector(".branch");
    if (first) first.tabIndex = 0;
    this.repaint();
    this.#cited(view);
  }

  #row(candidate, step) {
    const cells = Object.fromEntries(COLUMNS.map((c) => [c, cell(c)]));
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

  /** A candidate's text; where the view can ask a model, a button that goes on from it. */
  #branch(candidate) {
    const { view, pane, index } = this;
    if (!view.ask) return single(candidate.text);
    return h("button", { type: "button", class: "branch", tabindex: "-1",
      "aria-label": `Branch with ${quote(candidate.text)}`,
      on: { click: () => view.tree.branch(pane, index, candidate) } },
    h("span", null, single(candidate.text)));
  }

  /** Up and down walk the candidates' buttons, of which one is a tab stop. */
  #walk(by) {
    const buttons = [...this.body.querySelectorAll(".branch")];
    if (!buttons.length) return false;
    const at = buttons.indexOf(document.activeElement);
    const next = buttons[at < 0 ? 0 : Math.max(0, Math.min(buttons.length - 1, at + by))];
    for (const button of buttons) button.tabIndex = button === next ? 0 : -1;
    next.focus();
    return true;
  }

  #restRow() {
    const cells = Object.fromEntries(COLUMNS.map((c) => [c, cell(c)]));
    const root = h("tr", { class: "rest" },
      h("th", { scope: "row" }, "everything else"), COLUMNS.map((c) => cells[c].root));
    for (const source of SOURCES) put(cells[source], this.current.rest[source]);
    return { root, cells, p: this.current.rest };
  }

  /** Re-mixes the fused column for the page's lambda; no other column depends on it. */
  repaint() {
    if (!this.open) return;
    const { system } = this.trace;
    const lambda = lambdaAt(this.current, lambdaOf(this.trace));
    let top = this.rows[0];
    for (const row of this.rows) {
      row.fused = mix(row.p, system, lambda);
      row.root.setAttribute("data-fused", String(row.fused));
      put(row.cells.fused, row.fused);
      if (row.fused > top.fused) top = row;
    }
    for (const row of this.rows) row.root.toggleAttribute("data-top", row === top);
    put(this.rest.cells.fused, mix(this.rest.p, system, lambda));
    this.probe.repaint(system, lambda);
    setText(this.mixHead, system === "lm" ? "mix" : `mix at λ ${this.#weight(lambda)}`);
    this.#tell(system, lambda);
  }

  /** A lambda for a sentence; what a router chose has no round digits. */
  #weight(lambda) {
    return lambdaOf(this.trace) === "auto" ? lambda.toFixed(2) : lambdaText(lambda);
  }

  #tell(system, lambda) {
    const { p, s } = this.current;
    const other = otherOf(p, system);
    const text = quote(s);
    const { source: name, alone = "The decoder alone" } = nameOf(this.pane.system);
    if (system === "lm" || !Number.isFinite(other)) {
      setText(this.story, `${alone} gives ${text} ${percent(p.lm)} %. ` +
        "Nothing is mixed in this column.");
      setText(this.formula, `p = p(decoder) = ${p.lm.toFixed(3)}`);
      return;
    }
    const fused = mix(p, system, lambda);
    const chosen = lambdaOf(this.trace) === "auto" ? "The router chose this λ for this token." : "";
    setText(this.story, `The decoder gives ${text} ${percent(p.lm)} %, the ${name} ` +
      `${percent(other)} %. Mixed at λ ${this.#weight(lambda)}: ${percent(fused)} %. ${chosen}`);
    setText(this.formula, `${fused.toFixed(3)} = (1 − ${lambdaText(lambda)}) × ` +
      `${p.lm.toFixed(3)} + ${lambdaText(lambda)} × ${other.toFixed(3)}`);
  }

  step(by) {
    if (!this.open) return;
    const last = this.trace.steps.length - 1;
    this.view.select(this.pane.system, Math.max(0, Math.min(last, this.index + by)), "drawer");
  }

  /** Closes; focus goes back to the token only when a person closed it. */
  close(focus = true) {
    if (!this.open) return;
    this.open = false;
    const { view, pane, index } = this;
    delete view.slot.dataset.open;
    this.root.hidden = true;
    this.body.replaceChildren();
    if (focus) pane.strip.select(index, true);
    view.deselect();
  }

  #pressed(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const down = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (down && event.target.closest(".candidates") && this.#walk(down)) event.preventDefault();
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    this.step(by);
  }
}

/** The page's one drawer, made on first use. */
let only = null;
export const drawer = () => (only ||= new Drawer());

/** What carries the probe's questions and answers is on the page. */
export const mountProbe = (props, watch, trigger) => {
  drawer().probe.connect(trigger);
  watch("value", () => drawer().probe.receive(unpack(props.value)));
};

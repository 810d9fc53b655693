// @ts-check
/* The lambda bar: one slider for the page. Moving it sends no request. */
/** @import { Lambda, Columns, Props } from "../core/types.js" */
import { h, inside, lambdaText, setText } from "../core/dom.js";
import { term } from "../core/glossary.js";
import { isScored } from "../core/mix.js";
import { canRoute, nameOf, page } from "../core/state.js";
import { Curve } from "../drawer/curve.js";
import { again } from "../view/page.js";

/** @type {never[]} */
const NONE = [];

/** Whose text a column shows, because a model's own text says little of its quality.
 * @param {import("../core/types.js").Pane | null | undefined} pane */
const whoseText = (pane) => {
  if (!pane?.trace) return "";
  if (isScored(pane.trace)) return "of your text";
  return `of its own text (${nameOf(pane.system).short})`;
};

export class LambdaBar {
  /** Generate sends props.value.lmbda.
   * @param {HTMLElement} host @param {Props<{ lmbda: Lambda | null }>} props */
  constructor(host, props) {
    this.props = props;
    this.output = h("output", { class: "lambda-value", for: "lambda" });
    this.input = h("input", { type: "range", id: "lambda", min: "0", max: "1", step: "0.01",
      "aria-label": "lambda: weight of the memory or datastore in the mix",
      on: { input: () => this.#moved(), change: () => this.#settled() } });
    this.auto = h("button", { type: "button", id: "lambda-auto", class: "auto", role: "switch",
      "aria-checked": "false", hidden: true, title: "A router chooses λ for every token",
      on: { click: () => this.#switch() } }, "auto");
    this.ticks = h("div", { class: "lambda-ticks", "aria-hidden": "true" });
    this.curve = new Curve();
    this.again = h("button", { type: "button", class: "again", on: { click: () => again() } });
    this.reset = h("button", { type: "button", class: "reset",
      on: { click: () => this.#back() } }, "Reset λ");
    this.track = h("div", { class: "lambda-track" }, this.input, this.ticks,
      h("div", { class: "lambda-ends", "aria-hidden": "true" },
        h("span", null, "0 · decoder only"), h("span", null, h("span", { "data-needs": "memory" }, "memory"),
          h("span", { "data-needs": "memory knn" }, " or "), h("span", { "data-needs": "knn" }, "datastore"), " only · 1")));
    host.replaceChildren(this.#layout());
    page.on("lambda", () => this.repaint());
    page.on("view", () => this.repaint());
    page.on("pending", () => this.repaint());
    page.on("status", () => this.#defaults());
    this.#defaults();
  }

  #layout() {
    const label = h("label", { class: "lambda-label", for: "lambda" },
      term(h("span", { class: "lambda-sign" }, "λ"), "lambda"), this.output);
    return h("div", { class: "dock", role: "group", "aria-label": "Mix" },
      h("div", { class: "lambda-head" }, label, this.auto), this.track, this.curve.root, h("div", { class: "lambda-actions" }, this.again, this.reset));
  }

  #defaults() {
    const { defaults, status } = page;
    if (status.ready && !status.auto?.length && page.auto) this.set(null);
    if (page.lambda === null) this.input.value = String(defaults.memory);
    this.ticks.replaceChildren(...["memory", "knn"]
      .filter((source) => Number.isFinite(defaults[source]))
      .map((source) => h("i", { "data-source": source, "data-needs": source,
        style: { "--at": defaults[source] } })));
    this.repaint();
  }

  #moved() {
    page.setLambda(Number(this.input.value));
  }

  #settled() {
    const lmbda = page.auto ? "auto" : page.lambda;
    this.props.value = { ...this.props.value, lmbda };
    this.repaint();
  }

  /** Turns the router on or off; if it is on by default, off sets one lambda for all. */
  #switch() {
    const on = this.auto.getAttribute("aria-checked") === "true";
    this.set(on ? (page.status.routed ? page.defaults.memory : null) : "auto");
  }

  #back() {
    this.set(null);
    this.input.focus();
  }

  /** Sets lambda: a number, "auto" for the router's, or null to show every text at its own. At null,
   * the next text is generated with the bundle's lambdas or its router (status.routed).
   * @param {Lambda | null} value */
  set(value) {
    if (value !== "auto") this.input.value = String(value ?? page.defaults.memory);
    page.setLambda(value === "auto" ? null : value, value === "auto");
    this.#settled();
  }

  /** Moves the slider by a step (the [ and ] keys). @param {number} by */
  nudge(by) {
    this.set(Number(Math.min(1, Math.max(0, Number(this.input.value) + by)).toFixed(2)));
  }

  /** The router's lambda for the selected token, null without one.
   * @param {Columns | null} view @returns {number | null} */
  #here(view) {
    const chosen = view?.chosen;
    const trace = chosen && view.panes.get(chosen.system)?.trace;
    return (trace?.lmbda === "auto" && trace.steps[chosen?.index ?? -1]?.lmbda) || null;
  }

  repaint() {
    const view = page.activeView();
    const pane = view?.focusPane();
    const trace = pane?.trace ?? null;
    const scored = trace !== null && isScored(trace); // scored at fixed lambdas only
    const mixed = trace?.system === "lm" ? null : trace; // the decoder has no lambda
    const { status } = page;
    const routable = mixed !== null && canRoute(pane?.system ?? "", view?.own);
    const other = routable && mixed.lmbda !== "auto";
    const early = !status.ready && trace?.lmbda === "auto"; // a recording tells of a router before the server does
    const routed = (Boolean(status.routed) || early) && page.lambda === null && !other;
    const auto = (page.auto || routed) && !scored;
    const wanted = auto ? "auto" : page.lambda;
    const routers = Boolean(status.auto?.length);
    this.auto.hidden = !routers && !early;
    this.auto.disabled = scored || !routers;
    const stays = mixed !== null && mixed.lmbda !== "auto" && !routable;
    const shown = (stays ? page.lambda : wanted) ?? mixed?.lmbda ?? page.defaults.memory;
    const touched = page.lambda !== null || (page.auto && !status.routed);
    const next = wanted ?? (status.routed ? "auto" : null); // lambda of the next text
    this.auto.setAttribute("aria-checked", String(auto));
    this.track.toggleAttribute("data-idle", shown === "auto");
    if (shown === "auto") this.input.setAttribute("aria-valuetext", "inactive: lambda is auto");
    else this.input.removeAttribute("aria-valuetext");
    const here = shown === "auto" ? this.#here(view) : null;
    setText(this.output, here === null ? lambdaText(shown) : here.toFixed(2));
    const own = page.lambda === null && shown !== "auto" ? shown : null; // the text's, not the bar's
    if (here !== null || own !== null) this.input.value = String(here ?? own);
    this.input.style.setProperty("--at", String(page.lambda ?? Number(this.input.value)));
    this.curve.draw(trace?.steps ?? NONE, view?.truth() ?? null, whoseText(pane));
    this.curve.root.toggleAttribute("data-earlier", view?.running === true && view.head.kind === "waiting");
    const along = mixed ?? view?.allPanes().find((one) => one.trace && one.trace.system !== "lm")?.trace ?? null;
    this.curve.mark(shown === "auto" && along ? along.lmbda : shown, along);
    setText(this.again, `Generate again at λ ${lambdaText(next ?? shown)}`);
    const moved = Boolean(next !== null && !scored && status.ready && view?.shown && view.isOff(next));
    this.again.toggleAttribute("data-offered", moved);
    this.again.tabIndex = moved ? 0 : -1;
    this.reset.toggleAttribute("data-offered", touched);
    this.reset.tabIndex = touched ? 0 : -1;
  }
}

/** @type {(element: Element, props: Props<{ lmbda: Lambda | null }>) => void} */
export const mountLambda = (element, props) => {
  page.bar = new LambdaBar(inside(element, ".lambda-host"), props);
};

// @ts-check
/* A tour in six steps with the numbers of the bundle's recorded run; it starts by a click only. */
/** @import { Cost, Shown, Source, Step, TokenView } from "../core/types.js" */
import { digits, h, inside, isCalm, isPhone, lambdaText, megabytes, percent, quote, setText, short } from "../core/dom.js";
import { candidateOf, firstDifference, lambdaAt, mix, neighbourOf, otherOf } from "../core/mix.js";
import { lacking } from "../core/sources.js";
import { lambdaOf, nameOf, page } from "../core/state.js";
import { isFree } from "../view/page.js";
import { stage } from "../view/showcase.js";

const SEEN = "mlpmem-tour";
const GAP = 12; // pixels between the card and its target

const seen = () => {
  try { return window.localStorage.getItem(SEEN) !== null; } catch { return true; }
};
const remember = () => {
  try { window.localStorage.setItem(SEEN, "seen"); } catch { /* the hint is shown again next time */ }
};

/** A source's likeliest token at a step, or null.
 * @param {Step} step @param {Source} source @returns {{ text: string, p: number } | null} */
function top(step, source) {
  /** @type {{ text: string, p: number } | null} */
  let best = null;
  for (const { text, p: { [source]: p } } of step.cand.map(candidateOf)) {
    if (p !== null && p > (best?.p ?? -1)) best = { text, p };
  }
  return best;
}

/** @type {(step: Step, source: Source) => string} */
const says = (step, source) => {
  const best = top(step, source);
  return best ? `${quote(best.text)} (${percent(best.p)} %)` : "nothing yet";
};

/** The memory's prediction compared with the datastore's. @param {Step} step */
function remembers(step) {
  const [memory, knn] = [top(step, "memory"), top(step, "knn")];
  if (!memory || !knn) return `Here it predicts ${says(step, "memory")}.`;
  return memory.text === knn.text ? `Here it predicts ${quote(memory.text)}, as the datastore does.`
    : `Here it predicts ${says(step, "memory")}, the datastore ${quote(knn.text)}.`;
}

/** @type {(cost: Cost | undefined, part: string) => number | undefined} */
const bytes = (cost, part) => cost?.[`${part}_bytes`];
/** @type {(a: number, b: number) => string} */
const times = (a, b) => `${short(a / b)} times`;

/** The tour's position: the first token where memory and decoder differ.
 * @typedef {{ trace: Shown, step: Step, at: number }} Moment */
/** @param {TokenView | null} view @returns {Moment | null} */
function moment(view) {
  const trace = ["memory", "knn", "lm"].map((s) => view?.panes.get(s)?.trace)
    .find((t) => t?.steps.length);
  if (!trace) return null;
  const base = view?.panes.get("lm")?.trace;
  const at = base ? Math.max(0, firstDifference(base.steps, trace.steps)) : 0;
  return { trace, step: trace.steps[at], at };
}

/** The sources of this page, as a list in words. */
const pipes = () => {
  const names = ["its own head", ...(lacking.has("memory") ? [] : ["the memory"]), ...(lacking.has("knn") ? [] : ["the datastore"])];
  return names.length > 1 ? `${names.slice(0, -1).join(", ")} and ${names[names.length - 1]}` : names[0];
};

const WAITING = "Generate or play a run to see its numbers here.";
/** @type {{ title: string, at: string[], lines: (moment: Moment, view: TokenView) => string[] }[]} */
const STEPS = [
  { title: "How a word is made", at: [".circuit-home .circuit"], lines: ({ trace, step, at }) => [
    `The words so far go through a frozen decoder. What it makes of them goes into the pipes of ${pipes()}.`,
    `A pipe is as wide as the probability that its source gives ${quote(step.s)}, token ${at + 1}; the valve λ lets ` +
      `${trace.system === "lm" ? "the head only" : "some of each"} through. Click a pipe to see all that it says.`] },
  { title: "The decoder", at: ["[data-system=lm].pane"], lines: ({ step, at }, view) => [
    `A frozen language model. It reads ${quote(view.head.about.prompt || "")} and continues it, token by token.`,
    `At token ${at + 1} it predicts ${says(step, "lm")}. It can only guess facts that were not in its training text.`] },
  { title: "The datastore", at: ["[data-system=knn].pane"], lines: ({ step }) => {
    const nearest = step.nn?.[0] && neighbourOf(step.nn[0]);
    if (!nearest) return ["It stores every position of the corpus with its next token. It has no answer here: " +
      (page.status.waiting || "it is not part of this run.")];
    return ["It stores every position of the corpus with its next token, and searches for the positions most similar to this one.",
      `The nearest is in “${nearest.title}”, followed by ${quote(nearest.target)}; all neighbours together predict ${says(step, "knn")}.`];
  } },
  { title: "The memory", at: ["[data-system=memory].pane"], lines: ({ step }) => [
    "A small network, trained to predict the datastore's answer from the decoder's hidden state, without a search.",
    page.status.no_memory || remembers(step)] },
  { title: "The mix", at: [".dock"], lines: ({ trace, step }) => {
    const system = trace.system;
    const lambda = lambdaAt(step, lambdaOf(trace));
    const [lm, other] = [step.p.lm, otherOf(step.p, system)];
    if (system === "lm" || other === null) return ["λ mixes the decoder with another source."];
    return [`λ is the weight of the ${nameOf(system).source}. For ${quote(step.s)}:`,
      `(1 − ${lambdaText(lambda)}) × ${digits(lm)} + ${lambdaText(lambda)} × ${digits(other)} = ` +
      `${digits(mix(step.p, system, lambda))}.`,
      "Move the slider: every token on screen is mixed again in your browser, without a request."];
  } },
  { title: "The cost", at: ["[data-system=memory].pane .cost", "[data-system=knn].pane .cost"],
    lines: (_, view) => {
      const cost = view.panes.get("knn")?.trace?.cost || view.panes.get("memory")?.trace?.cost;
      const [small, large] = [bytes(cost, "memory"), bytes(cost, "datastore")];
      if (!small) return ["Below every column: milliseconds per token, and megabytes of storage."];
      const first = `The memory needs ${megabytes(small)}`;
      if (!large) return [lacking.has("knn") ? `${first}.` : `${first}; the datastore is not ready yet.`];
      const time = cost?.search_ms && cost.memory_ms ? ` A token takes ${short(cost.memory_ms)} ms ` +
        `of memory, or ${short(cost.search_ms)} ms of search.` : "";
      return [`${first}, the datastore ${megabytes(large)}: ${times(large, small)} as much.${time}`,
        "The datastore grows with every text; the memory's size is fixed."];
    } },
];

/** @type {(selector: string) => HTMLElement[]} */
const all = (selector) => [...document.querySelectorAll(selector)].filter((node) => node instanceof HTMLElement);

export class Tour {
  constructor() {
    this.at = -1;
    this.content = ""; // the card's text
    /** Shows the visitor's run again. @type {(() => void) | null} */
    this.restore = null;
    this.button = h("button", { type: "button", class: "tool-button tour-button",
      on: { click: () => (this.at < 0 ? this.go(0) : this.end()) } });
    this.#offer();
    this.count = h("span", { class: "tour-count" });
    this.title = h("h2", { id: "tour-title" });
    this.text = h("div", { class: "tour-text", "aria-live": "polite" });
    this.back = this.#act("Back", () => this.go(this.at - 1));
    this.next = this.#act("Next", () => this.go(this.at + 1));
    this.next.classList.add("tour-next");
    this.card = h("section", { class: "tour-card", role: "dialog", "aria-modal": "false",
      "aria-labelledby": "tour-title", tabindex: "-1", hidden: true,
      on: { keydown: (event) => this.#pressed(event) } },
    h("header", null, this.count, h("button", { type: "button", class: "icon-button",
      "aria-label": "End the tour (Esc)", on: { click: () => this.end() } }, "✕")),
    this.title, this.text, h("div", { class: "tour-acts" }, this.back, this.next));
    for (const name of /** @type {const} */ (["view", "lambda", "status"])) page.on(name, () => this.#update());
    page.on("pending", () => this.end()); // the visitor asks something
    for (const name of ["scroll", "resize"]) {
      window.addEventListener(name, () => this.#place(), { passive: true });
    }
  }

  /** @param {string} text @param {() => void} fn */
  #act(text, fn) {
    return h("button", { type: "button", class: "tour-act", on: { click: fn } }, text);
  }

  #offer() {
    const fresh = !seen();
    this.button.toggleAttribute("data-fresh", fresh);
    this.button.replaceChildren(...(fresh ? [h("span", { class: "tour-hint" }, "New here? "), "Tour"] : ["Tour"]));
  }

  /** Shows one step; after the last the tour ends. @param {number} at */
  go(at) {
    if (at >= STEPS.length) {
      this.end();
      return;
    }
    const first = all("#tabs [role=tab]")
      .find((tab) => tab.getClientRects().length); // its targets are on the first tab
    if (first && first.getAttribute("aria-selected") !== "true") first.click();
    if (this.at < 0 && !this.#enter()) return;
    if (!this.card.isConnected) inside(document.body, ".gradio-container").append(this.card);
    this.at = Math.max(0, at);
    remember();
    this.#offer();
    this.card.hidden = false;
    setText(this.count, `${this.at + 1} of ${STEPS.length}`);
    setText(this.title, STEPS[this.at].title);
    setText(this.next, this.at === STEPS.length - 1 ? "Done" : "Next");
    this.back.disabled = this.at === 0;
    this.#update();
    this.#point();
    this.card.focus({ preventScroll: true });
  }

  /** Puts the showcase on screen; without one the tour tells of the run that is there. Returns whether it can begin. */
  #enter() {
    if (!isFree()) return false;
    const view = page.views.find(({ prefix, root }) => prefix === "pane-" && root.isConnected);
    this.restore = view?.showcase ? stage(view, view.showcase) : null;
    return true;
  }

  end() {
    if (this.at < 0) return;
    this.at = -1;
    this.restore?.();
    this.restore = null;
    this.card.hidden = true;
    this.#point();
    this.button.focus({ preventScroll: true });
  }

  get targets() {
    return this.at < 0 ? [] : STEPS[this.at].at.flatMap((selector) =>
      all(selector).filter((node) => node.getClientRects().length));
  }

  #update() {
    if (this.at < 0) return;
    const view = page.views.find(({ prefix, root }) => prefix === "pane-" && root.isConnected) ?? null;
    const now = moment(view);
    const lines = now && view ? STEPS[this.at].lines(now, view) : [WAITING];
    const text = lines.join("\n");
    if (text !== this.content) this.text.replaceChildren(...lines.map((line) => h("p", { dir: "auto" }, line)));
    this.content = text;
    this.#place();
  }

  #point() {
    for (const node of all("[data-tour]")) delete node.dataset.tour;
    for (const node of this.targets) node.dataset.tour = "";
    this.targets[0]?.scrollIntoView({ block: isPhone() ? "start" : "nearest", behavior: isCalm() ? "auto" : "smooth" });
    this.#place();
  }

  /** Puts the card below or above its targets, inside the window and above the lambda bar. */
  #place() {
    if (this.at < 0 || isPhone()) return;
    const boxes = this.targets.map((node) => node.getBoundingClientRect());
    if (!boxes.length) return;
    const left = Math.min(...boxes.map((b) => b.left));
    const right = Math.max(...boxes.map((b) => b.right));
    const upper = Math.min(...boxes.map((b) => b.top));
    const lower = Math.max(...boxes.map((b) => b.bottom));
    const { offsetWidth: width, offsetHeight: height } = this.card;
    const floor = (document.querySelector(".dock")?.getBoundingClientRect().top ?? window.innerHeight) - GAP;
    const below = lower + GAP + height <= floor;
    const y = below ? lower + GAP : upper - GAP - height;
    const x = (left + right - width) / 2;
    this.card.style.left = `${Math.max(GAP, Math.min(x, window.innerWidth - width - GAP))}px`;
    this.card.style.top = `${Math.max(GAP, Math.min(y, floor - height))}px`;
  }

  /** @param {KeyboardEvent} event */
  #pressed(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    /** @type {{ [key: string]: () => void }} */
    const acts = { ArrowRight: () => this.go(this.at + 1), ArrowLeft: () => this.go(this.at - 1),
      Escape: () => this.end() };
    const act = acts[event.key];
    if (!act) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  }
}

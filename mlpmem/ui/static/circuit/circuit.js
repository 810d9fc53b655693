// @ts-check
/* The living circuit: prompt, frozen decoder, three pipes from its hidden state, the valve, the word.
 *
 * Its boxes are HTML, which the style sheet puts in a row or in a column; stage.js draws the pipes
 * between them. A pipe is as wide as its source's probability of the word that is being written. */
/** @import { Columns, Packed, Pane, Props, Shown, Source, Step, TokenView, Watch } from "../core/types.js" */
/** @import { Flow, Pipe } from "./flow.js" */
import { glyph, h, inside, percent, setText } from "../core/dom.js";
import { SOURCES, firstDifference } from "../core/mix.js";
import { term } from "../core/glossary.js";
import { lacking } from "../core/sources.js";
import { inline, lambdaOf, nameOf, page, unpack } from "../core/state.js";
import { drawer } from "../drawer/drawer.js";
import { answersOf, flowOf, spoken } from "./flow.js";
import { Origin } from "./origin.js";
import { Race } from "./race.js";
import { Stage } from "./stage.js";

const TAIL = 120; // characters of the words so far
const BEFORE = 40; // characters of a passage before its next token
const SHORT = 12; // tokens of an answer whose whole probability is shown
const MOST = 4; // answers that race
/** @type {{ [source: string]: [string, string] }} */
const BOXES = {
  lm: ["Head", "the decoder's guess"],
  memory: ["Memory", "looks nothing up"],
  knn: ["Datastore", "searches"],
};

/** The id of the token that ends a column's text, null if it does not end so.
 * @type {(view: TokenView, pane: Pane) => number | null} */
const endOf = (view, pane) => {
  const whole = pane.trace?.fixed ? pane.trace : view.finished?.[pane.system];
  return whole?.finish === "eos" ? whole.steps.at(-1)?.id ?? null : null;
};

/** The letters of a token's word before and after it; a space begins a word.
 * @type {(steps: Step[], index: number, end: number | null) => [string, string]} */
const around = (steps, index, end) => {
  let first = index;
  while (first > 0 && !/^\s/.test(steps[first].s) && !/\s$/.test(steps[first - 1].s)) first -= 1;
  let last = index + 1;
  while (last < steps.length && steps[last].id !== end && !/^\s/.test(steps[last].s)) last += 1;
  /** @type {(list: Step[]) => string} */
  const text = (list) => list.map((step) => step.s).join("");
  return [text(steps.slice(first, index)), text(steps.slice(index + 1, last))];
};

/** A token as a word of its own. @type {(text: string) => string} */
const word = (text) => glyph(text).trim() || glyph(text);

/** Tells the style sheet how long a word is, and shows it whole on hover. @type {(node: HTMLElement) => HTMLElement} */
const fit = (node) => {
  node.title = node.textContent;
  node.style.setProperty("--letters", String([...node.textContent].length));
  return node;
};

/** The end of a text, with a mark where it was cut. @type {(text: string) => string} */
const tail = (text) => {
  const letters = [...text];
  return letters.length > TAIL ? `…${letters.slice(-TAIL).join("")}` : text;
};

/** @typedef {{ root: HTMLButtonElement, says: HTMLElement, gate: HTMLElement }} SourceBox */

class Circuit {
  /** context tells whether the memory also reads the words so far; find(data) looks for passages.
   * @param {HTMLElement} host @param {boolean} context @param {((data: object) => void) | null} find */
  constructor(host, context, find) {
    this.context = context;
    this.origin = find ? new Origin(find) : null;
    this.origin?.button.addEventListener("click", () => this.#trace());
    /** @type {TokenView | null} */
    this.view = null;
    /** The token on screen, if it was chosen here. @type {{ system: string, index: number } | null} */
    this.own = null;
    this.key = ""; // of the token on screen
    this.written = h("span", { class: "circuit-words", dir: "auto" });
    this.words = h("div", { class: "circuit-box words" }, term(h("small", null, "the words so far"), "words"), this.written);
    this.decoder = h("div", { class: "circuit-box frozen" }, term(h("b", null, "Decoder"), "decoder"), h("small", null, "frozen"),
      h("i", { "aria-hidden": "true" }), h("i", { "aria-hidden": "true" }), h("i", { "aria-hidden": "true" }));
    this.sources = /** @type {{ [source: string]: SourceBox }} */ (
      Object.fromEntries(SOURCES.map((source) => [source, this.#source(source)])));
    this.cards = h("ul", { class: "circuit-cards", "aria-label": "Passages that the datastore found" });
    this.lambda = h("b");
    this.valve = term(h("button", { type: "button", class: "valve",
      on: { click: () => document.getElementById("lambda")?.focus() } }, "λ ", this.lambda), "lambda");
    this.word = h("b", { class: "out-word", dir: "auto" });
    this.fused = h("span");
    this.race = new Race();
    this.output = h("div", { class: "circuit-box output" },
      h("p", { class: "out-line" }, this.word, h("span", { class: "out-p" }, h("small", null, "this token "), this.fused)), this.race.root);
    const boxes = { words: this.words, decoder: this.decoder, valve: this.valve, output: this.output,
      ...Object.fromEntries(SOURCES.map((source) => [source, this.sources[source].root])) };
    this.stage = new Stage(boxes, (source) => this.#open(source));
    this.spoken = h("p", { class: "unseen", id: "circuit-text" });
    this.place = term(h("span", { class: "circuit-place" }), "token");
    this.choice = h("div", { class: "circuit-systems", role: "group", "aria-label": "Column in the circuit" });
    this.root = h("section", { class: "circuit", "aria-label": "How the next word is made",
      "aria-describedby": "circuit-text", hidden: true }, this.#head(), this.spoken,
    h("div", { class: "circuit-stage" }, this.stage.root, this.words, this.decoder,
      SOURCES.map((source) => this.#slot(source)), this.cards, this.valve, this.output),
    this.origin?.root);
    host.replaceChildren(this.root);
    page.on("view", (view) => this.#seen(view));
    page.on("pending", () => this.root.toggleAttribute("data-earlier", Boolean(this.view?.running)));
    page.on("status", () => { if (this.view) this.#offer(this.view); });
    new ResizeObserver(() => this.#fit()).observe(this.root);
  }

  #head() {
    /** @type {(label: string, text: string, by: number) => HTMLElement} */
    const button = (label, text, by) => h("button", { type: "button", class: "icon-button",
      "aria-label": label, on: { click: () => this.#step(by) } }, text);
    return h("header", { class: "circuit-head" }, h("h3", null, "How this word is made"), this.choice, this.origin?.button,
      h("span", { class: "circuit-steps" }, button("Previous token in the circuit", "‹", -1), this.place,
        button("Next token in the circuit", "›", 1)));
  }

  /** @param {Source} source @returns {SourceBox} */
  #source(source) {
    const [name, usual] = BOXES[source];
    const reads = source === "memory" && this.context;
    const about = reads ? term(h("span", null, "reads the words too; looks nothing up"), "context") : usual;
    const says = h("span", { class: "box-says", dir: "auto" });
    const gate = h("span", { class: "box-gate" });
    const root = h("button", { type: "button", class: "circuit-box source", "data-source": source,
      on: { click: () => this.#open(source) } },
    h("span", { class: "box-name" }, h("span", { class: "swatch", "data-source": source, "aria-hidden": "true" }),
      term(h("b", null, name), source === "lm" ? "head" : source === "knn" ? "datastore" : source), h("small", null, about)), says);
    return { root, says, gate };
  }

  /** @param {Source} source */
  #slot(source) {
    const { root, gate } = this.sources[source];
    return h("div", { class: "circuit-slot", "data-source": source, "data-needs": source }, root, gate);
  }

  /** Shows the view of the Compare tab. @param {Columns} view */
  #seen(view) {
    if (view.prefix !== "pane-") return;
    this.view = /** @type {TokenView} */ (view);
    if (this.root.parentElement !== view.home) view.home.replaceChildren(this.root);
    if (view.chosen) this.own = null;
    this.repaint();
  }

  /** The column and token on screen: the drawer's, the one chosen here, the last one of a run in
   * progress, or the first that differs from the decoder's. @param {TokenView} view */
  #now(view) {
    const place = view.chosen ?? this.own;
    const pane = (place && view.panes.get(place.system)) || view.focusPane();
    const steps = pane?.trace?.steps ?? [];
    if (!pane || !steps.length) return null;
    if (place?.system === pane.system && steps[place.index]) return { pane, index: place.index };
    if (view.running || view.replay.playing) {
      return { pane, index: Math.max(0, steps.length - (steps.at(-1)?.id === endOf(view, pane) ? 2 : 1)) };
    }
    const base = view.panes.get("lm")?.trace;
    return { pane, index: base && base !== pane.trace ? Math.max(0, firstDifference(base.steps, steps)) : 0 };
  }

  repaint() {
    const { view } = this;
    const now = view && this.#now(view);
    this.root.hidden = !now;
    this.root.removeAttribute("data-earlier"); // an earlier run's, until the first token
    if (!view || !now?.pane.trace) return;
    const { pane, index } = now;
    const trace = /** @type {Shown} */ (pane.trace);
    const flow = this.#flow(view, trace, index);
    if (!flow) return;
    const key = [view.run, pane.system, index, flow.left, trace.steps.map((one) => one.id)].join(" ");
    const fresh = key !== this.key;
    this.key = key;
    if (fresh) this.#write(view, pane, flow);
    this.#mix(view, pane, trace, flow);
    this.#offer(view);
    if (fresh) {
      this.#fit();
      this.stage.pulse();
    } else if (this.stage.at.output) this.stage.paint(flow);
    this.flow = flow;
  }

  /** @param {TokenView} view @param {Shown} trace @param {number} index */
  #flow(view, trace, index) {
    return flowOf(trace, index, lambdaOf(trace), trace.steps[index] && view.stepOf(trace.steps[index]));
  }

  /** Writes what depends on the token only. @param {TokenView} view @param {Pane} pane @param {Flow} flow */
  #write(view, pane, flow) {
    setText(this.written, tail(`${view.head.about.prompt ?? ""}${flow.before}`));
    this.place.replaceChildren(h("span", null, "token "), `${flow.index + 1} of ${flow.count}`);
    const end = endOf(view, pane);
    const steps = pane.trace?.steps ?? [];
    const [before, after] = around(steps, flow.index, end);
    /** @type {(id: number, text: string, source?: string) => (string | HTMLElement)[]} */
    const spelt = (id, text, source = "") => {
      if (id === end) return [h("em", null, "end")];
      const own = view.finished?.[source]?.steps;
      const same = own?.[flow.index]?.id === id && own.slice(0, flow.index).every((step, i) => step.id === steps[i].id);
      const rest = id === steps[flow.index].id ? after : same ? around(own, flow.index, end)[1] : "";
      return [h("i", null, before.trimStart()), before ? glyph(text) : word(text), h("i", null, rest)];
    };
    this.word.replaceChildren(...spelt(steps[flow.index].id, flow.text));
    fit(this.word);
    for (const { source, says } of flow.pipes) this.#say(this.sources[source], source, says, spelt);
    this.cards.parentElement?.toggleAttribute("data-bare", !flow.cards.length);
    this.cards.replaceChildren(...flow.cards.map((card, i) => h("li", { class: "circuit-card", style: { "--i": i },
      title: `${card.title}: …${card.left}${card.target}${card.right}…` },
    h("span", { dir: "auto" }, h("span", null, card.left.slice(-BEFORE)), " ", h("mark", null, word(card.target)), h("span", null, /^\S*/.exec(card.right)?.[0] ?? "")),
    h("small", { dir: "auto" }, card.title))));
    const shown = [...view.panes.values()].filter((one) => one.trace);
    this.choice.replaceChildren(...(shown.length > 1 ? shown.map((one) => h("button", { type: "button",
      class: "circuit-system", "data-system": one.system, "aria-label": `${nameOf(one.system).short}, in the circuit`, "aria-pressed": String(one === pane),
      on: { click: () => this.#show(one.system, this.flow?.index ?? 0) } }, nameOf(one.system).short)) : []));
  }

  /** @param {SourceBox} box @param {Source} source @param {Pipe["says"]} says
   * @param {(id: number, text: string, source: string) => (string | HTMLElement)[]} spelt */
  #say(box, source, says, spelt) {
    box.says.replaceChildren(...(says ? [fit(h("b", null, spelt(says.id, says.text, source))), ` ${percent(says.p)} %`]
      : [source === "knn" && !page.status.settled ? "not ready" : "none here"]));
    box.root.disabled = !says;
  }

  /** Writes what also depends on lambda. @param {TokenView} view @param {Pane} pane @param {Shown} trace
   * @param {Flow} flow */
  #mix(view, pane, trace, flow) {
    const alone = flow.system === "lm";
    setText(this.lambda, alone ? "–" : flow.lambda.toFixed(2));
    setText(this.fused, `${percent(flow.fused)} %`);
    for (const { source, p, weight } of flow.pipes) {
      setText(this.sources[source].gate, p === null ? "" : `${percent(p)} %${weight ? ` × ${weight.toFixed(2)}` : ""}`);
    }
    const scrubbed = view.tree.current.get(pane.system)?.scrub;
    const whole = flow.left === null && scrubbed && scrubbed.kinds <= MOST && scrubbed.kinds > 1 &&
      scrubbed.texts.every((text) => text.steps.length <= SHORT);
    if (whole) {
      const lambda = lambdaOf(trace);
      this.race.show(answersOf(scrubbed.texts, trace, lambda), view.head.answers, lambda);
    } else this.race.show(flow.rivals, []);
    const there = { ...flow, pipes: flow.pipes.filter(({ source }) => !lacking.has(source)) };
    setText(this.spoken, `${spoken(there)} Column: ${inline(pane.system)}.`);
  }

  /** Offers the search for the memory's answer once it is whole, and forgets an earlier one. @param {TokenView} view */
  #offer(view) {
    if (!this.origin) return;
    const { trace, root } = view.panes.get("memory") ?? {};
    const whole = Boolean(trace?.text?.trim()) && root?.dataset.state === "done" && Boolean(page.status.ready);
    this.origin.button.hidden = !whole;
    if (this.origin.asked && this.origin.asked.answer !== trace?.text?.trim()) this.origin.close();
  }

  #trace() {
    const trace = this.view?.panes.get("memory")?.trace;
    if (!this.origin || !trace?.text) return;
    if (this.origin.asked) this.origin.close();
    else this.origin.ask(this.view?.head.about.prompt ?? "", trace.text, trace.steps);
  }

  /** Draws the pipes again after the layout changed. */
  #fit() {
    if (!this.flow && !this.key) return;
    if (!this.stage.measure()) return;
    this.stage.before(this.context);
    const { view } = this;
    const now = view && this.#now(view);
    const trace = now?.pane.trace;
    const flow = view && trace && this.#flow(view, trace, now.index);
    if (flow) this.stage.paint(flow);
  }

  /** Shows a token; the drawer follows if it is open. @param {string} system @param {number} index */
  #show(system, index) {
    const { view } = this;
    const count = view?.panes.get(system)?.trace?.steps.length ?? 0;
    if (!view || !count) return;
    const at = Math.max(0, Math.min(count - 1, index));
    if (view.chosen) view.select(system, at, "drawer");
    else {
      this.own = { system, index: at };
      this.repaint();
    }
  }

  /** @param {number} by */
  #step(by) {
    const now = this.view && this.#now(this.view);
    if (now) this.#show(now.pane.system, now.index + by);
  }

  /** Opens the drawer at the token on screen, with a source's column marked. @param {Source} source */
  #open(source) {
    const now = this.view && this.#now(this.view);
    if (!this.view || !now) return;
    this.view.select(now.pane.system, now.index, "page");
    drawer().root.dataset.focus = source;
  }
}

/** props.context tells whether the memory also reads the words so far; find(data) asks for passages that say
 * what the memory wrote, which arrive as props.value. Null without a server.
 * @type {(element: Element, props: Props<Packed, { context?: boolean }>, watch: Watch,
 *   find: ((data: object) => void) | null) => void} */
export const mountCircuit = (element, props, watch, find) => {
  const circuit = new Circuit(inside(element, ".circuit-host"), Boolean(props.context), find);
  watch("value", () => circuit.origin?.receive(unpack(props.value)));
};

// @ts-check
/* The Inspect tab: a text in a token view, with nll curves, gains, losses and documents. */
/** @import { How, Inspected, Lambda, Packed, Props, Step, Trace, Watch } from "../core/types.js" */
import { glyph, h, inside, lambdaText, percent, setText, short, svg, tabNamed, write } from "../core/dom.js";
import { creditOf, curveOf, documentsOf, flipsOf, hasSource, lambdaAt, mix, optimum, perplexity } from "../core/mix.js";
import { GROUPS, lambdaOf, nameOf, page, unpack } from "../core/state.js";
import { TokenView } from "../view/view.js";

const SHOWN = 6; // rows of a list
const BEFORE = 8; // characters shown before a token
/** What the tab does, as the children of a sentence. Without a server, a datastore is of the visitor's own text only. */
const about = () => ["Inspect scores every token of a text: its probability under the decoder",
  h("span", { "data-needs": "memory" }, page.local ? " and the memory" : ", the memory"),
  page.local ? "" : h("span", { "data-needs": "knn" }, ", the datastore"),
  ", and each one's share of the mix", page.local ? "" : h("span", { "data-needs": "knn" }, "; and the datastore's documents"), ".",
  page.local ? " With a text of your own, also its datastore and documents." : ""];
const LEAST = 0.05; // nats of credit below which a token is neither gain nor loss
const ROWS = ["lm", "memory", "knn", "fused"];
/** @type {{ [source: string]: string }} */
const HEADS = { lm: "decoder", memory: "memory", knn: "datastore", fused: "mix" };
const H = 30;
const FLOOR = 1e-12; // keeps a log finite
const CAP = 14; // most nats drawn: one in a million

/** @type {(p: number | null | undefined) => number} */
const nll = (p) => -Math.log(Math.max(p ?? 0, FLOOR));

/** @typedef {{ path: SVGElement, cursor: SVGElement, plot: SVGElement, value: HTMLElement, root: HTMLElement }} Row */

/** Four nll curves over the tokens on one scale: decoder, memory, datastore, mix. */
class Lines {
  /** pick(index) is called for a clicked token. @param {(index: number) => void} pick */
  constructor(pick) {
    /** @type {Step[]} */
    this.steps = [];
    this.rows = Object.fromEntries(ROWS.map((source) => [source, this.#row(source, pick)]));
    this.root = h("div", { class: "lines" }, ROWS.map((source) => this.rows[source].root));
  }

  /** @param {string} source @param {(index: number) => void} pick @returns {Row} */
  #row(source, pick) {
    const path = svg("path", { class: "nll-line", "vector-effect": "non-scaling-stroke" });
    const cursor = svg("line", { class: "nll-cursor", y1: 0, y2: H, "vector-effect": "non-scaling-stroke" });
    const plot = svg("svg", { class: "nll", role: "img", preserveAspectRatio: "none",
      on: { click: (event) => {
        const box = plot.getBoundingClientRect();
        const at = Math.floor(((event.clientX - box.left) / box.width) * this.steps.length);
        if (this.steps[at]) pick(at);
      } } }, path, cursor);
    const value = h("span", { class: "nll-value" });
    return { path, cursor, plot, value, root: h("div", { class: "nll-row", "data-source": source },
      h("span", { class: "nll-name" }, HEADS[source]), plot, value) };
  }

  /** @param {Step[]} steps @param {string} system @param {Lambda} lambda */
  draw(steps, system, lambda) {
    this.steps = steps;
    /** @type {(step: Step, source: string) => number | null | undefined} */
    const p = (step, source) =>
      (source === "fused" ? mix(step.p, system, lambdaAt(step, lambda)) : step.p[source]);
    for (const source of ROWS) {
      const present = source === "fused" || hasSource(steps, source);
      this.rows[source].root.hidden = !present;
      if (present) this.#line(this.rows[source], HEADS[source], steps.map((s) => nll(p(s, source))));
    }
  }

  /** @param {Row} row @param {string} name @param {number[]} values */
  #line(row, name, values) {
    /** @type {(v: number) => string} */
    const y = (v) => (H - 2 - (Math.min(v, CAP) / CAP) * (H - 4)).toFixed(1);
    const parts = values.map((v, i) => `${i ? "L" : "M"}${i} ${y(v)}L${i + 1} ${y(v)}`);
    row.plot.setAttribute("viewBox", `0 0 ${values.length} ${H}`);
    row.path.setAttribute("d", parts.join(""));
    const mean = values.reduce((sum, v) => sum + v, 0) / values.length;
    const none = values.filter((v) => v >= nll(0)).length;
    setText(row.value, none ? `no probability for ${none} of ${values.length}`
      : `${mean.toFixed(2)} nats · ppl ${short(Math.exp(mean))}`);
    row.plot.setAttribute("aria-label",
      `${name}: negative log-likelihood of ${values.length} tokens, ${row.value.textContent}`);
  }

  /** Marks the selected token, -1 for none. @param {number} index */
  mark(index) {
    for (const { cursor } of Object.values(this.rows)) {
      cursor.style.display = index < 0 ? "none" : "";
      cursor.setAttribute("x1", String(index + 0.5));
      cursor.setAttribute("x2", String(index + 0.5));
    }
  }
}

/** A list's kind. @typedef {"gains" | "losses" | "documents"} Kind */
/** A token that the source moved; credit in nats.
 * @typedef {{ step: Step, i: number, credit: number }} Moved */

/** @type {Kind[]} */
const KINDS = ["gains", "losses", "documents"];
/** @type {{ [kind in Kind]: string }} */
const TITLES = { gains: "Biggest gains", losses: "Biggest losses", documents: "Documents by weight" };

class Inspect {
  /** example is a text that is offered while the view is empty, "" for none; chat tells that it has control tokens.
   * @param {HTMLElement} host @param {string} example @param {boolean} chat */
  constructor(host, example, chat) {
    /** @type {Trace | null} */
    this.trace = null;
    /** Each source's own lambda. @type {{ [source: string]: number }} */
    this.lambdas = {};
    /** The best lambda and its perplexity. @type {[number, number]} */
    this.optimum = [0, NaN];
    this.sources = ["memory", "knn"].map((source) => h("button", { type: "button",
      class: "group-button", "data-source": source, "aria-pressed": "false",
      on: { click: () => this.mixWith(source) } }, `mix with ${nameOf(source).source}`));
    this.sentence = h("p", { class: "inspect-sentence" });
    this.search = h("p", { class: "inspect-search", role: "status" });
    this.best = h("button", { type: "button", class: "pane-tool", on: { click: () => this.#go() } });
    const inner = h("div", { class: "view-host" });
    this.head = h("div", { class: "inspect-head", hidden: true },
      h("div", { class: "groups", role: "group", "aria-label": "Source mixed with the decoder" }, this.sources),
      this.sentence, this.search, this.best);
    this.lines = new Lines((i) => this.#pick(i));
    this.lists = KINDS.map((kind) => this.#list(kind));
    /** The key of each list's content. @type {Map<Kind, string>} */
    this.listed = new Map();
    this.more = h("div", { class: "inspect-more", hidden: true },
      h("section", null, h("h3", null, "Negative log-likelihood of every token"), this.lines.root),
      h("div", { class: "inspect-lists" }, this.lists.map((list) => list.root)));
    this.bar = h("i");
    this.progress = h("div", { class: "own-bar", hidden: true }, this.bar);
    this.empty = h("div", { class: "inspect-empty" }, h("p", null, about()), example
      ? h("button", { type: "button", class: "pane-tool", on: { click: () => inspectText(example, chat) } },
        "Inspect an example") : null);
    host.replaceChildren(this.progress, this.head, this.empty, inner);
    this.view = new TokenView(inner, { prefix: "inspect-pane-", systems: [], follows: true });
    inside(inner, ".legend").replaceWith(inspectLegend());
    inner.append(this.more); // beside the drawer where that is high
    page.on("lambda", () => this.repaint());
    page.on("view", (view) => { if (view === this.view) this.#mark(); });
    page.on("cite", (view) => { if (view === this.view) this.#cited(); });
    page.on("stopped", (view) => { if (view === this.view) this.#reset(); });
  }

  /** @param {Kind} kind */
  #list(kind) {
    const body = h("ol", { class: "inspect-list", "data-kind": kind });
    return { body, root: h("section", null, h("h3", null, TITLES[kind]), body) };
  }

  /** @param {Inspected | null} value */
  receive(value) {
    if (!value) return;
    if (value.kind === "begin" && this.view.halted) return;
    if (value.kind === "progress") {
      if (value.run !== this.view.run) return;
      this.progress.hidden = false;
      this.bar.style.width = `${(100 * value.done) / value.total}%`;
      this.#tell(`${value.done} of ${value.total} tokens`);
      return;
    }
    this.progress.hidden = value.kind !== "begin" && value.kind !== "early";
    if (value.kind === "begin") this.#hide();
    if ((value.kind === "done" || value.kind === "early") && value.run === this.view.run) {
      this.lambdas = value.lmbdas ?? {};
      [this.trace] = Object.values(value.traces);
      if (value.kind === "done") this.view.setRunning(false);
      this.mixWith(this.trace.system);
      this.#tell(value.kind === "early" ? "the datastore searches" : "");
    } else if (value.kind !== "early") {
      this.view.receive(value);
      if (value.kind === "message") this.#reset();
    }
  }

  /** Tells how far a run is: in the sentence's row where there is one, so that nothing moves. @param {string} text */
  #tell(text) {
    if (this.head.hidden) this.view.head.mark(text, "progress");
    else setText(this.search, text);
  }

  /** Resets the view after a run without a result. */
  #reset() {
    this.progress.hidden = true;
    setText(this.search, "");
    this.empty.hidden = this.trace !== null;
  }

  #hide() {
    this.trace = null;
    this.empty.hidden = true;
    this.bar.style.width = "0";
    this.head.hidden = true;
    this.more.hidden = true;
  }

  /** Shows the text as a mix of the decoder with another source, without a request.
   * @param {string} source */
  mixWith(source) {
    if (!this.trace) return;
    const chosen = this.view.chosen?.index;
    this.trace = { ...this.trace, system: source, lmbda: this.lambdas[source] ?? this.trace.lmbda };
    this.view.restart({ [source]: this.trace });
    this.view.chosen = { system: source, index: chosen ?? 0 }; // prevents opening the drawer
    this.view.complete({ [source]: this.trace });
    this.view.finished = null;
    this.view.replay.offer();
    this.view.chosen = null;
    this.view.head.mark("", "done");
    for (const button of this.sources) {
      button.hidden = source === "lm" || !(String(button.dataset.source) in this.lambdas);
      button.setAttribute("aria-pressed", String(button.dataset.source === source));
    }
    this.optimum = optimum(curveOf(this.trace.steps, source, 100));
    this.head.hidden = false;
    this.more.hidden = false;
    this.#documents();
    this.repaint();
    if (chosen !== undefined) this.#pick(chosen, "page");
    else this.#mark();
  }

  repaint() {
    if (!this.trace) return;
    const { steps, system } = this.trace;
    const lambda = lambdaOf(this.trace);
    this.lines.draw(steps, system, lambda);
    const flips = flipsOf(this.trace, lambda).filter((flip) => flip !== null).length;
    const alone = perplexity(steps, system, 0);
    const mixed = perplexity(steps, system, lambda);
    const [target, least] = this.optimum;
    this.best.hidden = system === "lm";
    if (system === "lm") setText(this.sentence, `Perplexity of the decoder, alone: ${short(alone)}.`);
    else setText(this.sentence, `Perplexity: decoder ${short(alone)}, mix ` +
      `${short(mixed)} at λ ${lambdaText(lambda)}, lowest ${short(least)} at λ ` +
      `${lambdaText(target)}. At ${flips} of ${steps.length} tokens the mix's first choice ` +
      "differs from the decoder's (keys n and p).");
    setText(this.best, `Set λ to ${lambdaText(target)}`);
    this.#moves(this.trace, lambda);
  }

  /** Fills the lists of the tokens that the source raised and lowered most at lambda.
   * @param {Trace} trace @param {Lambda} lambda */
  #moves({ steps, system }, lambda) {
    const moved = steps.map((step, i) => ({ step, i, credit: creditOf(step, system, lambda) }))
      .sort((a, b) => b.credit - a.credit);
    /** @type {[Kind, Moved[]][]} */
    const lists = [
      ["gains", moved.filter((m) => m.credit > LEAST).slice(0, SHOWN)],
      ["losses", moved.filter((m) => m.credit < -LEAST).reverse().slice(0, SHOWN)],
    ];
    for (const [kind, list] of lists) {
      const key = `${system}${list.map((m) => `${m.i}:${m.credit.toFixed(2)}`)}`;
      if (this.listed.get(kind) === key) continue;
      this.listed.set(kind, key);
      const body = this.#body(kind);
      body.replaceChildren(...list.map((m) => this.#move(m, steps, system, lambda)));
      if (!list.length) body.append(h("li", { class: "none" }, "none at this λ"));
    }
  }

  /** @param {Kind} kind @returns {HTMLElement} */
  #body(kind) {
    return this.lists[KINDS.indexOf(kind)].body;
  }

  /** @param {Moved} moved @param {Step[]} steps @param {string} system @param {Lambda} lambda */
  #move({ step, i, credit }, steps, system, lambda) {
    const mixed = mix(step.p, system, lambdaAt(step, lambda));
    return h("li", null, h("button", { type: "button", class: "jump", "data-index": i,
      on: { click: () => this.#pick(i) } },
    h("span", { class: "jump-word", dir: "auto" }, this.#before(steps, i), h("b", null, glyph(step.s))),
    h("span", null, `${percent(step.p.lm)} → ${percent(mixed)} %`),
    h("b", null, `${credit > 0 ? "▲ +" : "▼ −"}${Math.abs(credit).toFixed(2)} nats`)));
  }

  /** The end of the text before a token, as context.
   * @param {Step[]} steps @param {number} i */
  #before(steps, i) {
    const text = steps.slice(Math.max(0, i - BEFORE), i).map((step) => step.s).join("");
    return text.length > BEFORE ? `…${glyph(text.slice(-BEFORE))}` : glyph(text).replace("∅", "");
  }

  #documents() {
    const body = this.#body("documents");
    const found = documentsOf(this.trace?.steps ?? []);
    body.replaceChildren(...found.slice(0, SHOWN).map((one) => h("li", null,
      h("button", { type: "button", class: "jump", "aria-pressed": "false", "data-title": one.title,
        on: { click: () => this.view.cite(one.title) } },
      h("span", { class: "jump-word", dir: "auto" }, one.title, GROUPS[one.group] ? h("small", null, GROUPS[one.group]) : null),
      h("span"),
      h("b", null, `${one.count} ${one.count === 1 ? "token" : "tokens"}`)))));
    if (!found.length) body.append(h("li", { class: "none" }, "no datastore"));
  }

  #cited() {
    for (const button of this.#body("documents").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.title === this.view.cited));
    }
  }

  /** @param {number} index @param {How} [how] */
  #pick(index, how = "pointer") {
    if (this.trace) this.view.select(this.trace.system, index, how);
  }

  #mark() {
    this.lines.mark(this.view.chosen ? this.view.chosen.index : -1);
  }

  #go() {
    page.bar?.set(this.optimum[0]);
  }
}

/** @type {(move: string, share: string, text: string) => HTMLElement} */
const sample = (move, share, text) => h("span", { class: "legend-item" },
  h("span", { class: "strip", "data-system": "memory", "aria-hidden": "true" },
    h("span", { class: "sample", "data-move": move, style: { "--w": "0.6", "--share": share } }, "word")),
  text);

/** The legend of tint, lines and marks of a scored text. */
const inspectLegend = () => h("div", { class: "legend", role: "note", "aria-label": "Legend" },
  sample("same", "0.9", "tint: the source's share of the probability"),
  sample("up", "0", "it helps"), sample("down", "0", "it hurts"));

/** @type {(element: Element, props: Props<Packed, { example: string, chat?: boolean }>, watch: Watch) => void} */
export const mountInspect = (element, props, watch) => {
  const inspect = new Inspect(inside(element, ".inspect-host"), props.example, Boolean(props.chat));
  watch("value", () => inspect.receive(unpack(props.value)));
};

/** Opens a text on the Inspect tab and scores it, with its control tokens parsed if it is `special`.
 * @type {(original: string, special: boolean, ids?: number[]) => void} */
export const inspectText = (original, special, ids = []) => {
  const text = original.replace(/\r\n?/g, "\n"); // as a text box normalizes it
  page.brought = { text, ids };
  tabNamed("Inspect")?.click();
  /** Retries until the tab's box exists, which Gradio creates when it is opened. @param {number} tries */
  const fill = (tries) => {
    const area = document.querySelector("#inspect-text textarea");
    const taken = area instanceof HTMLTextAreaElement && area.value === text;
    if (area instanceof HTMLTextAreaElement) write(area, text);
    const hidden = document.querySelector("#inspect-brought textarea");
    if (hidden instanceof HTMLTextAreaElement) write(hidden, JSON.stringify(page.brought));
    const parses = document.querySelector("#inspect-special input");
    if (parses instanceof HTMLInputElement && parses.checked !== special) parses.click();
    if (taken) window.setTimeout(() => document.getElementById("inspect-score")?.click(), 80);
    else if (tries) window.setTimeout(() => fill(tries - 1), 50);
  };
  fill(200);
};

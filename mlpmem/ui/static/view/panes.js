// @ts-check
/* One column: its system, tokens, notes on changes, and cost. */
/** @import { How, Opening, Shown, Step } from "../core/types.js" */
import { h, quote, setText } from "../core/dom.js";
import { firstDifference, givenOf, isRight, isScored } from "../core/mix.js";
import { term } from "../core/glossary.js";
import { CAPTIONS, RECORDS, kindOf, lambdaOf, nameOf, page } from "../core/state.js";
import { CostRow, costOf } from "./cost.js";
import { TokenStrip } from "./tokens.js";

const SEPARATOR = "¶"; // between passages, and before the prompt

/** The passages before the question in a trace's prompt. An old run does not store the question;
 * there it is the last text. @type {(trace: Shown) => string[]} */
const passagesOf = ({ prompt = "", settings }) => {
  /** @type {(text: string) => string[]} */
  const texts = (text) => text.split(SEPARATOR).map((one) => one.trim()).filter((one) => one);
  const asked = settings?.asked;
  if (typeof asked !== "string" || !prompt.endsWith(asked)) return texts(prompt).slice(0, -1);
  return texts(prompt.slice(0, prompt.length - asked.length));
};

/** The retrieved passages before a column's prompt, in a collapsible box. */
class PassageNote {
  constructor() {
    this.summary = h("summary", null, "Before the prompt");
    this.list = h("div");
    this.root = h("details", { class: "pane-read", hidden: true }, this.summary, this.list);
  }

  /** Shows a trace's passages; null hides the box. @param {Shown | null} trace */
  show(trace) {
    this.root.hidden = !trace;
    if (!trace) return;
    const found = passagesOf(trace);
    setText(this.summary, found.length ? "Before the prompt:" : "No passage was found, or none fitted.");
    this.list.replaceChildren(...found.map((text) => h("p", { dir: "auto" }, text)));
    this.root.open = found.length > 0;
  }
}

/** @type {(system: string, move: string, text: string) => HTMLElement} */
const sample = (system, move, text) => h("span", { class: "legend-item", "data-needs": move === "up" ? system : null },
  h("span", { class: "strip", "data-system": system, "aria-hidden": "true" },
    h("span", { class: "sample", "data-move": move, style: { "--w": "0.8" } }, "word")), text);

/** @type {(sign: string, text: string) => HTMLElement} */
const mark = (sign, text) => h("span", { class: "legend-item" },
  h("b", { "aria-hidden": "true" }, sign), text);

/** The legend of colours, lines and marks below the panes. */
export const legend = () => h("div", { class: "legend", role: "note", "aria-label": "Legend" },
  sample("memory", "up", "raised by the memory"),
  sample("knn", "up", "raised by the datastore"),
  sample("memory", "down", "lowered"),
  term(mark("◆", "first word that differs from the decoder's"), "differs"),
  term(mark("⚑", "another word would be written at this λ"), "flips"),
  h("span", { class: "legend-item", "data-for": "scrub" },
    h("span", { class: "over", "aria-hidden": "true" }, "word"), "changed by scrubbing λ"));

const RECORD = "Accuracy, measured in held-out wordings. New: facts that the decoder never saw. Known: facts " +
  "that only the decoder was trained on. Mixed at the column's own lambda or the router's. See Results.";

/** A system's accuracy on [new, known] facts, as a line's children.
 * @type {(shares: [number, number] | undefined) => (string | HTMLElement)[]} */
const measured = (shares) => {
  if (!shares) return [];
  const [fresh, known] = shares.map((share) => h("b", null, `${Math.round(100 * share)}\u00a0%`));
  return ["Right on ", term(h("span", null, "new facts "), "fresh"), fresh, ", on ",
    term(h("span", null, "known facts "), "known"), known];
};

export class Pane {
  /** id is the element's id; pick(system, index, how) is called for a selected token, inspect(trace) by the button.
   * @param {string} system @param {string} id @param {(system: string, index: number, how: How) => void} pick
   * @param {(trace: Shown) => void} inspect */
  constructor(system, id, pick, inspect) {
    this.system = system;
    /** @type {Shown | null} */
    this.trace = null;
    /** @type {string[]} */
    this.answers = []; // the right answer and its aliases, [] if unknown
    this.reason = ""; // why the column is empty, if the run says so
    this.strip = new TokenStrip(system, (index, how) => pick(system, index, how));
    this.verdict = h("span", { class: "verdict" });
    this.note = h("p", { class: "pane-note" });
    this.empty = h("p", { class: "pane-empty" });
    /** The first token of a scored text, which has no probability because nothing precedes it. */
    this.unscored = h("span", { class: "unscored", dir: "auto", title: "Nothing precedes the first token, so it has no probability" });
    this.caption = h("p", { class: "pane-caption" }, CAPTIONS[system] || "");
    this.record = h("p", { class: "pane-record", title: RECORD });
    this.read = new PassageNote();
    this.cost = new CostRow();
    this.inspect = h("button", { type: "button", class: "pane-tool", hidden: true,
      "aria-label": `Inspect, ${nameOf(system).title}`,
      on: { click: () => { if (this.trace) inspect(this.trace); } } }, "Inspect");
    this.tools = h("div", { class: "pane-tools" }, this.inspect);
    const title = h("h2", { class: "pane-title" },
      h("span", { class: "swatch", "data-source": system, "aria-hidden": "true" }),
      h("span", null, nameOf(system).title), this.verdict);
    this.root = h("section", { id, class: "pane", "data-system": system,
      "data-hue": kindOf(system), "aria-label": nameOf(system).title },
    title, this.caption, this.record, this.read.root,
    h("div", { class: "pane-body" }, this.empty, this.unscored, this.strip.root), this.note, this.tools,
    this.cost.root);
  }

  /** Shows the system's accuracy with its present kind of lambda: a router's, or its own. */
  #recall() {
    const known = RECORDS[this.system] || {};
    const auto = this.trace ? this.trace.lmbda === "auto" : page.status.routed;
    const key = auto && known.auto ? "auto" : "own";
    if (key !== this.record.dataset.key) this.record.replaceChildren(...measured(known[key]));
    this.record.dataset.key = key;
  }

  /** Clears the column for a new trace; its steps are appended as they arrive.
   * @param {Opening | null} trace @param {string[]} [answers] */
  reset(trace, answers = []) {
    this.trace = trace ? { ...trace, steps: [] } : null;
    this.#recall();
    this.answers = answers;
    this.strip.clear();
    this.root.dataset.state = trace ? "waiting" : "empty";
    this.inspect.hidden = true;
    this.reason = "";
    this.read.show(null);
    setText(this.empty, "");
    setText(this.note, "");
    this.#judge(false);
    this.root.dataset.priced = "no"; // the last run's cost stays, faint, so that nothing jumps
  }

  /** Shows why this column is empty. @param {string} text */
  explain(text) {
    this.#recall();
    setText(this.empty, text);
  }

  /** Clears the column and shows the run's reason. @param {string} text @param {string} state */
  hold(text, state) {
    this.reset(null);
    this.reason = text;
    this.root.dataset.state = state;
    this.explain(text);
  }

  /** Sets the caption; "" is the default. It is shown without the details too if it is `urgent`.
   * @param {string} text @param {boolean} [urgent] */
  describe(text, urgent = false) {
    this.root.toggleAttribute("data-urgent", urgent);
    setText(this.caption, text || CAPTIONS[this.system] || "");
    this.record.hidden = Boolean(text); // measured with the page's own corpus
  }

  /** @param {Step[]} steps */
  append(steps) {
    if (!this.trace || !steps.length) return;
    this.trace.steps.push(...steps);
    this.strip.append(steps);
    this.root.dataset.state = "running";
  }

  /** Shows the complete `trace` of a finished generation in place of the partial one.
   * @param {Shown} trace @param {import("./cost.js").Scale} scale */
  finish(trace, scale) {
    const have = this.trace ? this.trace.steps.length : 0;
    if (!this.trace || have > trace.steps.length) {
      this.strip.clear();
      this.strip.append(trace.steps);
    } else {
      this.strip.append(trace.steps.slice(have));
    }
    this.trace = { ...trace };
    this.#recall();
    setText(this.empty, "");
    setText(this.unscored, isScored(trace) ? trace.prompt ?? "" : "");
    if (trace.finish === "eos") this.strip.markEnd();
    this.root.dataset.state = "done";
    const base = ["", "mixed"].includes(kindOf(this.system)); // columns that Inspect supports
    this.inspect.hidden = !base || !page.inspect || isScored(trace);
    if (kindOf(this.system) === "rag") this.read.show(trace);
    this.#judge(true);
    this.price(scale);
  }

  /** Shows the finished text's cost. @param {import("./cost.js").Scale} scale */
  price(scale) {
    if (!this.trace?.cost) return;
    this.root.dataset.priced = "yes";
    this.cost.render(costOf(this.trace, kindOf(this.system) === "tuned" ? null : scale.decoder), scale);
  }

  /** Replaces the text by another whole one; their common beginning stays on screen.
   * @param {Shown} trace */
  show(trace) {
    if (!this.trace) return;
    const at = firstDifference(this.trace.steps, trace.steps);
    const same = at < 0 ? Math.min(this.strip.nodes.length, trace.steps.length) : at;
    this.strip.cut(same);
    this.strip.append(trace.steps.slice(same));
    this.trace = trace;
    this.#recall();
    if (trace.finish === "eos") this.strip.markEnd();
    this.root.dataset.state = trace.finish ? "done" : "stopped";
    this.#judge(Boolean(trace.finish));
  }

  /** Marks an unfinished answer as stopped. */
  interrupt() {
    const { dataset } = this.root;
    if (dataset.state !== "waiting" && dataset.state !== "running") return;
    if (this.trace) dataset.state = "stopped";
    else this.hold("Stopped before this column ran.", "stopped");
  }

  /** @param {boolean} done */
  #judge(done) {
    const text = this.trace?.text || "";
    const known = done && this.answers.length > 0 && this.trace !== null;
    const right = known && this.answers.some((a) => isRight(text, a));
    this.verdict.dataset.right = known ? String(right) : "";
    setText(this.verdict, known ? (right ? "✓ right" : "✗ wrong") : "");
  }

  /** Repaints for the page's lambda; `base` is the decoder's own trace, if it is on screen.
   * @param {Shown | null} base */
  repaint(base) {
    if (!this.trace) return;
    const lambda = lambdaOf(this.trace);
    const differs = base && base !== this.trace
      ? firstDifference(base.steps, this.trace.steps) : -1;
    const flip = this.strip.repaint(this.trace, lambda, differs);
    this.root.dataset.flipped = flip ? "yes" : "no";
    this.#remark(this.trace, base, differs, flip);
  }

  /** @param {Shown} trace @param {Shown | null} base @param {number} differs
   * @param {ReturnType<TokenStrip["repaint"]>} flip */
  #remark(trace, base, differs, flip) {
    const given = givenOf(trace);
    if (isScored(trace)) {
      setText(this.note, "");
    } else if (given && !flip && trace.steps.length >= given) {
      setText(this.note, `↳ You chose ${quote(trace.steps[given - 1].s)} at token ${given}; ` +
        "the text continues from there.");
    } else if (flip) {
      const step = trace.steps[flip.index];
      setText(this.note, `⚑ Text valid up to here: now ${quote(flip.row[1])}, ` +
        `not ${quote(step.s)}.`);
    } else if (base && base !== trace && trace.steps.length) {
      setText(this.note, differs < 0 ? "Same as the decoder."
        : `◆ Differs from the decoder at token ${differs + 1}.`);
    } else {
      setText(this.note, "");
    }
  }
}

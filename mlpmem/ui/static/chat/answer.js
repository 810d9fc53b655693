// @ts-check
/* One answer on screen: its words, its versions, why it ended, and what can be done with it. */
/** @import { Answer } from "./types.js" */
/** @import { How, Shown, Step } from "../core/types.js" */
import { h, quote, setText } from "../core/dom.js";
import { firstDifference, givenOf, isRight } from "../core/mix.js";
import { lambdaOf, nameOf, page } from "../core/state.js";
import { rateOf } from "../view/cost.js";
import { copyButton } from "./copy.js";
import { Prose } from "./text/prose.js";
import { facts } from "./settings.js";
import { textOf } from "./text/slices.js";

/** What a visitor does with an answer. `write(index, id)` takes another word there; `turn(by)` shows another version.
 * @typedef {{ pick: (pane: AnswerPane, index: number, how: How) => void, again: (pane: AnswerPane) => void, more: (pane: AnswerPane) => void,
 *   write: (pane: AnswerPane, index: number, id: number) => void, turn: (pane: AnswerPane, by: number) => void }} Acts */

/** @type {(count: number, noun: string) => string} */
const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

/** Why an answer ended, as a sentence; "" if it is complete. @type {(answer: Answer) => string} */
const endingOf = ({ trace, state, asked, read, room }) => {
  if (state === "stopped" || trace.finish === "stop") return "Stopped.";
  if (trace.finish === "stop_string") return "Ended at a stop text.";
  if (trace.finish !== "length") return "";
  if (room && read + trace.steps.length >= room) return "The context is full, so the answer is cut.";
  const most = facts()?.most ?? Number.POSITIVE_INFINITY;
  if (trace.steps.length >= most) return `Cut at ${counted(most, "token")}, the most here.`;
  return `Cut at ${counted(trace.steps.length, "token")}${asked.longest ? ", the longest answer" : ""}.`;
};

export class AnswerPane {
  /** @param {string} system @param {Acts} on */
  constructor(system, on) {
    this.system = system;
    this.on = on;
    /** @type {Answer | null} */
    this.answer = null;
    this.strip = new Prose(system, (index, how) => on.pick(this, index, how));
    const { title } = nameOf(system);
    this.verdict = h("span", { class: "verdict" });
    this.note = h("p", { class: "answer-note" });
    this.ending = h("span", { class: "ending" });
    this.error = h("p", { class: "answer-error", role: "alert", hidden: true });
    this.pager = new Pager(`version of the answer, ${title}`, (by) => on.turn(this, by));
    this.copy = copyButton(`Copy the answer, ${title}`, () => (this.trace ? textOf(this.trace).trim() : ""));
    this.again = h("button", { type: "button", class: "chat-tool", "aria-label": `Regenerate the answer, ${title}`,
      on: { click: () => on.again(this) } }, "Regenerate");
    this.more = h("button", { type: "button", class: "chat-tool more-button", "aria-label": `Continue the answer, ${title}`, hidden: true,
      on: { click: () => on.more(this) } }, "Continue");
    this.flip = h("button", { type: "button", class: "small-button flip", hidden: true });
    this.numbers = h("span", { class: "answer-numbers" });
    this.root = h("div", { class: "answer", role: "group", "data-system": system, "aria-label": title, "data-state": "waiting" },
      h("header", { class: "who" }, h("span", { class: "swatch", "data-source": system, "aria-hidden": "true" }), h("span", null, title), this.verdict),
      this.note, this.strip.root, this.error, this.flip,
      h("div", { class: "answer-foot" }, h("span", { class: "answer-end" }, this.ending, this.more),
        h("span", { class: "answer-tools" }, this.pager.root, this.copy, this.again), this.numbers));
  }

  get trace() {
    return this.answer?.trace ?? null;
  }

  /** Shows a version of the answer. @param {Answer} answer @param {number} at @param {number} count of versions */
  show(answer, at, count) {
    const other = this.answer?.id !== answer.id;
    this.answer = answer;
    if (other) {
      this.strip.select(-1);
      this.strip.clear();
    }
    this.pager.show(at, count);
    this.refresh();
  }

  /** Whether tokens are being written. */
  get growing() {
    return this.answer?.state === "waiting" || this.answer?.state === "running";
  }

  /** @param {Step[]} steps */
  append(steps) {
    if (!this.answer || !steps.length) return;
    this.answer.trace.steps.push(...steps);
    this.answer.state = "running";
    this.refresh();
  }

  /** Paints the answer's present state. */
  refresh() {
    const { answer } = this;
    if (!answer) return;
    const { state, trace, error } = answer;
    this.root.dataset.state = state;
    this.root.dataset.model = this.isForeign ? "other" : "";
    this.strip.write(trace, this.growing);
    const empty = state === "done" && !textOf(trace).trim();
    this.root.toggleAttribute("data-silent", empty);
    setText(this.error, error);
    this.error.hidden = !error;
    setText(this.ending, this.growing ? "" : empty ? "It ended without a text." : endingOf(answer));
    const canGoOn = ["length", "stop", "stop_string"].includes(trace.finish ?? "") || state === "stopped";
    this.more.hidden = this.growing || !canGoOn || !trace.steps.length || this.isForeign;
    this.copy.hidden = this.growing || !trace.steps.length;
    this.again.hidden = this.growing;
    const rate = state === "done" && trace.steps.length > 2 ? rateOf(trace) : "";
    setText(this.numbers, state === "waiting" || !trace.steps.length ? "" : `${counted(trace.steps.length, "token")}${rate && ` · ${rate}`}`);
  }

  /** Whether another model wrote it, whose tokens this one cannot continue. */
  get isForeign() {
    const own = facts()?.tokenizer;
    const hash = this.trace?.model?.tokenizer_hash;
    return Boolean(own && hash && own !== hash);
  }

  /** Notes what is to be known of the answer. @param {string} text @param {string[]} right the right answer and its aliases */
  remark(text, right) {
    const known = right.length > 0 && this.answer?.state === "done";
    const isGood = known && right.some((one) => isRight(textOf(/** @type {Shown} */ (this.trace)), one));
    setText(this.note, [text, known && !isGood ? `The right answer is ${quote(right[0])}.` : ""].filter(Boolean).join(" "));
    this.verdict.dataset.right = known ? String(isGood) : "";
    setText(this.verdict, known ? (isGood ? "✓ right" : "✗ wrong") : "");
  }

  /** How the answer differs from the system's own choice, as a note. */
  get begun() {
    const step = this.trace?.steps[(this.trace ? givenOf(this.trace) : 0) - 1];
    if (!step || !this.answer?.how) return "";
    return this.answer.how === "word" ? `You chose ${quote(step.s)}, and it wrote on from there.` : `Begun with ${quote(step.s)} this time.`;
  }

  /** @param {boolean} tinted @param {Shown | null} base the decoder's own answer, if it stands beside it */
  repaint(tinted, base) {
    this.strip.tint(tinted);
    const { trace } = this;
    if (!trace?.steps.length) return;
    const differs = base && base !== trace ? firstDifference(base.steps, trace.steps) : -1;
    const flip = this.strip.repaint(trace, lambdaOf(trace), differs);
    const isOffered = Boolean(flip && !this.growing && page.lambda !== null && !this.isForeign);
    this.flip.hidden = !isOffered;
    if (!flip || !isOffered) return;
    setText(this.flip, `At this λ it would say ${quote(flip.row[1])}, not ${quote(trace.steps[flip.index].s)}: write on from there`);
    this.flip.onclick = () => this.on.write(this, flip.index, flip.row[0]);
  }
}

/** "‹ 1/3 ›" through versions; nothing for a single one. */
export class Pager {
  /** @param {string} what @param {(by: number) => void} turn */
  constructor(what, turn) {
    /** @type {(label: string, sign: string, by: number) => HTMLButtonElement} */
    const button = (label, sign, by) => h("button", { type: "button", class: "chat-tool page-button", "aria-label": `${label} ${what}`,
      on: { click: () => turn(by) } }, sign);
    this.back = button("Previous", "‹", -1);
    this.forth = button("Next", "›", 1);
    this.text = h("span", { class: "pager-text" });
    this.root = h("span", { class: "pager", hidden: true }, this.back, this.text, this.forth);
  }

  /** @param {number} at @param {number} count */
  show(at, count) {
    this.root.hidden = count < 2;
    setText(this.text, `${at + 1}/${count}`);
    this.back.disabled = at === 0;
    this.forth.disabled = at === count - 1;
  }
}

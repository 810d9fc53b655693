// @ts-check
/* Which characters of an answer belong to which token: whole characters only, at every moment. Pure functions. */
/** @import { Shown, Step } from "../../core/types.js" */

const PARTIAL = "\uFFFD"; // the text of a token whose character is not whole yet
const SIMPLE = /^[\s -\u02FF\u2010-\u2027]*$/; // one character each
const segmenter = new Intl.Segmenter(undefined, { granularity: "grapheme" });

/** A token's part of the text; "" while its character is incomplete, and for the end token.
 * @type {(step: Step, ends: boolean) => string} */
const partOf = (step, ends) => (ends || step.s === PARTIAL ? "" : step.s);

/** The text of an answer as its tokens spell it. @type {(trace: Shown) => string} */
const spelled = (trace) => trace.steps.map((step, i) => partOf(step, isEnd(trace, i))).join("");

/** Whether a token is the one that ended the answer. @type {(trace: Shown, i: number) => boolean} */
export const isEnd = (trace, i) => trace.finish === "eos" && i === trace.steps.length - 1;

/** What an answer says in the next prompt: the engine's text, or that of its tokens if it was stopped.
 * @type {(trace: Shown) => string} */
export const textOf = (trace) => (trace.finish && trace.finish !== "stop" && typeof trace.text === "string" ? trace.text : spelled(trace));

/** The text on screen, and where each token begins in it. A character of several tokens belongs to the one that completes
 * its bytes, a joined or combined one to its first; while an answer is written, a last character that may still grow is held back.
 * @param {Shown} trace @param {boolean} growing @returns {{ text: string, starts: number[] }} */
export function slicesOf(trace, growing) {
  /** @type {number[]} */
  const starts = [];
  let text = "";
  trace.steps.forEach((step, i) => {
    starts.push(text.length);
    text += partOf(step, isEnd(trace, i));
  });
  if (SIMPLE.test(text)) return { text, starts };
  if (growing) text = text.slice(0, text.length - heldBack(text));
  /** @type {number[]} */
  const whole = [];
  let next = 0;
  for (const { index, segment } of segmenter.segment(text)) {
    const end = index + segment.length;
    for (; next < starts.length && starts[next] < end; next += 1) whole.push(starts[next] > index ? end : starts[next]);
  }
  while (whole.length < starts.length) whole.push(text.length);
  return { text, starts: whole };
}

/** How many units at the end belong to a character that the next token may complete: a joined emoji, half a flag.
 * @param {string} text */
function heldBack(text) {
  const joined = /[^\u200D]*\u200D$/u.exec(text.slice(-24));
  if (joined) {
    const last = [...segmenter.segment(text.slice(-24))].pop();
    return last?.segment.length ?? 0;
  }
  const flags = /[\u{1F1E6}-\u{1F1FF}]+$/u.exec(text);
  return flags && ([...flags[0]].length % 2) ? 2 : 0;
}

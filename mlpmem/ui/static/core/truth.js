// @ts-check
/* The right answer's own probability, where it is known: pure functions on plain values.
 *
 * The probability of an answer is the product over its tokens, each given those before it. A source's
 * numbers depend on the tokens only, so any text that begins with the answer has them. */
/** @import { Probs, Shown, Step } from "./types.js" */
import { firstDifference, isRight, lambdaAt, mayBe, mix } from "./mix.js";

/** An answer's tokens: probabilities by source, and of a text on screen also ids. @typedef {{ p: Probs, id?: number, s?: string }[]} Tokens */
/** @typedef {{ answer: string, tokens: Tokens }} Truth */
/** A probability; `bound` tells that it is at most so much. @typedef {{ p: number, bound: boolean }} Chance */

/** What ≤ means beside a probability. */
export const BOUND = "≤: at most. The router's λ is known along the answer that was written only.";

/** The first tokens of a text that spell one of the answers, null if it begins with none.
 * @type {(trace: Shown, answers: string[]) => { answer: string, tokens: Tokens } | null} */
const spelled = (trace, answers) => {
  let text = "";
  for (const [i, step] of trace.steps.entries()) {
    text += step.s;
    if (!answers.some((one) => mayBe(text, one))) return null;
    const answer = answers.find((one) => isRight(text, one));
    const next = trace.steps.slice(0, i + 2).map((one) => one.s).join("");
    // "Lima" is no answer within "Limassol"
    if (answer && (i + 1 === trace.steps.length || isRight(next, answer) || trace.finish === "eos")) {
      return { answer, tokens: trace.steps.slice(0, i + 1) };
    }
  }
  return null;
};

/** The right answer's tokens, from a text on screen or from `asked`, those that the server scored.
 * @type {(traces: Shown[], answers: string[], asked: Probs[] | null | undefined) => Truth | null} */
export const truthOf = (traces, answers, asked) => {
  if (!answers.length) return null;
  for (const trace of traces) {
    const found = spelled(trace, answers);
    if (found) return found;
  }
  return asked?.length ? { answer: answers[0], tokens: asked.map((p) => ({ p })) } : null;
};

/** The probability of all tokens when the decoder is mixed with `system`.
 * @type {(tokens: Tokens, system: string, lambda: number) => number} */
export const chanceOf = (tokens, system, lambda) => tokens.reduce((product, { p }) => product * mix(p, system, lambda), 1);

/** The probability of all tokens at the lambdas that a router chose along a text. A lambda depends on the words before its
 * token, so that the tokens after the two part are not counted, and the rest is a bound.
 * @type {(tokens: Tokens, along: Shown) => Chance} */
export const routedOf = (tokens, { steps, system }) => {
  const at = firstDifference(/** @type {Step[]} */ (tokens), steps);
  const known = Math.min(tokens.length, at < 0 ? steps.length : at + 1);
  const p = tokens.slice(0, known).reduce((product, token, i) => product * mix(token.p, system, lambdaAt(steps[i], "auto")), 1);
  return { p, bound: known < tokens.length };
};

/** [[lambda, probability], ...] on a grid of n + 1 points.
 * @type {(tokens: Tokens, system: string, n?: number) => [number, number][]} */
export const chancesOf = (tokens, system, n = 50) =>
  Array.from({ length: n + 1 }, (_, i) => [i / n, chanceOf(tokens, system, i / n)]);

/** The grid point with the highest probability; the smallest lambda of equal ones.
 * @type {(chances: [number, number][]) => [number, number]} */
export const highest = (chances) => chances.reduce((best, point) => (point[1] > best[1] ? point : best));

// @ts-check
/* The right answer's own probability, where it is known: pure functions on plain values.
 *
 * The probability of an answer is the product over its tokens, each given those before it. A source's
 * numbers depend on the tokens only, so any text that begins with the answer has them. */
/** @import { Lambda, Probs, Shown } from "./types.js" */
import { isRight, mayBe, mix } from "./mix.js";

/** An answer's tokens: probabilities by source, and a router's lambda where the text has one.
 * @typedef {{ p: Probs, lmbda?: number }[]} Tokens */
/** @typedef {{ answer: string, tokens: Tokens, system: string }} Truth */

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
    if (found) return { ...found, system: trace.system };
  }
  return asked?.length ? { answer: answers[0], tokens: asked.map((p) => ({ p })), system: "" } : null;
};

/** The probability of all tokens when the decoder is mixed with `system`; NaN for "auto" where another
 * text's tokens have no lambda of their own. @type {(tokens: Tokens, system: string, lambda: Lambda) => number} */
export const chanceOf = (tokens, system, lambda) => tokens.reduce((product, { p, lmbda }) =>
  product * mix(p, system, lambda === "auto" ? lmbda ?? NaN : lambda), 1);

/** [[lambda, probability], ...] on a grid of n + 1 points.
 * @type {(tokens: Tokens, system: string, n?: number) => [number, number][]} */
export const chancesOf = (tokens, system, n = 50) =>
  Array.from({ length: n + 1 }, (_, i) => [i / n, chanceOf(tokens, system, i / n)]);

/** The grid point with the highest probability; the smallest lambda of equal ones.
 * @type {(chances: [number, number][]) => [number, number]} */
export const highest = (chances) => chances.reduce((best, point) => (point[1] > best[1] ? point : best));

// @ts-check
/* What flows through the circuit at one token: pure functions on a trace's plain values, without DOM. */
/** @import { Candidate, Lambda, Neighbour, Shown, Source, Step } from "../core/types.js" */
import { percent, quote } from "../core/dom.js";
import { SOURCES, candidateOf, lambdaAt, mix, neighbourOf, partsOf } from "../core/mix.js";
import { chanceOf, routedOf } from "../core/truth.js";

const CARDS = 2; // neighbours that fly in
const RIVALS = 3; // candidates or answers whose bars race

/** A source's likeliest token. @typedef {{ id: number, text: string, p: number }} Saying */
/** One pipe: the source's probability of the token being written, its weight in the mix, and what
 * it says itself. p is null for a source without an answer.
 * @typedef {{ source: Source, p: number | null, weight: number, share: number, says: Saying | null }} Pipe */
/** A token or an answer that competes; `bound` tells that p is at most so much.
 * @typedef {{ text: string, p: number, written: boolean, bound?: boolean }} Rival */
/** @typedef {{ text: string, before: string, index: number, count: number, lambda: number, system: string,
 *   pipes: Pipe[], fused: number, cards: Neighbour[], rivals: Rival[], left: number | null }} Flow */

/** A source's likeliest candidate at a step, null if it has no answer.
 * @type {(step: Step, source: Source) => Saying | null} */
const says = (step, source) => {
  /** @type {Saying | null} */
  let best = null;
  for (const { id, text, p } of step.cand.map(candidateOf)) {
    const own = p[source];
    if (own !== null && own !== undefined && own > (best?.p ?? -1)) best = { id, text, p: own };
  }
  return best;
};

/** The weight of each source in a system's mix. @type {(system: string, lambda: number) => { [source: string]: number }} */
const weightsOf = (system, lambda) => {
  const parts = partsOf(system);
  if (!parts.length) return { lm: 1 };
  return { lm: 1 - lambda, ...Object.fromEntries(parts.map((part) => [part, lambda / parts.length])) };
};

/** The step's neighbours with the most weight, one per document.
 * @type {(step: Step) => Neighbour[]} */
const cardsOf = (step) => {
  const found = new Map();
  for (const neighbour of (step.nn || []).map(neighbourOf)) {
    if (!found.has(neighbour.title)) found.set(neighbour.title, neighbour);
  }
  return [...found.values()].slice(0, CARDS);
};

/** The step's candidates by descending mixed probability, each with `fused`.
 * @type {(step: Step, system: string, lambda: Lambda) => (Candidate & { fused: number })[]} */
const ranked = (step, system, lambda) =>
  step.cand
    .map((row) => {
      const c = candidateOf(row);
      return { ...c, fused: mix(c.p, system, lambdaAt(step, lambda)) };
    })
    .sort((a, b) => b.fused - a.fused || a.id - b.id);

/** The tokens that race, in an order that lambda does not change much: each source's likeliest first.
 * @type {(step: Step, system: string, lambda: number) => Rival[]} */
const tokensOf = (step, system, lambda) => {
  const rows = ranked(step, system, lambda);
  const wanted = [...["lm", ...partsOf(system)].map((source) =>
    says(step, /** @type {Source} */ (source))?.id), step.id, ...rows.map((row) => row.id)];
  const ids = [...new Set(wanted)].slice(0, RIVALS);
  return ids.flatMap((id) => rows.filter((row) => row.id === id))
    .map((row) => ({ text: row.text, p: row.fused, written: row.id === step.id }));
};

/** What flows at token `index` of a trace, mixed at the page's lambda; `step` may be without some neighbours, whose
 * weight `left` does not have.
 * @type {(trace: Shown, index: number, lambda: Lambda, step?: Step & { left?: number }) => Flow | null} */
export const flowOf = (trace, index, lambda, step = trace.steps[index]) => {
  if (!step) return null;
  const own = lambdaAt(step, lambda);
  const weights = weightsOf(trace.system, own);
  const pipes = SOURCES.map((source) => {
    const p = step.p[source] ?? null;
    const weight = weights[source] ?? 0;
    return { source, p, weight, share: weight * (p ?? 0), says: says(step, source) };
  });
  return {
    text: step.s, before: trace.steps.slice(0, index).map((one) => one.s).join(""),
    index, count: trace.steps.length, lambda: own, system: trace.system, pipes,
    fused: mix(step.p, trace.system, own), cards: cardsOf(step),
    rivals: tokensOf(step, trace.system, own), left: step.left ?? null,
  };
};

/** The tokens of an answer without the one that ends it, as truth.js counts the right answer's. Where another answer
 * begins with this one, its end is what tells them apart.
 * @type {(trace: Shown, texts: string[]) => Step[]} */
const wordsOf = ({ steps, finish, text = "" }, texts) => {
  const begins = texts.some((other) => other !== text.trim() && other.startsWith(text.trim()));
  return finish === "eos" && !begins ? steps.slice(0, -1) : steps;
};

/** The answers of a scrubbed column as the race's bars: the ones that it writes at some lambda.
 * @type {(texts: Shown[], shown: Shown, lambda: Lambda) => Rival[]} */
export const answersOf = (texts, shown, lambda) => {
  const different = new Map(texts.map((text) => [(text.text ?? "").trim(), text]));
  return [...different].map(([text, trace]) => {
    const steps = wordsOf(trace, [...different.keys()]);
    const chance = lambda === "auto" ? routedOf(steps, shown) : { p: chanceOf(steps, shown.system, lambda), bound: false };
    return { text, written: text === (shown.text ?? "").trim(), ...chance };
  });
};

const NAMES = { lm: "The decoder's head", memory: "The memory", knn: "The datastore" };

/** The circuit's content in sentences, for screen readers.
 * @type {(flow: Flow) => string} */
export const spoken = ({ text, index, count, pipes, fused, cards, lambda }) => {
  const word = quote(text);
  const lines = pipes.map(({ source, p, weight, says: own }) => {
    if (p === null) return `${NAMES[source]} has no answer.`;
    const favourite = own ? `${NAMES[source]} says ${quote(own.text)}, ${percent(own.p)} per cent` : NAMES[source];
    const through = weight ? `${percent(weight)} per cent of it passes the valve` : "none of it passes the valve";
    return `${favourite}, and gives ${word} ${percent(p)} per cent; ${through}.`;
  });
  const found = cards.map((card) => card.title).join(", ");
  return [`Token ${index + 1} of ${count}: ${word}.`, ...lines,
    cards.length ? `The datastore found passages of ${found}. The memory looks nothing up.` : "",
    `At lambda ${lambda.toFixed(2)} the mix gives ${word} ${percent(fused)} per cent.`].filter(Boolean).join(" ");
};

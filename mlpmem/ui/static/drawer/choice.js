// @ts-check
/* How open the choice of a token was: its likeliest candidates, the entropy and the written token's ranks, as far as the
 * candidates that a trace keeps prove them. Pure functions on plain values. */
/** @import { Opening, Step } from "../core/types.js" */
import { short } from "../core/dom.js";
import { SOURCES, candidateOf, isScored, mix } from "../core/mix.js";
import { nameOf } from "../core/state.js";

const MOST = 10; // candidates of a list
const [OLD, SCORED] = [8, 5]; // candidates of each source in traces that do not say how many they keep

/** The candidates of each source that a step keeps at least. @type {(step: Step, trace: Opening) => number} */
const keptOf = (step, trace) => step.top ?? (isScored(trace) ? SCORED : OLD);

/** A probability that no token outside a step's candidates exceeds: each source's is below its last kept one.
 * @type {(step: Step, trace: Opening, lambda: number) => number} */
const unseen = (step, trace, lambda) => {
  const kept = keptOf(step, trace);
  const least = Object.fromEntries(SOURCES.map((source) => {
    const all = step.cand.map((row) => candidateOf(row).p[source]).filter((p) => p !== null && p !== undefined);
    return [source, all.length ? all.sort((a, b) => b - a)[Math.min(kept, all.length) - 1] : null];
  }));
  return mix(/** @type {any} */ (least), trace.system, lambda);
};

/** The likeliest tokens of a mix in order, at most ten, and only those that no unlisted token can come before.
 * @type {(step: Step, trace: Opening, lambda: number) => { id: number, text: string, p: number }[]} */
export const topOf = (step, trace, lambda) => {
  const bound = unseen(step, trace, lambda);
  return step.cand.map(candidateOf).map(({ id, text, p }) => ({ id, text, p: mix(p, trace.system, lambda) }))
    .filter(({ p }) => p >= bound).sort((a, b) => b.p - a.p || a.id - b.id).slice(0, MOST);
};

/** Why a list is short of ten, "" where it is not: what the trace keeps proves no more.
 * @type {(step: Step, trace: Opening, listed: number) => string} */
export const shortText = (step, trace, listed) => {
  const kept = keptOf(step, trace);
  if (listed >= MOST || kept >= MOST) return "";
  return `${isScored(trace) ? "A scored text" : "This recording"} keeps ${kept} candidates of each source. `;
};

/** The entropy of a mix in nats, with all unlisted tokens as one: the entropy is at least this much. `rest` is their share.
 * @type {(step: Step, trace: Opening, lambda: number) => { nats: number, rest: number }} */
export const entropyOf = (step, trace, lambda) => {
  const rest = Math.max(0, mix(step.rest, trace.system, lambda));
  const all = [...step.cand.map((row) => mix(candidateOf(row).p, trace.system, lambda)), rest];
  return { nats: all.reduce((sum, p) => sum - (p > 0 ? p * Math.log(p) : 0), 0), rest };
};

/** A token's rank under a source, null if it is beyond the kept ones or the source has no answer.
 * @type {(step: Step, trace: Opening, source: string) => number | null} */
export const rankOf = (step, trace, source) => {
  const own = step.p[source];
  if (own === null || own === undefined) return null;
  const rank = 1 + step.cand.filter((row) => (candidateOf(row).p[/** @type {"lm"} */ (source)] ?? 0) > own).length;
  return rank <= keptOf(step, trace) ? rank : null;
};

/** Entropy and ranks in words. @type {(step: Step, trace: Opening, lambda: number) => string} */
export const choiceText = (step, trace, lambda) => {
  const { nats, rest } = entropyOf(step, trace, lambda);
  const ranks = SOURCES.filter((source) => Number.isFinite(step.p[source]))
    .map((source) => `${nameOf(source).source} ${rankOf(step, trace, source) ?? `beyond ${keptOf(step, trace)}`}`);
  const [least, more] = rest > 0.01 ? ["at least ", " or more"] : ["", ""];
  return `Entropy ${least}${short(nats)} nats, as open as ${short(Math.exp(nats))} equal choices${more}. ` +
    `Rank of the written token: ${ranks.join(", ")}.`;
};

// @ts-check
/* From a position's log-probs to a Step in the trace's shape, as mlpmem/engine/steps.py and trace.py write it. */
/** @import { CandidateRow, NeighbourRow, Step } from "../../core/types.js" */
/** @import { Position } from "../types.js" */
/** @import { Store } from "../own/store.js" */
import { mix } from "../../core/mix.js";
import { jsDivergence, largest } from "./distributions.js";

const TOP = 10; // candidates per source
const NEAREST = 8; // neighbours listed
const OTHER = -1; // key in `far` for all tokens that are not candidates

/** Six significant digits, as in a trace; null for a number that is not finite. @param {number} value */
const short = (value) => (Number.isFinite(value) ? Number(value.toPrecision(6)) : null);

/** @param {{ [source: string]: number }} probs @returns {any} */
const shortened = (probs) => Object.fromEntries(Object.entries(probs).map(([name, p]) => [name, short(p)]));

/** A position's table: probabilities of the candidates by source, the rest's, and the neighbours.
 * @typedef {{ probs: Map<number, { [source: string]: number }>, rest: { [source: string]: number }, js: number | null,
 *   nn: NeighbourRow[], far: [number, number][], top: number }} Table */

/** The table of a position whose candidates include the chosen tokens.
 * @param {Position} position @param {number[]} chosen @param {Store | null} store @param {number} [top] @param {number} [nearest]
 * @returns {Table} */
export function tableOf({ logs, found }, chosen, store, top = TOP, nearest = NEAREST) {
  const ids = new Set(chosen);
  for (const log of Object.values(logs)) {
    for (const id of largest(log, Math.min(top, log.length))) if (log[id] > -Infinity) ids.add(id);
  }
  const sorted = [...ids].sort((a, b) => a - b);
  const probs = new Map(sorted.map((id) =>
    [id, Object.fromEntries(Object.entries(logs).map(([source, log]) => [source, Math.exp(log[id])]))]));
  const rest = Object.fromEntries(Object.keys(logs).map((source) =>
    [source, Math.max(0, 1 - sorted.reduce((sum, id) => sum + (probs.get(id)?.[source] ?? 0), 0))]));
  const js = logs.memory && logs.knn ? jsDivergence(logs.memory, logs.knn) : null;
  return { probs, rest, js, top, ...(found && store ? neighboursOf(found, store, ids, nearest) : { nn: [], far: [] }) };
}

/** The `top` neighbours by weight, and the mass of the others by candidate.
 * @param {NonNullable<Position["found"]>} found @param {Store} store @param {Set<number>} ids @param {number} top
 * @returns {{ nn: NeighbourRow[], far: [number, number][] }} */
function neighboursOf({ entries, distances, weights, values }, store, ids, top) {
  const order = Array.from(entries.keys()).sort((a, b) => weights[b] - weights[a] || a - b);
  /** @type {Map<number, number>} */
  const far = new Map();
  for (const i of order.slice(top)) {
    const key = ids.has(values[i]) ? values[i] : OTHER;
    if (weights[i] > 0) far.set(key, (far.get(key) ?? 0) + weights[i]);
  }
  return { nn: order.slice(0, top).map((i) => store.neighbour(entries[i], short(distances[i]) ?? 0, short(weights[i]) ?? 0)),
    far: [...far].map(([id, mass]) => [id, short(mass) ?? 0]) };
}

/** The step of a system that chose a token at lambda `weight`; candidates come by descending mixed probability.
 * @param {Table} table @param {string[]} pieces @param {string} system @param {number} weight
 * @param {{ index: number, id: number, text: string, ms: number, routed: boolean }} plain @returns {Step} */
export function stepOf(table, pieces, system, weight, { index, id, text, ms, routed }) {
  /** @param {{ [source: string]: number }} p */
  const fused = (p) => mix(/** @type {any} */ (p), system, weight);
  const order = [...table.probs].map(([token, p]) => ({ token, p, mixed: fused(p) }))
    .sort((a, b) => b.mixed - a.mixed || a.token - b.token);
  const own = table.probs.get(id) ?? {};
  return {
    ...(routed ? { lmbda: short(weight) ?? 0 } : {}),
    i: index, id, s: text,
    p: shortened({ ...own, fused: fused(own) }),
    cand: order.map(({ token, p }) => /** @type {CandidateRow} */ ([token, pieces[token],
      ...["lm", "memory", "knn"].map((source) => short(p[source] ?? Number.NaN))])),
    rest: shortened({ ...table.rest, fused: fused(table.rest) }),
    js: table.js === null ? null : short(table.js),
    nn: table.nn, ms: short(ms), far: table.far, top: table.top,
  };
}

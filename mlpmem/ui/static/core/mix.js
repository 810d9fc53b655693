// @ts-check
/* The maths of the page: pure functions on a trace's plain values (types.d.ts), without DOM.
 *
 * `mix` equals mlpmem.engine.trace.mix. A lambda may be "auto": then every step has its own, in
 * step.lmbda. */
/** @import { Candidate, CandidateRow, Lambda, Neighbour, NeighbourRow } from "./types.js" */
/** @import { Opening, Probs, Shown, Source, Step } from "./types.js" */

const FLOOR = 1e-12; // below any useful float32 probability; keeps a log finite
const SHUT = 0.1; // lambda below which a gate is shut
/** @type {Source[]} */
export const SOURCES = ["lm", "memory", "knn"];
/** @type {{ [system: string]: Source[] }} */
const PARTS = { lm: [], memory: ["memory"], knn: ["knn"], mixed: ["memory", "knn"] };

/** The sources that a system mixes into the decoder, in equal shares. @type {(system: string) => Source[]} */
export const partsOf = (system) => (Object.hasOwn(PARTS, system) ? PARTS[system] : []);

/** The mean probability of a system's sources, null for "lm" or if one is absent.
 * @type {(p: Probs, system: string) => number | null} */
export const otherOf = (p, system) => {
  const parts = partsOf(system);
  let sum = 0;
  for (const part of parts) {
    const value = p[part];
    if (value === null || value === undefined) return null;
    sum += value;
  }
  return parts.length ? sum / parts.length : null;
};

/** Lambda at one step: the number, or for "auto" the router's.
 * @type {(step: Step, lambda: Lambda) => number} */
export const lambdaAt = (step, lambda) => (lambda === "auto" ? step.lmbda ?? 0 : lambda);

/** (1 - lambda) p_lm + lambda p_system; p_lm if the system is "lm" or absent.
 * @type {(p: Probs, system: string, lambda: number) => number} */
export const mix = (p, system, lambda) => {
  const other = otherOf(p, system);
  return other === null ? p.lm : (1 - lambda) * p.lm + lambda * other;
};

/** A candidate row as named fields. @type {(row: CandidateRow) => Candidate} */
export const candidateOf = (row) => ({
  id: row[0], text: row[1], p: { lm: row[2], memory: row[3], knn: row[4] },
});

/** A neighbour row as named fields. @type {(row: NeighbourRow) => Neighbour} */
export const neighbourOf = ([entry, title, group, left, target, targetId, right, distance, weight]) =>
  ({ entry, title, group, left, target, targetId, right, distance, weight });

/** The two indices in a candidate row whose mean a system mixes into the decoder.
 * @type {{ [system: string]: [3 | 4, 3 | 4] }} */
const PART_INDICES = { memory: [3, 3], knn: [4, 4], mixed: [3, 4] };

/** The candidate row with the largest mixed probability; the chosen token wins a tie.
 * @type {(step: Step, system: string, lambda: Lambda) => CandidateRow | null} */
const argmax = (step, system, lambda) => {
  let best = null;
  let top = -1;
  const [first, second] = PART_INDICES[system] || [];
  const weight = lambdaAt(step, lambda);
  for (const row of step.cand) {
    const [a, b] = first && second ? [row[first], row[second]] : [null, null];
    const p = a === null || b === null ? row[2] : (1 - weight) * row[2] + weight * ((a + b) / 2);
    if (p > top || (p === top && row[0] === step.id)) {
      top = p;
      best = row;
    }
  }
  return best;
};

/** log(p_fused / p_lm) of the chosen token, nats: above 0 the source raised it.
 * @type {(step: Step, system: string, lambda: Lambda) => number} */
export const creditOf = (step, system, lambda) => {
  const fused = Math.max(mix(step.p, system, lambdaAt(step, lambda)), FLOOR);
  return Math.log(fused / Math.max(step.p.lm, FLOOR));
};

/** The source's share of the mixed probability, 0 .. 1.
 * @type {(step: Step, system: string, lambda: Lambda) => number} */
export const shareOf = (step, system, lambda) => {
  const other = otherOf(step.p, system);
  if (other === null) return 0;
  const weight = lambdaAt(step, lambda);
  return (weight * other) / Math.max(mix(step.p, system, weight), FLOOR);
};

/** Whether a gate was shut throughout an answer. @type {(trace: Shown) => boolean} */
export const isAway = ({ lmbda, steps }) => lmbda === "auto" && steps.length > 0 && steps.every((step) => (step.lmbda ?? 1) < SHUT);

/** Whether a trace is a scored text, which was not generated.
 * @type {(trace: Opening) => boolean} */
export const isScored = (trace) => Boolean(trace.settings?.scored);

/** Perplexity of the chosen tokens when the decoder is mixed with `source` at lambda.
 * @type {(steps: Step[], source: string, lambda: Lambda) => number} */
export const perplexity = (steps, source, lambda) => {
  if (!steps.length) return NaN;
  let nll = 0;
  for (const step of steps) {
    nll -= Math.log(Math.max(mix(step.p, source, lambdaAt(step, lambda)), FLOOR));
  }
  return Math.exp(nll / steps.length);
};

/** [[lambda, perplexity], ...] on a grid of n + 1 points.
 * @type {(steps: Step[], source: string, n?: number) => [number, number][]} */
export const curveOf = (steps, source, n = 50) =>
  Array.from({ length: n + 1 }, (_, i) => [i / n, perplexity(steps, source, i / n)]);

/** The grid point with the lowest perplexity. @type {(curve: [number, number][]) => [number, number]} */
export const optimum = (curve) => curve.reduce((best, point) => (point[1] < best[1] ? point : best));

/** Whether any step has a probability of this source.
 * @type {(steps: Step[], source: string) => boolean} */
export const hasSource = (steps, source) =>
  steps.some((step) => step.p[source] !== null && step.p[source] !== undefined);

/** The number of a trace's forced first tokens.
 * @type {(trace: Opening) => number} */
export const givenOf = (trace) => trace.settings?.forced?.length ?? 0;

/** Per step the candidate row that would be chosen at lambda, or null if the choice is the same. The
 * comparison is with the generated token, or in a scored text with the decoder's choice.
 * @type {(trace: Shown, lambda: Lambda) => (CandidateRow | null)[]} */
export const flipsOf = (trace, lambda) => {
  if (isScored(trace)) {
    return trace.steps.map((step) => {
      const now = argmax(step, trace.system, lambda);
      return now && now[0] !== argmax(step, "lm", 0)?.[0] ? now : null;
    });
  }
  const own = lambda === trace.lmbda || Math.abs(Number(lambda) - Number(trace.lmbda)) < 1e-9; // "auto" is NaN
  if (trace.system === "lm" || own) {
    return trace.steps.map(() => null);
  }
  const sampled = (trace.settings?.temperature ?? 0) > 0;
  const given = givenOf(trace);
  return trace.steps.map((step, i) => {
    const now = argmax(step, trace.system, lambda);
    const before = sampled || i < given ? argmax(step, trace.system, trace.lmbda)?.[0] : step.id;
    return now && now[0] !== before ? now : null;
  });
};

/** The first index at which two step lists differ, -1 if one continues the other. Texts are compared
 * too, because another decoder has other ids. @type {(a: Step[], b: Step[]) => number} */
export const firstDifference = (a, b) => {
  const n = Math.min(a.length, b.length);
  for (let i = 0; i < n; i += 1) if (a[i].id !== b[i].id || a[i].s !== b[i].s) return i;
  return -1;
};

/** @type {(text: string) => string} */
const plain = (text) => text.normalize("NFKC").toLowerCase().replace(/[\s.]+/g, " ").trim();

/** Whether a generated text begins with the true answer, as whole words.
 * @type {(text: string, answer: string) => boolean} */
export const isRight = (text, answer) => {
  const got = plain(text);
  const want = plain(answer);
  return got === want || (got.startsWith(want) && !/[\p{L}\p{N}]/u.test(got[want.length]));
};

/** Whether a text that begins so may still spell an answer, or does. @type {(text: string, answer: string) => boolean} */
export const mayBe = (text, answer) => plain(answer).startsWith(plain(text)) || isRight(text, answer);

/** The agreement of memory and datastore in words; js in nats (0 .. ln 2).
 * @type {(js: number) => string} */
export const agreement = (js) => {
  if (js < 0.05) return "agree closely";
  if (js < 0.2) return "largely agree";
  return js < 0.45 ? "differ" : "disagree";
};

/* Evidence: the kNN distribution without some neighbours, and the tokens of a document.
 *
 * A neighbour's weight is count * exp(-distance / temperature) over the sum of all k. Removing some
 * is therefore exact: the remaining weights are divided by their sum. step.far has the weights of
 * the unlisted neighbours by token, -1 for any token that is not a candidate.
 */

const OTHER = -1;

/** @type {(sums: Map<number, number>, key: number, mass: number) => void} */
const add = (sums, key, mass) => { sums.set(key, (sums.get(key) || 0) + mass); };

/** What tells a step's list of neighbours from others. @type {(step: Step) => string} */
export const entriesOf = (step) => (step.nn || []).map((row) => row[0]).join();

/** The step without the neighbours at the positions `left` of its list: p, cand and rest are
 * recomputed. Without any mass, the datastore's distribution is the decoder's.
 * @type {(step: Step, left: Set<number>) => Step & { left: number }} */
export const without = (step, left) => {
  const listed = new Set(step.cand.map((row) => row[0]));
  const sums = new Map(step.far);
  step.nn.forEach((row, i) => {
    if (!left.has(i)) add(sums, listed.has(row[5]) ? row[5] : OTHER, row[8] || 0);
  });
  const total = [...sums.values()].reduce((sum, mass) => sum + mass, 0);
  /** @type {(id: number, lm: number) => number} */
  const knn = (id, lm) => (total > 0 ? (sums.get(id) || 0) / total : lm);
  return {
    ...step,
    p: { ...step.p, knn: knn(step.id, step.p.lm) },
    cand: step.cand.map(([id, text, lm, memory]) => [id, text, lm, memory, knn(id, lm)]),
    rest: { ...step.rest, knn: knn(OTHER, step.rest.lm) },
    nn: step.nn.filter((_, i) => !left.has(i)),
    left: total,
  };
};

/** The Jensen-Shannon divergence of memory and datastore in nats over the candidates, with all others as
 * one: at most that of the whole distributions. @type {(step: Step) => number} */
export const divergence = (step) => {
  const pairs = [...step.cand.map((row) => [row[3] ?? 0, row[4] ?? 0]), [step.rest.memory ?? 0, step.rest.knn ?? 0]];
  /** @type {(p: number, q: number) => number} */
  const part = (p, q) => (p > 0 ? 0.5 * p * Math.log((2 * p) / (p + q)) : 0);
  return pairs.reduce((sum, [p, q]) => sum + part(p, q) + part(q, p), 0);
};

/** The indices of the tokens that a document is evidence for.
 * @type {(steps: Step[], title: string) => Set<number>} */
export const tokensOf = (steps, title) => new Set(steps.flatMap((step, i) =>
  ((step.nn || []).some((row) => row[1] === title) ? [i] : [])));

/** A text's documents by descending weight.
 * @type {(steps: Step[]) => { title: string, group: string, mass: number, count: number }[]} */
export const documentsOf = (steps) => {
  const found = new Map();
  for (const step of steps) {
    const here = new Set();
    for (const row of step.nn || []) {
      const one = found.get(row[1]) || { title: row[1], group: row[2], mass: 0, count: 0 };
      one.mass += row[8] || 0;
      if (!here.has(row[1])) one.count += 1;
      here.add(row[1]);
      found.set(row[1], one);
    }
  }
  return [...found.values()].sort((a, b) => b.mass - a.mass);
};

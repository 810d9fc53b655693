// @ts-check
/* The maths of the sources and their mix, as mlpmem/engine/distributions.py has it. Log-probs are in nats, V per row. */
import { Twister } from "./twister.js";

/** Turns logits into the log-probs of them divided by a temperature, in place. @param {Float32Array} logits (V,) @param {number} [temperature] */
export function logSoftmax(logits, temperature = 1) {
  let top = -Infinity;
  for (let i = 0; i < logits.length; i += 1) if (logits[i] > top) top = logits[i];
  let sum = 0;
  for (let i = 0; i < logits.length; i += 1) sum += Math.exp((logits[i] - top) / temperature);
  const log = Math.log(sum);
  for (let i = 0; i < logits.length; i += 1) logits[i] = (logits[i] - top) / temperature - log;
  return logits;
}

/** log((1 - lambda) p + lambda q) of log-probs, exact at 0 and 1. @param {Float32Array} lm @param {Float32Array} other @param {number} lambda */
export function interpolate(lm, other, lambda) {
  if (lambda === 0) return lm;
  if (lambda === 1) return other;
  const out = new Float32Array(lm.length);
  for (let i = 0; i < lm.length; i += 1) {
    out[i] = Math.log((1 - lambda) * Math.exp(lm[i]) + lambda * Math.exp(other[i]));
  }
  return out;
}

/** The index of the largest number, the first of equal ones. @param {Float32Array} numbers */
export function argmax(numbers) {
  let best = 0;
  for (let i = 1; i < numbers.length; i += 1) if (numbers[i] > numbers[best]) best = i;
  return best;
}

/** The most probable token of the mix at lambda. @param {Float32Array} lm @param {Float32Array} other @param {number} lambda */
export function mixedArgmax(lm, other, lambda) {
  if (lambda === 0 || lm === other) return argmax(lm);
  if (lambda === 1) return argmax(other);
  const [rest, weight] = [Math.log(1 - lambda), Math.log(lambda)];
  // no mix is above twice its larger part, so most tokens need no exponential
  const least = Math.max(rest + lm[argmax(lm)], weight + other[argmax(other)]) - Math.LN2 - 1e-6;
  let [best, top] = [0, -1];
  for (let i = 0; i < lm.length; i += 1) {
    if (rest + lm[i] < least && weight + other[i] < least) continue;
    const p = (1 - lambda) * Math.exp(lm[i]) + lambda * Math.exp(other[i]);
    if (p > top) [best, top] = [i, p];
  }
  return best;
}

/** The indices of the `count` largest numbers, in no order. @param {Float32Array} numbers @param {number} count */
export function largest(numbers, count) {
  /** @type {number[]} */
  const best = []; // by descending number
  for (let i = 0; i < numbers.length; i += 1) {
    if (best.length === count && numbers[i] <= numbers[best[count - 1]]) continue;
    let at = best.length < count ? best.push(i) - 1 : count - 1;
    for (; at > 0 && numbers[best[at - 1]] < numbers[i]; at -= 1) best[at] = best[at - 1];
    best[at] = i;
  }
  return best;
}

/** Each neighbour's share of the kNN mass: count * exp(-distance / temperature), normalised.
 * @param {Float32Array} distances squared L2, ascending @param {number[]} counts @param {number} temperature */
export function knnWeights(distances, counts, temperature) {
  const scores = Array.from(distances, (distance, i) => Math.log(counts[i]) - distance / temperature);
  const top = Math.max(...scores);
  const weights = scores.map((score) => Math.exp(score - top));
  const sum = weights.reduce((all, one) => all + one, 0);
  return weights.map((weight) => weight / sum);
}

/** kNN log-probs: -Infinity for tokens of no neighbour. @param {number[]} weights @param {number[]} values @param {number} V */
export function knnLogProbs(weights, values, V) {
  const sums = new Map();
  for (const [i, value] of values.entries()) sums.set(value, (sums.get(value) ?? 0) + weights[i]);
  const out = new Float32Array(V).fill(-Infinity);
  for (const [value, sum] of sums) out[value] = Math.log(sum);
  return out;
}

/** The Jensen-Shannon divergence of log-probs, 0 .. ln 2 nats. @param {Float32Array} p @param {Float32Array} q */
export function jsDivergence(p, q) {
  let sum = 0;
  for (let i = 0; i < p.length; i += 1) {
    const [a, b] = [Math.exp(p[i]), Math.exp(q[i])];
    const middle = Math.log((a + b) / 2);
    if (a > 0) sum += a * (p[i] - middle);
    if (b > 0) sum += b * (q[i] - middle);
  }
  return Math.max(0, sum / 2);
}

/** @typedef {{ temperature: number, top_k: number, top_p: number, min_p: number }} Limits */

/** One token of log-probs: the most probable at temperature 0, else by the inverse distribution function at `uniform`.
 * @param {Float32Array} logProbs @param {Limits} limits @param {number} uniform in [0, 1) */
export function sample(logProbs, { temperature, top_k: topK, top_p: topP, min_p: minP }, uniform) {
  if (temperature === 0) return argmax(logProbs);
  const scores = logProbs.map((p) => p / temperature);
  if (topK > 0 && topK < scores.length) {
    const kept = new Set(largest(scores, topK));
    for (let i = 0; i < scores.length; i += 1) if (!kept.has(i)) scores[i] = -Infinity;
  }
  if (topP < 1) cutMass(scores, topP);
  const top = scores[argmax(scores)];
  const least = minP > 0 ? top + Math.log(minP) : -Infinity;
  const masses = Array.from(scores, (score) => (score < least ? 0 : Math.exp(score - top)));
  const goal = uniform * masses.reduce((all, one) => all + one, 0);
  let sum = 0;
  for (let i = 0; i < masses.length; i += 1) {
    sum += masses[i];
    if (sum > goal) return i;
  }
  return masses.findLastIndex((mass) => mass > 0);
}

/** Keeps the fewest tokens whose mass reaches topP, and always the most probable one. @param {Float32Array} scores @param {number} topP */
function cutMass(scores, topP) {
  const order = Array.from(scores.keys()).sort((a, b) => scores[b] - scores[a] || a - b);
  const top = scores[order[0]];
  const all = order.reduce((sum, i) => sum + Math.exp(scores[i] - top), 0);
  let before = 0;
  for (const i of order) {
    const mass = Math.exp(scores[i] - top) / all;
    if (before >= topP && before > 0) scores[i] = -Infinity;
    before += mass;
  }
}

/** The log-probs with those of seen tokens times a penalty (Keskar et al. 2019). @param {Float32Array} logProbs @param {number[]} seen @param {number} penalty */
export function penalised(logProbs, seen, penalty) {
  const out = logProbs.slice();
  for (const id of new Set(seen)) out[id] *= penalty;
  return out;
}

/** torch's random numbers of a seed: two draws per number in [0, 1). */
export class Random {
  /** @param {number} seed */
  constructor(seed) {
    this.twister = new Twister(seed);
  }

  /** The next number, of 53 bits. */
  uniform() {
    const high = this.twister.draw() & 0x1fffff; // the lower 21 of 32 bits
    return (high * 2 ** 32 + this.twister.draw()) / 2 ** 53;
  }
}

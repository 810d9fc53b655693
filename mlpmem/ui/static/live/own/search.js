// @ts-check
/* The nearest entries of a text by state, by shared words and by order, as mlpmem/retrieval/own/search.py finds them:
 *
 *   score = - STATE d^2 + SHARED share + FOLLOWED min(followed, TOKENS)   in nats
 *
 * A passage's last entry is found only where it follows.
 * N entries, D numbers of a state, R rows. */
/** @import { Found } from "../types.js" */
import { knnWeights, largest } from "../engine/distributions.js";
import { Keys, QUERIES } from "./keys.js";
import { Words } from "./words.js";

const [STATE, SHARED, FOLLOWED] = [20, 10, 1.5];
const TOKENS = 4; // of what was read are followed, at most
const MOST = SHARED + FOLLOWED * TOKENS; // of a score: distances are MOST - score, so from 0
const SAMPLE = 256; // entries whose usual distance is measured
const FARTHEST = 100; // times what is usual

/** An entry: the token at a place of a passage, and how many equal prefixes it stands for.
 * @typedef {{ passage: number, at: number, count: number }} Entry */

/** What is searched: units are the sentences of passages' tokens, before the token ids before each entry (TOKENS, N), or -1.
 * @typedef {{ keys: Keys, entries: Entry[], passages: number[][], units: number[][], words: Words, k: number }} Text */

export class Search {
  /** Measures the deviations of keys and reference states. @param {Text} text @param {Float32Array} reference (M, D) */
  constructor(text, reference) {
    const { keys, entries, passages, units } = text;
    this.text = text;
    this.units = Int32Array.from(entries, ({ passage, at }) => units[passage][at]);
    this.values = entries.map(({ passage, at }) => passages[passage][at]);
    this.counts = entries.map(({ count }) => count);
    this.before = Array.from({ length: TOKENS }, (_, back) =>
      Int32Array.from(entries, ({ passage, at }) => passages[passage][at - back - 1] ?? -1));
    this.last = entries.map(({ passage, at }) => at === passages[passage].length - 1);
    this.weights = weightsOf(reference, keys);
    this.squares = Float64Array.from(entries, (_, i) => this.#square(keys.at(i)));
    this.usual = this.#usual();
  }

  /** The sum of a state's weighted squares. @param {Float32Array} state (D,) */
  #square(state) {
    let sum = 0;
    for (let i = 0; i < state.length; i += 1) sum += this.weights[i] * state[i] * state[i];
    return sum;
  }

  /** The mean squared differences of states and keys, in units of their deviations.
   * @param {Float32Array[]} states (R,) of D numbers, R at most QUERIES @returns {Float32Array[]} (R,) of N */
  #near(states) {
    const { keys } = this.text;
    const N = this.squares.length;
    const products = keys.products(Float32Array.from({ length: states.length * keys.width }, (_, i) =>
      states[Math.floor(i / keys.width)][i % keys.width] * this.weights[i % keys.width]));
    return states.map((state, r) => {
      const own = this.#square(state);
      const row = products.subarray(r * N, (r + 1) * N);
      for (let i = 0; i < N; i += 1) row[i] = Math.max(0, own + this.squares[i] - 2 * row[i]);
      return row;
    });
  }

  /** Yields each state's distances. @param {Float32Array[]} states of D numbers */
  *distances(states) {
    for (let at = 0; at < states.length; at += QUERIES) yield* this.#near(states.slice(at, at + QUERIES));
  }

  /** The median distance of a key to the nearest of another sentence, 1 without any. */
  #usual() {
    const N = this.squares.length;
    const count = Math.min(SAMPLE, N);
    const sample = Array.from({ length: count }, (_, i) => spread(i, count, N - 1));
    /** @type {number[]} */
    const nearest = [];
    for (const row of this.distances(sample.map((entry) => this.text.keys.at(entry)))) {
      const own = this.units[sample[nearest.length]];
      nearest.push(row.reduce((least, d, i) => (d < least && this.units[i] !== own ? d : least), Infinity));
    }
    const finite = nearest.filter(Number.isFinite).sort((a, b) => a - b);
    return finite.length ? Math.max(finite[Math.floor((finite.length - 1) / 2)], 1e-3) : 1;
  }

  /** The best entries of a state that follows what was read. @param {Float32Array} state (D,) @param {number[]} read token ids */
  find(state, read) {
    return this.among(/** @type {Float32Array} */ (this.#near([state])[0]), read);
  }

  /** The best entries by distances (N,), without a sentence if one is left out.
   * @param {Float32Array} distances @param {number[]} read token ids @param {number} [without] @returns {Found} */
  among(distances, read, without = -1) {
    const { k, words } = this.text;
    const N = distances.length;
    const shares = words.shares(read);
    if (without >= 0) shares[without] = 0;
    const scores = new Float32Array(N);
    let least = Infinity;
    for (let i = 0; i < N; i += 1) {
      const out = this.units[i] === without;
      const followed = this.#followed(i, read);
      scores[i] = out || (this.last[i] && !followed) ? -Infinity : FOLLOWED * followed - STATE * distances[i] + SHARED * shares[this.units[i]];
      if (!out && distances[i] < least) least = distances[i];
    }
    const entries = largest(scores, Math.min(k, N)).filter((i) => scores[i] > -Infinity);
    const far = Float32Array.from(entries, (i) => Math.max(0, MOST - scores[i]));
    const near = [shares.reduce((most, share) => Math.max(most, share), 0), this.#followed(entries[0] ?? 0, read), Math.min(least / this.usual, FARTHEST)];
    return { entries, distances: far, weights: knnWeights(far, entries.map((i) => this.counts[i]), 1),
      values: entries.map((i) => this.values[i]), near };
  }

  /** How many of the last tokens read stand before an entry too. @param {number} entry @param {number[]} read */
  #followed(entry, read) {
    let count = 0;
    while (count < TOKENS && count < read.length && this.before[count][entry] === read[read.length - 1 - count]) count += 1;
    return count;
  }
}

/** The place of point i of `count` from 0 to `last`, in float32 as torch.linspace computes it. @param {number} i @param {number} count @param {number} last */
function spread(i, count, last) {
  if (count === 1) return 0;
  const step = Math.fround(last / (count - 1));
  return Math.floor(i < count / 2 ? Math.fround(step * i) : Math.fround(last - Math.fround(step * (count - 1 - i))));
}

/** 1 / (deviation^2 D) of each number of the states (M, D) and of the first 4 M keys. @param {Float32Array} states @param {Keys} keys */
function weightsOf(states, keys) {
  const D = keys.width;
  const M = states.length / D;
  const rows = [...Array.from({ length: M }, (_, r) => states.subarray(r * D, (r + 1) * D)),
    ...Array.from({ length: Math.min(4 * M, keys.count) }, (_, i) => keys.at(i))];
  const weights = new Float64Array(D);
  for (let i = 0; i < D; i += 1) {
    const mean = rows.reduce((sum, row) => sum + row[i], 0) / rows.length;
    const square = rows.reduce((sum, row) => sum + (row[i] - mean) ** 2, 0) / (rows.length - 1);
    weights[i] = 1 / (Math.max(square, 1e-6) * D);
  }
  return weights;
}

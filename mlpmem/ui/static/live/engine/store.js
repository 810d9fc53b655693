// @ts-check
/* A visitor's own text as a datastore: keyed by the decoder, searched exactly, never sent anywhere. */
/** @import { Found } from "../types.js" */
/** @import { NeighbourRow } from "../../core/types.js" */
/** @import { Model } from "./fused.js" */
import { knnLogProbs, knnWeights, largest } from "./distributions.js";
import { LiveError, must } from "../model/errors.js";
import { Arena, room } from "../model/products/products.js";
import { PARTED } from "../model/tokenizer.js";
import { roundToHalf } from "../model/products/halves.js";

const PASSAGE = 256; // tokens, BOS included
const MOST_BYTES = 100e6; // of keys
const MOST_SECONDS = 60;
const MOST_TOKENS = 2 ** 20; // of a vocabulary
const [SMALLEST, LARGEST] = [1024, 16384]; // keys of one block; each is twice as large as the one before
const EXTRA = 32; // candidates beyond k, which rounding may have ranked too low
const [BEFORE, AFTER] = [24, 8]; // tokens around a neighbour's token

/** Passages of token ids: BOS before each, EOS after the last. @param {Model} model @param {string} text */
function passagesOf({ tokenizer, positions }, text) {
  const start = tokenizer.bos ?? tokenizer.eos;
  const ids = [...tokenizer.encode(text), ...(tokenizer.eos === null ? [] : [tokenizer.eos])];
  const width = Math.min(PASSAGE, positions) - Number(start !== null);
  /** @type {number[][]} */
  const passages = [];
  for (let at = 0; at < ids.length; at += width) passages.push([...(start === null ? [] : [start]), ...ids.slice(at, at + width)]);
  return passages;
}

/** An entry: the token at a place of a passage, and how many equal prefixes it stands for.
 * @typedef {{ passage: number, at: number, count: number }} Entry */

/** Keys of consecutive entries from `start` on, with room for `size`; `halves` are half their squared norms.
 * @typedef {{ start: number, size: number, arena: Arena, query: Float32Array, keys: Float32Array, scores: Float32Array, halves: Float64Array }} Block */

export class Store {
  /** @param {Model} model @param {string} title @param {{ bytes?: number, seconds?: number }} [most] */
  constructor(model, title, { bytes = MOST_BYTES, seconds = MOST_SECONDS } = {}) {
    this.model = model;
    this.title = title;
    this.most = { bytes, seconds };
    this.width = model.decoder.shape.D;
    /** @type {number[][]} */
    this.passages = [];
    /** @type {Entry[]} */
    this.entries = [];
    /** The tree of all prefixes: each one's number, by that of the prefix before it and the last token (see `#prefix`).
     * @type {Map<number, number>} */
    this.prefixes = new Map();
    /** The entry that each prefix ends with. @type {Map<number, Entry>} */
    this.byPrefix = new Map();
    /** @type {Block[]} */
    this.blocks = [];
  }

  get bytes() {
    return this.blocks.reduce((sum, block) => sum + block.arena.bytes, 0);
  }

  get tokens() {
    return this.passages.reduce((sum, passage) => sum + passage.length, 0);
  }

  /** Computes the keys of a text, passage by passage, until bytes or seconds are used up. Yields after every pass.
   * @param {string} text */
  async *build(text) {
    must(text.trim() !== "", "The text is empty. Paste a text.");
    must(!text.includes("\0"), "The text has a NUL character, so it is not plain text.");
    const clean = text.replace(/^\uFEFF/, "").replaceAll("\r\n", "\n");
    const passages = passagesOf(this.model, clean);
    const total = passages.reduce((sum, passage) => sum + passage.length, 0);
    const begin = performance.now();
    let spent = "";
    for (const passage of passages) {
      if (performance.now() - begin > 1000 * this.most.seconds) spent = `${this.most.seconds} seconds`;
      else if (this.entries.length + PASSAGE > this.#room && this.bytes + 4 * this.width * this.#next > this.most.bytes) {
        spent = `${this.most.bytes / 1e6} MB`;
      }
      if (spent) break;
      yield* this.#key(passage, total);
    }
    const left = total - this.tokens;
    this.note = left ? `left out: the last ${left.toLocaleString("en")} of ${total.toLocaleString("en")} tokens, ` +
      `because ${spent} were used` : "";
  }

  /** The number of keys that the blocks have room for. */
  get #room() {
    return this.blocks.reduce((sum, { size }) => sum + size, 0);
  }

  /** The number of keys of the next block. */
  get #next() {
    return Math.min(LARGEST, SMALLEST * 2 ** this.blocks.length);
  }

  /** @param {number[]} passage @param {number} total */
  async *#key(passage, total) {
    const done = this.tokens;
    const cache = this.model.decoder.cache();
    let prefix = this.#prefix(0, passage[0]);
    let at = 1; // place of the token whose key comes next
    const { width } = this.model.decoder; // of a state; a key is its hidden state
    for (const { hidden } of this.model.read(passage.slice(0, -1), cache, true)) {
      for (let from = 0; from < hidden.length; from += width, at += 1) {
        prefix = this.#prefix(prefix, passage[at]);
        this.#enter(prefix, { passage: this.passages.length, at, count: 1 }, hidden.subarray(from, from + this.width));
      }
      yield { done: done + at, total };
    }
    this.passages.push(passage);
  }

  /** The number of the prefix that a token makes of another. @param {number} before @param {number} token */
  #prefix(before, token) {
    const key = before * MOST_TOKENS + token;
    const known = this.prefixes.get(key) ?? this.prefixes.size + 1;
    this.prefixes.set(key, known);
    return known;
  }

  /** Adds an entry with its key; an equal prefix has an equal key, so it is only counted.
   * @param {number} prefix @param {Entry} entry @param {Float32Array} key */
  #enter(prefix, entry, key) {
    const known = this.byPrefix.get(prefix);
    if (known) {
      known.count += 1;
      return;
    }
    this.byPrefix.set(prefix, entry);
    if (this.entries.length === this.#room) this.blocks.push(this.#block());
    const { start, keys, halves } = this.blocks[this.blocks.length - 1];
    const place = this.entries.length - start;
    const target = keys.subarray(place * this.width, (place + 1) * this.width);
    target.set(key);
    roundToHalf(target);
    halves[place] = target.reduce((sum, value) => sum + value * value, 0) / 2;
    this.entries.push(entry);
  }

  /** @returns {Block} */
  #block() {
    const size = this.#next;
    const arena = new Arena(this.model.kernel, room(size * this.width) + room(this.width) + room(size));
    return { start: this.entries.length, size, arena, query: arena.take(this.width), scores: arena.take(size),
      keys: arena.take(size * this.width), halves: new Float64Array(size) };
  }

  /** The nearest entries of a hidden state, exactly. @param {Float32Array} hidden (D,) @returns {Found} */
  search(hidden) {
    const { k, knn_temperature: temperature } = this.model.live.settings;
    const N = this.entries.length;
    if (!N) throw new LiveError("Your text has no token that follows another. Paste more.");
    const scores = new Float32Array(N);
    for (const block of this.blocks) {
      const count = Math.min(block.size, N - block.start);
      block.query.set(hidden);
      block.arena.product(block.query, block.keys, block.scores, 1, this.width, count);
      for (let i = 0; i < count; i += 1) scores[block.start + i] = block.scores[i] - block.halves[i];
    }
    const near = largest(scores, Math.min(N, k + EXTRA)).map((entry) => ({ entry, distance: this.#distance(hidden, entry) }));
    near.sort((a, b) => a.distance - b.distance || a.entry - b.entry);
    near.length = Math.min(k, near.length);
    const entries = near.map(({ entry }) => entry);
    const distances = Float32Array.from(near, ({ distance }) => distance);
    const weights = knnWeights(distances, entries.map((i) => this.entries[i].count), temperature);
    return { entries, distances, weights, values: entries.map((i) => this.#value(i)) };
  }

  /** @param {Float32Array} hidden @param {number} entry */
  #distance(hidden, entry) {
    const { start, keys } = /** @type {Block} */ (this.blocks.findLast((block) => block.start <= entry));
    const at = (entry - start) * this.width;
    let sum = 0;
    for (let i = 0; i < this.width; i += 1) sum += (hidden[i] - keys[at + i]) ** 2;
    return sum;
  }

  /** @param {number} i */
  #value(i) {
    const { passage, at } = this.entries[i];
    return this.passages[passage][at];
  }

  /** @param {Found} found @param {number} V */
  logProbs({ weights, values }, V) {
    return knnLogProbs(weights, values, V);
  }

  /** An entry with its surroundings, as a trace has it. @param {number} i @param {number} distance @param {number} weight @returns {NeighbourRow} */
  neighbour(i, distance, weight) {
    const { passage, at } = this.entries[i];
    const ids = this.passages[passage];
    const { tokenizer } = this.model;
    const left = tokenizer.passage(ids.slice(Math.max(0, at - BEFORE), at));
    const right = tokenizer.passage(ids.slice(at + 1, at + 1 + AFTER));
    return [i, this.title, "text", left.startsWith(PARTED) ? left.slice(PARTED.length) : left, tokenizer.pieces[ids[at]], ids[at],
      right.endsWith(PARTED) ? right.slice(0, -PARTED.length) : right, distance, weight];
  }
}

// @ts-check
/* A visitor's own text as a datastore: keyed by the decoder, searched exactly, with a gate for lambda; never sent anywhere. */
/** @import { NeighbourRow } from "../../core/types.js" */
/** @import { Found } from "../types.js" */
/** @import { Cache } from "../model/decoder.js" */
/** @import { Model } from "../engine/fused.js" */
/** @import { Router } from "../engine/router.js" */
/** @import { Entry } from "./search.js" */
import { knnLogProbs } from "../engine/distributions.js";
import { LiveError, must } from "../model/errors.js";
import { PARTED } from "../model/tokenizer.js";
import { fittedGate } from "./gate.js";
import { Keys } from "./keys.js";
import { referenceStates } from "./rows.js";
import { Search } from "./search.js";
import { formOf, headOf, passagesOf, unitsOf } from "./sentences.js";
import { Words, vocabularyOf } from "./words.js";

const MOST_BYTES = 100e6; // of keys
const MOST_SECONDS = 60;
const MOST_TOKENS = 2 ** 20; // of a vocabulary
const [BEFORE, AFTER] = [24, 8]; // tokens around a neighbour's token

/** Tokens read of a text, or of what its gate is fitted to. @typedef {{ done: number, total: number, fitting?: boolean }} Progress */

export class Store {
  /** @param {Model} model @param {string} title @param {{ bytes?: number, seconds?: number }} [most] */
  constructor(model, title, { bytes = MOST_BYTES, seconds = MOST_SECONDS } = {}) {
    this.model = model;
    this.title = title;
    this.most = { bytes, seconds };
    this.keys = new Keys(model);
    /** @type {number[][]} */
    this.passages = [];
    /** @type {Entry[]} */
    this.entries = [];
    /** The tree of all prefixes: each one's number, by that of the prefix before it and the last token (see `#prefix`).
     * @type {Map<number, number>} */
    this.prefixes = new Map();
    /** The entry that each prefix ends with. @type {Map<number, Entry>} */
    this.byPrefix = new Map();
    /** The ids of every sentence. @type {number[][]} */
    this.parts = [];
    /** @type {Search | null} */
    this.search = null;
    /** Chooses lambda for this text. @type {Router | null} */
    this.gate = null;
    this.note = "";
  }

  get bytes() {
    return this.keys.bytes;
  }

  get tokens() {
    return this.passages.reduce((sum, passage) => sum + passage.length, 0);
  }

  /** Computes the keys of a text, passage by passage, until bytes or seconds are used up, then fits its gate. Yields after
   * every pass.
   * @param {string} text @returns {AsyncGenerator<Progress, void>} */
  async *build(text) {
    must(text.trim() !== "", "The text is empty. Paste a text.");
    must(!text.includes("\0"), "The text has a NUL character, so it is not plain text.");
    const clean = text.replace(/^\uFEFF/, "").replaceAll("\r\n", "\n");
    const head = headOf(this.model);
    const passages = passagesOf(this.model, clean, head.length);
    yield* this.#keyAll(head, passages);
    if (!this.entries.length) throw new LiveError("Your text has no token that follows another. Paste more.");
    for await (const progress of referenceStates.read(this.model)) yield { ...progress, fitting: true };
    this.#open();
    const fit = fittedGate(this.model, this);
    for (let step = fit.next(); ; step = fit.next()) {
      if (step.done) {
        this.gate = step.value;
        return;
      }
      yield { ...step.value, fitting: true };
    }
  }

  /** @param {number[]} head @param {number[][]} passages @returns {Generator<Progress, void>} */
  *#keyAll(head, passages) {
    const total = passages.reduce((sum, passage) => sum + passage.length, 0);
    const begin = performance.now();
    const [cache, first] = this.#read(head);
    let spent = "";
    for (const passage of passages) {
      const more = this.keys.more(passage.length);
      if (this.passages.length && performance.now() - begin > 1000 * this.most.seconds) spent = `${this.most.seconds} seconds`;
      else if (more && this.bytes + more > this.most.bytes) spent = `${this.most.bytes / 1e6} MB`;
      if (spent) break;
      yield* this.#key(passage, cache.fork(), first, total);
    }
    const left = total - this.tokens;
    this.note = left ? `left out: the last ${left.toLocaleString("en")} of ${total.toLocaleString("en")} tokens, ` +
      `because ${spent} were used` : "";
  }

  /** The cache after a head, and the key of what follows it, null without a head. @param {number[]} head
   * @returns {[Cache, Float32Array | null]} */
  #read(head) {
    const cache = this.model.decoder.cache();
    let last = null;
    for (const { hidden } of this.model.read(head, cache, true)) last = hidden.slice(-this.model.decoder.width);
    return [cache, last?.subarray(0, this.keys.width) ?? null];
  }

  /** @param {number[]} passage @param {Cache} cache of the head @param {Float32Array | null} first its key @param {number} total
   * @returns {Generator<Progress, void>} */
  *#key(passage, cache, first, total) {
    const done = this.tokens;
    let prefix = this.#prefix(0, passage[0]);
    let at = 0; // place of the last token of the prefix
    const { width } = this.model.decoder; // of a state; a key is its hidden state
    if (first) this.#enter(prefix, { passage: this.passages.length, at, count: 1 }, first);
    for (const { hidden } of this.model.read(passage.slice(0, -1), cache, true)) {
      for (let from = 0; from < hidden.length; from += width) {
        at += 1;
        prefix = this.#prefix(prefix, passage[at]);
        this.#enter(prefix, { passage: this.passages.length, at, count: 1 }, hidden.subarray(from, from + this.keys.width));
      }
      yield { done: done + at + 1, total };
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
    this.keys.add(key);
    this.entries.push(entry);
  }

  /** Makes the text searchable. */
  #open() {
    const { model, passages, entries, keys } = this;
    const { units, parts } = unitsOf(passages, model.tokenizer.pieces);
    const words = new Words(vocabularyOf(model), parts, formOf(model));
    this.parts = parts;
    this.search = new Search({ keys, entries, passages, units, words, k: model.live.settings.k }, referenceStates.of(model));
    this.prefixes.clear();
    this.byPrefix.clear();
  }

  /** The best entries of a hidden state that follows what was read. @param {Float32Array} hidden (D,) @param {number[]} read token ids
   * @returns {Found} */
  find(hidden, read) {
    return /** @type {Search} */ (this.search).find(hidden, read);
  }

  /** The text's log-probs: those of the decoder where nothing is found. @param {Found} found @param {Float32Array} lm (V,) */
  logProbs({ weights, values }, lm) {
    return values.length ? knnLogProbs(weights, values, lm.length) : lm;
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

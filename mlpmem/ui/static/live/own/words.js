// @ts-check
/* Which words of what was read a sentence has: the share of their weight, as mlpmem/retrieval/own/words.py has it. */
/** @import { Model } from "../engine/fused.js" */
import { stripped } from "./sentences.js";

const HALF_LIFE = 64; // tokens: what was read so long ago weighs half
const EARLIER = 0.1; // the weight of a word before the last question of a chat
const CONTROL = -2; // in place of a word: a control token
export const REACH = 256; // tokens that are read at most
const COMMON = 600; // ranks of words that say nothing: the, of, is
const [BEFORE, INHERITED] = [8, 0.8]; // sentences whose words a later one has too, and how much of each

/** The word of every token id, -1 for none and CONTROL for control tokens, and the weight of each word.
 * @typedef {{ wordOf: Int32Array, weights: number[] }} Vocabulary */

/** @type {WeakMap<Model, Vocabulary>} */
const known = new WeakMap();

/** A model's vocabulary, computed once. @param {Model} model @returns {Vocabulary} */
export function vocabularyOf(model) {
  const found = known.get(model) ?? vocabulary(model);
  known.set(model, found);
  return found;
}

/** @param {Model} model @returns {Vocabulary} */
function vocabulary({ tokenizer: { pieces, special }, decoder: { shape: { V } } }) {
  /** @type {Map<string, number>} */
  const numbers = new Map();
  const wordOf = new Int32Array(V).fill(-1);
  /** @type {number[]} */
  const weights = [];
  const common = Math.log(Math.min(COMMON, Math.max(2, Math.floor(V / 80))));
  for (let i = 0; i < V; i += 1) {
    const word = stripped(pieces[i] ?? "").toLowerCase();
    if (special.has(i)) wordOf[i] = CONTROL;
    if (special.has(i) || !/[\p{L}\p{N}]/u.test(word)) continue;
    let number = numbers.get(word);
    if (number === undefined) { // the first form is the most frequent
      number = weights.push(Math.fround(Math.max(0, Math.log1p(i) - common))) - 1;
      numbers.set(word, number);
    }
    wordOf[i] = number;
  }
  return { wordOf, weights };
}

/** The words of every sentence, and the weight of each word in this text. */
export class Words {
  /** @param {Vocabulary} vocabulary @param {number[][]} parts the ids of each sentence @param {Set<number>} form ids that every chat has */
  constructor(vocabulary, parts, form) {
    this.vocabulary = vocabulary;
    this.count = parts.length;
    this.ignored = new Set([-1, CONTROL, ...Array.from(form, (id) => vocabulary.wordOf[id])]);
    const own = parts.map((ids) => new Set(ids.map((id) => vocabulary.wordOf[id]).filter((word) => !this.ignored.has(word))));
    /** How much each sentence has of a word. @type {Map<number, Map<number, number>>} */
    this.has = new Map();
    for (const [unit, words] of own.entries()) {
      for (const word of words) this.has.set(word, (this.has.get(word) ?? new Map()).set(unit, 1));
    }
    const most = Math.log1p(this.count);
    this.rarity = new Map(Array.from(this.has, ([word, units]) => [word, Math.log1p(this.count / units.size) / most]));
    for (let unit = 0; unit < this.count; unit += 1) {
      for (let other = Math.max(0, unit - BEFORE); other < unit; other += 1) {
        for (const word of own[other]) {
          const units = /** @type {Map<number, number>} */ (this.has.get(word));
          if (!units.has(unit)) units.set(unit, INHERITED);
        }
      }
    }
  }

  /** The share, 0 .. 1, of the weight of words read that each sentence has. @param {number[]} read token ids */
  shares(read) {
    const { vocabulary: { wordOf, weights }, ignored } = this;
    const said = read.slice(-REACH).map((id) => wordOf[id]);
    const begin = this.#lastQuestion(said);
    /** @type {Map<number, number>} */
    const late = new Map();
    for (let i = said.length - 1; i >= 0; i -= 1) {
      if (ignored.has(said[i]) || late.has(said[i])) continue;
      late.set(said[i], 2 ** (-(said.length - 1 - i) / HALF_LIFE) * (i < begin ? EARLIER : 1));
    }
    const shares = new Float32Array(this.count);
    let total = 0;
    for (const [word, fresh] of late) {
      const weight = fresh * weights[word] * (this.rarity.get(word) ?? 1);
      total += weight;
      for (const [unit, strength] of this.has.get(word) ?? []) shares[unit] += weight * strength;
    }
    return shares.map((share) => share / Math.max(total, 1e-9));
  }

  /** Where a chat's last question begins, 0 for a text without control tokens, which stand between turns; the answer that was
   * begun may have no words yet. @param {number[]} said words */
  #lastQuestion(said) {
    const turns = [0, ...said.flatMap((word, i) => (word === CONTROL ? [i + 1] : []))];
    const spoken = turns.filter((begin, t) => said.slice(begin, turns[t + 1]).some((word) => !this.ignored.has(word)));
    const answered = spoken.length > 1 && spoken.at(-1) === turns.at(-1);
    return spoken.at(answered ? -2 : -1) ?? 0;
  }
}

/** The latest ids read before each of `count` tokens from index `first`. @param {number[]} ids @param {number} first @param {number} count */
export const prefixes = (ids, first, count) => Array.from({ length: count }, (_, i) => ids.slice(Math.max(0, first + i - REACH), first + i));

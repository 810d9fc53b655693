// @ts-check
/* The answers that a gate is fitted to, and what it reads of each token, as mlpmem/engine/text_gate.py makes them.
 *
 * A few of a sentence's words are asked about, among some that no sentence has; the sentence should be given (OPEN), unless it is left out of the search
 * (LEFT_OUT). Requests of no text in particular should be answered by the decoder (GENERAL). K numbers of a state. */
/** @import { Model } from "../engine/fused.js" */
/** @import { Store } from "./store.js" */
/** @import { Search } from "./search.js" */
/** @import { Weights } from "../model/weights/weights.js" */
import { continuation } from "../engine/prompts.js";
import { nearest } from "../engine/fused.js";
import { logSoftmax } from "../engine/distributions.js";
import { features } from "../engine/router.js";
import { ROWS } from "../model/decoder.js";
import { must } from "../model/errors.js";
import { roundToHalf } from "../model/products/halves.js";
import { Chance } from "./chance.js";
import { askedIds, stripped, wordsOf } from "./sentences.js";
import { REACH } from "./words.js";

const [QUESTIONS, EACH] = [24, 6]; // about sentences, and at most about one of them
const FOREIGN = 1; // words of other requests in a question, at most: those who ask have words of their own
const LEAST = 4; // tokens of a sentence that is asked about
const FIRST = 8; // tokens of an answer that is not in the text
export const OPEN = 0;
export const GENERAL = 1;
const LEFT_OUT = 2;
const EDGES = /^[.,;:!?]+|[.,;:!?]+$/g;

/** Token ids of a question and its answer, from index `start`. @typedef {{ ids: number[], start: number }} Answer
 * An answer with each token's state (D,) and what enters the head (D,). @typedef {Answer & { states: Float32Array[], heads: Float32Array[] }} Pass
 * What a gate reads of an answer's tokens. @typedef {{ kind: number, rows: number[][] }} Part */

/** @type {WeakMap<Model, Pass[]>} */
const general = new WeakMap();

/** The states of general requests and their answers, computed once. */
export const referenceStates = {
  /** Reads the requests, unless that is done or their states came with the model. @param {Model} model
   * @returns {Generator<{ done: number, total: number }, void>} */
  *read(model) {
    if (general.has(model)) return;
    const answers = model.live.texts.general.map(([question, text]) => answerOf(model, question, continuation(model, text))).filter(isWhole);
    must(answers.length > 0, `The decoder reads ${model.positions} tokens, too few for a question and its answer.`);
    general.set(model, model.general ? stored(answers, model.general, model.decoder.shape.D) : yield* passes(model, answers));
  },

  /** The states (R, D), once they were read. @param {Model} model */
  of(model) {
    const { D } = model.decoder.shape;
    const states = (general.get(model) ?? []).flatMap((pass) => pass.states);
    const all = new Float32Array(states.length * D);
    for (const [r, state] of states.entries()) all.set(state, r * D);
    return all;
  },
};

/** @param {Model} model @param {string} question @param {number[]} ids of its answer @returns {Answer} */
function answerOf(model, question, ids) {
  const asked = askedIds(model, question);
  return { ids: [...asked, ...ids].slice(0, model.positions), start: asked.length };
}

/** Whether there is a token of the answer; the question alone may fill the positions. @param {Answer} answer */
const isWhole = ({ ids, start }) => ids.length > start;

/** Answers with states that a file has, as mlpmem/space/general.py writes it. @param {Answer[]} answers @param {Weights} weights
 * @param {number} D @returns {Pass[]} */
function stored(answers, weights, D) {
  const R = answers.reduce((sum, { ids, start }) => sum + ids.length - start, 0);
  const [states, heads] = ["states", "heads"].map((name) => weights.copy(name, [R, D], new Float32Array(R * D)));
  let from = 0;
  return answers.map(({ ids, start }) => {
    const rows = Array.from({ length: ids.length - start }, (_, r) => (from + r) * D);
    from += rows.length;
    return { ids, start, states: rows.map((at) => states.subarray(at, at + D)), heads: rows.map((at) => heads.subarray(at, at + D)) };
  });
}

/** Reads answers; what all of them begin with is read once. Yields the tokens read. @param {Model} model @param {Answer[]} answers
 * @returns {Generator<{ done: number, total: number }, Pass[]>} */
function* passes(model, answers) {
  const { shape: { D }, width } = model.decoder;
  const shared = sharedLength(answers);
  const cache = model.decoder.cache();
  for (const _ of model.read(answers[0]?.ids.slice(0, shared) ?? [], cache));
  const total = answers.reduce((sum, { ids }) => sum + ids.length - shared, shared);
  let done = shared;
  /** @type {Pass[]} */
  const read = [];
  for (const { ids, start } of answers) {
    /** @type {Float32Array[]} */
    const states = [];
    /** @type {Float32Array[]} */
    const heads = [];
    let at = shared;
    for (const { hidden, features: entering } of model.read(ids.slice(shared, -1), cache.fork())) {
      for (let r = 0; r < entering.length / D; r += 1, at += 1) {
        if (at < start - 1) continue;
        states.push(hidden.slice(r * width, r * width + D));
        heads.push(entering.slice(r * D, (r + 1) * D));
      }
    }
    read.push({ ids, start, states, heads });
    done += ids.length - shared;
    yield { done, total };
  }
  return read;
}

/** How many tokens all answers begin with, before any of them begins. @param {Answer[]} answers */
function sharedLength(answers) {
  const first = answers[0]?.ids ?? [];
  const most = Math.min(...answers.map(({ start }) => start - 1), first.length);
  let length = 0;
  while (length < most && answers.every(({ ids }) => ids[length] === first[length])) length += 1;
  return length;
}

/** Makes what a gate reads, in the order in which it is fitted. @param {Model} model @param {Store} store @param {number} seed
 * @returns {Generator<{ done: number, total: number }, Part[]>} */
export const partsOf = function* (model, store, seed) {
  const chance = new Chance(seed);
  const parts = (general.get(model) ?? []).map((pass) => ({ kind: GENERAL, rows: rowsOf(model, store, pass) }));
  const foreign = foreignWords(model.live.texts.general.map(([request]) => request));
  const asked = sentences(store, chance).map(({ unit, ids }) => {
    const question = questionAbout(stripped(model.tokenizer.decode(ids)), chance, model.live.texts.asked);
    return { unit, ...answerOf(model, withForeign(question, chance, foreign), ids) };
  }).filter(isWhole);
  const read = yield* passes(model, asked);
  for (const [i, pass] of read.entries()) {
    parts.push({ kind: OPEN, rows: rowsOf(model, store, pass) });
    parts.push({ kind: LEFT_OUT, rows: rowsOf(model, store, pass, asked[i].unit, FIRST) });
  }
  return parts;
};

/** Some sentences of a text, each up to EACH times. @param {Store} store @param {Chance} chance */
function sentences({ parts }, chance) {
  const every = parts.map((ids, unit) => ({ unit, ids }));
  const long = every.filter(({ ids }) => ids.length >= LEAST);
  const some = long.length ? long : every;
  const chosen = chance.sample(some, Math.min(QUESTIONS, some.length));
  return Array.from({ length: EACH }, () => chosen).flat().slice(0, QUESTIONS);
}

/** A question with a third of a sentence's words, as one who has not read it asks. @param {string} text @param {Chance} chance
 * @param {readonly string[]} forms with {} where the words go */
function questionAbout(text, chance, forms) {
  const words = wordsOf(text);
  /** @param {string} about */
  const asked = (about) => chance.choice(forms).replace("{}", () => about);
  if (words.length < 3) {
    const characters = [...text];
    const start = chance.below(Math.floor(characters.length / 2) + 1);
    const end = start + Math.max(2, Math.floor(characters.length / 3));
    return asked(characters.slice(start, end).join(""));
  }
  const every = words.map((_, i) => i);
  const long = every.filter((i) => [...words[i]].length > 3);
  const some = long.length ? long : every;
  const chosen = chance.sample(some, Math.max(1, Math.round(some.length / 3))).sort((a, b) => a - b);
  return asked(chosen.map((i) => words[i].replace(EDGES, "")).join(" "));
}

/** A question with up to FOREIGN words of others among its own. @param {string} question @param {Chance} chance @param {string[]} others */
function withForeign(question, chance, others) {
  const words = wordsOf(question);
  for (const word of chance.sample(others, chance.below(FOREIGN + 1))) words.splice(1 + chance.below(words.length), 0, word);
  return words.join(" ");
}

/** The longer words of requests, each once, in order. @param {string[]} requests */
const foreignWords = (requests) => [...new Set(requests.flatMap((request) => wordsOf(request))
  .map((word) => word.replace(EDGES, "").toLowerCase()).filter((word) => word.length > 3))].sort();

/** What a gate reads before an answer's first `count` tokens, with a sentence left out of the search if one is named.
 * @param {Model} model @param {Store} store @param {Pass} pass @param {number} [without] @param {number} [count] */
function rowsOf(model, store, { ids, start, states, heads }, without = -1, count = states.length) {
  const search = /** @type {Search} */ (store.search);
  const { shape: { D, V } } = model.decoder;
  const distances = search.distances(states.slice(0, count));
  /** @type {number[][]} */
  const rows = [];
  for (let at = 0; at < Math.min(count, states.length); at += ROWS) {
    const some = heads.slice(at, Math.min(at + ROWS, count));
    const logits = model.decoder.logits(Float32Array.from({ length: some.length * D }, (_, i) => some[Math.floor(i / D)][i % D]));
    roundToHalf(logits.subarray(0, some.length * V));
    for (let r = 0; r < some.length; r += 1) {
      const lm = logSoftmax(logits.subarray(r * V, (r + 1) * V));
      const end = start + at + r;
      const found = search.among(/** @type {Float32Array} */ (distances.next().value), ids.slice(Math.max(0, end - REACH), end), without);
      rows.push([...features(lm, store.logProbs(found, lm), 0, nearest(found)), ...found.near]);
    }
  }
  return rows;
}

// @ts-check
/* A given text under every source: Inspect, and the probability of a named token. */
/** @import { Probs, Step, Trace } from "../../core/types.js" */
/** @import { Model } from "./fused.js" */
/** @import { Store } from "../own/store.js" */
import { breathe } from "./breath.js";
import { must } from "../model/errors.js";
import { continuation } from "./prompts.js";
import { stepOf, tableOf } from "./steps.js";
import { TextStream } from "../model/tokenizer.js";
import { prefixes } from "../own/words.js";

const MOST_TOKENS = 512;
const TOP = 5; // candidates per source, and neighbours

/** The ids of a text to be inspected, or those given; throws a LiveError for fewer than two, or too many.
 * @param {Model} model @param {string} text @param {number[]} given @param {boolean} special */
function checkedIds(model, text, given, special) {
  const ids = given.length ? given : model.tokenizer.prompt(text, special);
  const most = Math.min(MOST_TOKENS, model.positions);
  must(ids.length >= 2, `The text must have two tokens or more; got ${ids.length}. Write more.`);
  must(ids.length <= most, `The text must have at most ${most} tokens to be inspected; got ${ids.length.toLocaleString("en")}. Shorten it.`);
  return ids;
}

/** Yields {done, total} after every pass, then {trace}; nothing more once stopped.
 * @param {Model} model @param {{ text: string, ids?: number[], special: boolean, system: string, lmbda: number, store: Store | null, stopped: () => boolean }} call */
export const inspected = async function* (model, { text, ids: given = [], special, system, lmbda, store, stopped }) {
  const ids = checkedIds(model, text, given, special);
  const { tokenizer } = model;
  const begin = performance.now();
  const written = new TextStream();
  /** @type {Step[]} */
  const steps = [];
  for (const states of model.read(ids.slice(0, -1), model.decoder.cache())) {
    const read = prefixes(ids, steps.length + 1, states.features.length / model.decoder.shape.D);
    for (const position of model.positionsOf(states, store, read)) {
      const id = ids[steps.length + 1];
      const ms = (performance.now() - begin) / (steps.length + 1);
      const piece = tokenizer.special.has(id) ? tokenizer.pieces[id] : written.push(tokenizer.bytes[id]);
      steps.push(stepOf(tableOf(position, [id], store, TOP, TOP), tokenizer.pieces, system, lmbda,
        { index: steps.length, id, text: piece, ms, routed: false }));
    }
    yield { done: steps.length, total: ids.length - 1 };
    await breathe();
    if (stopped()) return;
  }
  const { lmbda: _, auto: __, ...settings } = model.live.settings;
  /** @type {Trace} */
  const trace = { v: 1, system, prompt: tokenizer.decode(ids.slice(0, 1)), prompt_ids: ids.slice(0, 1), lmbda,
    settings: { scored: true, ...settings }, model: { bundle: model.live.name }, steps, finish: "end",
    text: tokenizer.decode(ids.slice(1)), cost: {} };
  yield { trace };
};

/** The probability of a word after ids, by source: with a space before it, and as written.
 * @param {Model} model @param {number[]} ids @param {string} text @param {Store | null} store */
export async function probed(model, ids, text, store) {
  must(ids.length > 0 && ids.length < model.positions, "The position is no longer known. Choose a token again.");
  /** @type {Map<string, { named: string, tokens: number[] }>} */
  const words = new Map();
  for (const named of [/^\p{White_Space}/u.test(text) ? text : ` ${text}`, text]) {
    const tokens = continuation(model, named);
    if (tokens.length && !words.has(tokens.join())) words.set(tokens.join(), { named, tokens });
  }
  const rows = [];
  for (const { named, tokens } of words.values()) {
    const probs = await follow(model, ids, tokens, store);
    const p = probs.reduce((whole, token) => /** @type {Probs} */ (Object.fromEntries(
      Object.entries(token).map(([source, value]) => [source, (whole[source] ?? 1) * (value ?? 0)]))), { lm: 1 });
    rows.push({ id: tokens[0], named, p, tokens: probs });
  }
  return rows;
}

/** Every token's probability by source after ids and the tokens before it.
 * @param {Model} model @param {number[]} ids @param {number[]} tokens @param {Store | null} store */
async function follow(model, ids, tokens, store) {
  /** @type {Probs[]} */
  const found = [];
  const context = [...ids, ...tokens.slice(0, -1)];
  must(context.length < model.positions, "The word is too long here. Write a shorter one.");
  let at = 0;
  for (const states of model.read(context, model.decoder.cache())) {
    const read = prefixes(context, at + 1, states.features.length / model.decoder.shape.D);
    for (const { logs } of model.positionsOf(states, store, read)) {
      const id = tokens[at - ids.length + 1];
      at += 1;
      if (id === undefined) continue;
      found.push({ lm: 0, ...Object.fromEntries(Object.entries(logs).map(([source, log]) => [source, Math.exp(log[id])])) });
    }
    await breathe();
  }
  return found;
}

// @ts-check
/* A given text under every source: Inspect, and the probability of a named token. */
/** @import { Probs, Step, Trace } from "../../core/types.js" */
/** @import { Model } from "./fused.js" */
/** @import { Store } from "./store.js" */
import { breathe } from "./breath.js";
import { must } from "../model/errors.js";
import { stepOf, tableOf } from "./steps.js";
import { TextStream } from "../model/tokenizer.js";

const MOST_TOKENS = 512;
const TOP = 5; // candidates per source, and neighbours

/** The ids of a text to be inspected; throws a LiveError for fewer than two tokens, or too many. @param {Model} model @param {string} text */
function checkedIds(model, text) {
  const ids = model.tokenizer.prompt(text);
  const most = Math.min(MOST_TOKENS, model.positions);
  must(ids.length >= 2, `The text must have two tokens or more; got ${ids.length}. Write more.`);
  must(ids.length <= most, `The text must have at most ${most} tokens to be inspected; got ${ids.length.toLocaleString("en")}. Shorten it.`);
  return ids;
}

/** Yields {done, total} after every pass, then {trace}; nothing more once stopped.
 * @param {Model} model @param {{ text: string, system: string, lmbda: number, store: Store | null, stopped: () => boolean }} call */
export const inspected = async function* (model, { text, system, lmbda, store, stopped }) {
  const ids = checkedIds(model, text);
  const { tokenizer } = model;
  const begin = performance.now();
  const written = new TextStream();
  /** @type {Step[]} */
  const steps = [];
  for (const states of model.read(ids.slice(0, -1), model.decoder.cache())) {
    for (const position of model.positionsOf(states, store)) {
      const id = ids[steps.length + 1];
      const ms = (performance.now() - begin) / (steps.length + 1);
      const piece = tokenizer.special.has(id) ? tokenizer.pieces[id] : written.push(tokenizer.bytes[id]);
      steps.push(stepOf(tableOf(position, [id], store, TOP), tokenizer.pieces, system, lmbda,
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

/** The probability of a text's first token after ids, by source: with a space before it, and as written.
 * @param {Model} model @param {number[]} ids @param {string} text @param {Store | null} store */
export async function probed(model, ids, text, store) {
  must(ids.length > 0 && ids.length < model.positions, "The position is no longer known. Choose a token again.");
  const { D } = model.decoder.shape;
  let states = null;
  for (states of model.read(ids, model.decoder.cache())) await breathe();
  must(states !== null, "The position is no longer known. Choose a token again.");
  const last = { hidden: states.hidden.slice(-D), features: states.features.slice(-D) };
  const [{ logs }] = model.positionsOf(last, store);
  /** @type {Map<number, string>} */
  const tokens = new Map();
  for (const named of [/^\p{White_Space}/u.test(text) ? text : ` ${text}`, text]) {
    const [id] = continuation(model, named);
    if (id !== undefined && !tokens.has(id)) tokens.set(id, named);
  }
  /** @type {(id: number) => Probs} */
  const probs = (id) => ({ lm: 0, ...Object.fromEntries(Object.entries(logs).map(([source, log]) => [source, Math.exp(log[id])])) });
  return [...tokens].map(([id, named]) => ({ id, text: model.tokenizer.pieces[id], named, p: probs(id) }));
}

/** The ids of a text as it goes on from another. @param {Model} model @param {string} text */
function continuation({ tokenizer }, text) {
  const anchor = tokenizer.encode("\n");
  const ids = tokenizer.encode(`\n${text}`);
  return anchor.every((id, i) => ids[i] === id) ? ids.slice(anchor.length) : tokenizer.encode(text);
}

// @ts-check
/* Reading a saved conversation, which may come from anybody: known fields of the right type and size only, else an error for a
 * person. Plain values, without DOM; whoever shows them writes text, never markup. */
/** @import { Lambda, Probs, Shown, Step } from "../../core/types.js" */

const SYSTEMS = ["lm", "memory", "knn"];
const ENDS = ["eos", "length", "stop_string", "stop", ""];
const NUMBERS = /** @type {const} */ (["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens", "seed"]);

const [MOST_TURNS, MOST_STEPS, MOST_ROWS, MOST_TEXT] = [1000, 10_000, 64, 20_000];
const AGAIN = "Save the conversation again on this page, and open that file.";

/** `right` is the right answer and its other names. @typedef {{ question: string, own: boolean, right: string[], traces: { [system: string]: Shown } }} OpenedTurn */

/** @type {(isGood: boolean, why: string) => void} */
const check = (isGood, why) => {
  if (!isGood) throw new Error(`The file is not a saved conversation: ${why}. ${AGAIN}`);
};

/** @type {(value: any, why: string) => string} */
const text = (value, why) => {
  check(typeof value === "string" && value.length <= MOST_TEXT, `${why} must be a text of at most ${MOST_TEXT.toLocaleString("en")} characters`);
  return value;
};

/** @type {(value: any, why: string, most?: number) => any[]} */
const list = (value, why, most = MOST_ROWS) => {
  check(Array.isArray(value) && value.length <= most, `${why} must be a list of at most ${most.toLocaleString("en")}`);
  return value;
};

/** @type {(value: any) => boolean} */
const isId = (value) => Number.isSafeInteger(value) && value >= -1;
/** @type {(value: any) => boolean} */
const isShare = (value) => Number.isFinite(value) && value >= 0 && value <= 1 + 1e-6;
/** @type {(value: any) => any} */
const id = (value) => { check(isId(value), "a token has no id"); return value; };
/** @type {(value: any) => any} null where a source has no answer */
const share = (value) => { check(value === null || isShare(value), "a probability must be from 0 to 1"); return value; };
/** @type {(value: any) => any} */
const number = (value) => { check(value === null || Number.isFinite(value), "a number is missing"); return value; };

/** @type {(row: any) => Probs} */
const probs = (row) => {
  check(isShare(row?.lm), "a token has no probability");
  return /** @type {Probs} */ (Object.fromEntries([...SYSTEMS, "fused"].filter((name) => row[name] !== undefined).map((name) => [name, share(row[name])])));
};

/** @type {(row: any, index: number, lmbda: Lambda) => Step} */
const stepOf = (row, index, lmbda) => {
  check(row?.i === index, "its tokens are out of order");
  check(lmbda !== "auto" || isShare(row.lmbda), "a token has no lambda of its own");
  const top = Number.isSafeInteger(row.top) && row.top > 0 && row.top <= MOST_ROWS ? { top: row.top } : {};
  return {
    i: index, id: id(row.id), s: text(row.s, "a token"), p: probs(row.p), rest: probs(row.rest), js: number(row.js ?? null), ms: number(row.ms ?? null),
    cand: list(row.cand, "a token's candidates").map((one) => {
      const [token, shown, lm, memory, knn] = list(one, "a candidate", 5);
      check(isShare(lm), "a candidate has no probability");
      return [id(token), text(shown, "a candidate"), lm, share(memory ?? null), share(knn ?? null)];
    }),
    nn: list(row.nn, "a token's neighbours").map((one) => {
      const [entry, title, group, left, target, targetId, right, distance, weight] = list(one, "a neighbour", 9);
      const [t, g, l, w, r] = [title, group, left, target, right].map((part) => text(part, "a neighbour"));
      return [id(entry), t, g, l, w, id(targetId), r, number(distance), share(weight)];
    }),
    far: list(row.far ?? [], "a token's other neighbours", MOST_ROWS + 1).map((pair) => {
      const [token, mass] = list(pair, "a neighbour's mass", 2);
      return [id(token), share(mass)];
    }),
    ...(lmbda === "auto" ? { lmbda: row.lmbda } : {}), ...top,
  };
};

/** @type {(row: any, system: string) => Shown} */
const traceOf = (row, system) => {
  check(row?.system === system, "an answer is of another column");
  check(row.lmbda === "auto" || isShare(row.lmbda), "lambda must be from 0 to 1");
  check(ENDS.includes(row.finish ?? ""), "an answer ends in an unknown way");
  const steps = list(row.steps, "an answer's tokens", MOST_STEPS).map((step, i) => stepOf(step, i, row.lmbda));
  const forced = list(row.settings?.forced ?? [], "an answer's first tokens", MOST_STEPS);
  check(forced.every((token, i) => token === steps[i]?.id), "its first tokens differ");
  const numbers = NUMBERS.filter((name) => Number.isFinite(row.settings?.[name])).map((name) => [name, row.settings[name]]);
  const model = ["label", "tokenizer_hash"].filter((name) => typeof row.model?.[name] === "string").map((name) => [name, text(row.model[name], "a model")]);
  return { system, lmbda: row.lmbda, settings: { ...Object.fromEntries(numbers), forced }, model: Object.fromEntries(model), steps,
    finish: row.finish ?? "", ...(typeof row.text === "string" ? { text: text(row.text, "an answer") } : {}) };
};

/** The conversation of a file's text; an error if it has none.
 * @type {(file: string) => { turns: OpenedTurn[], lmbda: number | null }} */
export const readConversation = (file) => {
  /** @type {any} */
  let value = null;
  try {
    value = JSON.parse(file);
  } catch {
    check(false, "it is not JSON");
  }
  check(value?.v === 1 && value.kind === "chat", "it is of another kind or version");
  check(value.lmbda === null || isShare(value.lmbda), "lambda must be from 0 to 1");
  const turns = list(value.turns, "its questions", MOST_TURNS).map((row) => {
    const names = SYSTEMS.filter((system) => row?.traces && Object.hasOwn(row.traces, system));
    return { question: text(row?.question, "a question"), own: row.own === true,
      right: list(row.right ?? [], "a right answer's names").map((name) => text(name, "a right answer")),
      traces: Object.fromEntries(names.map((system) => [system, traceOf(row.traces[system], system)])) };
  }).filter(({ question, traces }) => question.trim() && Object.keys(traces).length);
  check(turns.length > 0, "no answer is in it");
  return { turns, lmbda: value.lmbda };
};

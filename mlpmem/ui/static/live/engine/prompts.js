// @ts-check
/* Prompts and a visitor's values, checked: as mlpmem/model/prompts.py and mlpmem/ui/request/inputs.py do. */
/** @import { Options } from "../types.js" */
/** @import { Model } from "./fused.js" */
import { must } from "../model/errors.js";

export const MOST_CHARACTERS = 2000; // of a prompt
const MOST_NEW = 128; // tokens of an answer

/** [name in messages, least, most, default] of each option.
 * @type {{ [option in Exclude<keyof Options, "special" | "stop">]: [string, number, number, number] }} */
export const BOUNDS = {
  max_new_tokens: ["max new tokens", 1, MOST_NEW, 32], temperature: ["temperature", 0, 2, 0], top_p: ["top-p", 0.01, 1, 1],
  top_k: ["top-k", 0, 100000, 0], seed: ["seed", 0, 2 ** 31 - 1, 0], min_p: ["min-p", 0, 1, 0],
  repetition_penalty: ["repetition penalty", 0.1, 10, 1],
};

/** Checked options; throws a LiveError that names the first wrong one. @param {{ [name: string]: any }} values @returns {Options} */
export function checkedOptions(values) {
  /** @type {any} */
  const options = { special: values.special === true, stop: values.stop ?? [] };
  for (const [name, [label, low, high, usual]] of Object.entries(BOUNDS)) {
    const value = values[name] ?? usual;
    const whole = !["max_new_tokens", "top_k", "seed"].includes(name) || Number.isInteger(value);
    must(typeof value === "number" && value >= low && value <= high && whole,
      `${label} must be ${whole ? "" : "a whole number "}between ${low} and ${high.toLocaleString("en")}; got ${value}. Correct it.`);
    options[name] = value;
  }
  return options;
}

/** A text as it is; throws a LiveError if it is empty or too long. @param {string} text @param {string} [what] @param {number} [most] */
export function checkedText(text, what = "prompt", most = MOST_CHARACTERS) {
  must(text.trim() !== "", `The ${what} is empty. Write one, or pick an example.`);
  const length = [...text].length;
  must(length <= most, `The ${what} must have at most ${most.toLocaleString("en")} characters; got ${length.toLocaleString("en")}. Shorten it and try again.`);
  return text;
}

/** The prompt that asks a question. @param {string} question */
const questionPrompt = (question) => `Question: ${question.split(/\p{White_Space}+/u).filter(Boolean).join(" ")} Answer:`;

/** A bare question in the form that the decoder was trained on, if it has one; any other text as it is.
 * @param {string} text @param {boolean} questions */
export function asPrompt(text, questions) {
  const bare = text.trimEnd().endsWith("?") && !text.includes("Answer:");
  return bare && questions ? questionPrompt(text.trim().replace(/^Question:/, "")) : text;
}

/** A prompt's ids; throws a LiveError if it does not fit. @param {Model} model @param {number[]} ids @param {number} count of new tokens */
export function fitting({ positions }, ids, count) {
  must(ids.length > 0, "The prompt is empty. Write a question or the start of a sentence.");
  must(ids.length + count <= positions, `The prompt has ${ids.length} tokens; with ${count} new tokens this decoder has room for ` +
    `${positions - count}. Shorten the prompt or ask for fewer tokens.`);
  return ids;
}

/** A prompt as the model reads it, as text and ids: as it is, or as a chat of one question.
 * @param {Model} model @param {string} prompt @param {Options} options @param {boolean} [chat] */
export function asked(model, prompt, options, chat = false) {
  const { tokenizer, live: { turns } } = model;
  const ids = chat && turns ? turnIds(model, [[prompt, ""]], "") : tokenizer.prompt(prompt, options.special);
  return { prompt: chat && turns ? tokenizer.spelled(ids) : prompt, ids: fitting(model, ids, options.max_new_tokens) };
}

/** The ids of a chat, and how many of its oldest turns do not fit; its last answer is empty. `typed` reads it as lines, unless
 * there is a chat template.
 * @param {Model} model @param {[string, string][]} turns @param {number} count of tokens kept free @param {boolean} typed @param {string} system */
export function fittedChat(model, turns, count, typed, system) {
  const plain = model.live.questions && !typed ? questionIds : lineIds;
  const form = model.live.turns ? turnIds : plain;
  for (let dropped = 0; ; dropped += 1) {
    const ids = form(model, turns.slice(dropped), system);
    if (ids.length + count <= model.positions || dropped === turns.length - 1) return { ids, dropped };
  }
}

/** The ids of turns in the chat template. Control tokens come only from the template: their names in a turn are plain text.
 * @param {Model} model @param {[string, string][]} turns @param {string} system */
function turnIds({ tokenizer, live: { turns: form } }, turns, system) {
  if (!form) return [];
  const names = [...tokenizer.special].map((id) => tokenizer.pieces[id]).sort((a, b) => b.length - a.length);
  /** @type {number[]} */
  const ids = [];
  let text = ""; // since the last control token
  /** @param {string} piece of the template */
  const add = (piece) => {
    for (let rest = piece; rest;) {
      const at = names.map((name) => ({ name, from: rest.indexOf(name) })).filter(({ from }) => from >= 0)
        .reduce((first, other) => (other.from < first.from ? other : first), { name: "", from: rest.length });
      text += rest.slice(0, at.from);
      rest = rest.slice(at.from + at.name.length);
      if (at.name) {
        ids.push(...tokenizer.encode(text), /** @type {number} */ (tokenizer.added.get(at.name)));
        text = "";
      }
    }
  };
  const around = system && form.system;
  if (around) {
    add(around[0]);
    text += system;
  }
  for (const [i, [question, answer]] of turns.entries()) {
    add(i ? form.question : around ? around[1] : form.before);
    text += question;
    add(i < turns.length - 1 ? form.answer : form.end);
    text += answer;
  }
  return [...ids, ...tokenizer.encode(text)];
}

/** @param {Model} model @param {[string, string][]} turns */
function questionIds({ tokenizer }, turns) {
  const last = questionPrompt(turns[turns.length - 1][0]);
  const plain = tokenizer.encode(last);
  const all = tokenizer.prompt(last);
  const ids = all.slice(0, all.length - plain.length);
  for (const [question, answer] of turns.slice(0, -1)) {
    ids.push(...tokenizer.encode(`${questionPrompt(question)} ${answer.trim()}`));
    if (tokenizer.eos !== null) ids.push(tokenizer.eos);
  }
  return [...ids, ...plain];
}

/** @param {Model} model @param {[string, string][]} turns */
const lineIds = ({ tokenizer }, turns) => tokenizer.prompt(turns.flat().slice(0, -1).join("\n"));

/** The ids of a text as it goes on from another. @param {Model} model @param {string} text */
export function continuation({ tokenizer }, text) {
  const anchor = tokenizer.encode("\n");
  const ids = tokenizer.encode(`\n${text}`);
  return anchor.every((id, i) => ids[i] === id) ? ids.slice(anchor.length) : tokenizer.encode(text);
}

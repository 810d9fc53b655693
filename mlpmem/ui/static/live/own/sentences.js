// @ts-check
/* A text in sentences, each keyed as an answer that the decoder would give, as mlpmem/retrieval/own/sentences.py has them.
 *
 * A decoder without a form of questions reads the text in passages. */
/** @import { Model } from "../engine/fused.js" */
import { fittedChat } from "../engine/prompts.js";
import { must } from "../model/errors.js";

const DIFFERENT = ["one 1 six", "Za, b"]; // share no word
const ASKED = "Tell me."; // what every sentence is keyed as an answer to
const LONGEST = 96; // tokens of a sentence; a longer one is cut
const PASSAGE = 256; // tokens of a passage, BOS included
const SPACE = "\\p{White_Space}\\x1c-\\x1f"; // what Python calls white space
const ENDS = new RegExp(`(?<=[.!?\\u2026])["'\\u201d\\u2019)\\]]*[${SPACE}]+|(?<=[\\u3002\\uff01\\uff1f])|[${SPACE}]*\\n[${SPACE}]*`, "gu");
const AROUND = new RegExp(`^[${SPACE}]+|[${SPACE}]+$`, "gu");
const BETWEEN = new RegExp(`[${SPACE}]+`, "u");

/** A text without the white space around it. @param {string} text */
export const stripped = (text) => text.replace(AROUND, "");

/** A text's words. @param {string} text */
export const wordsOf = (text) => text.split(BETWEEN).filter(Boolean);

/** A text's sentences; a line ends one too. @param {string} text */
function sentencesOf(text) {
  const pieces = [];
  let at = 0;
  for (const match of text.matchAll(ENDS)) {
    pieces.push(text.slice(at, match.index + match[0].length));
    at = match.index + match[0].length;
  }
  return [...pieces, text.slice(at)].map(stripped).filter(Boolean);
}

/** The ids of a chat of one question, up to its answer. @param {Model} model @param {string} question */
export const askedIds = (model, question) => fittedChat(model, [[question, ""]], 0, false, "").ids;

/** What every sentence stands behind, [] for a decoder without a form of questions. @param {Model} model */
export const headOf = (model) => (model.live.turns || model.live.questions ? askedIds(model, ASKED) : []);

/** The ids that every chat has. @param {Model} model @returns {Set<number>} */
export function formOf(model) {
  const [first, second] = DIFFERENT.map((text) => askedIds(model, text));
  return new Set(first.filter((id) => second.includes(id)));
}

/** The passages of a text: a sentence each with the token that ends an answer; without a head those of any corpus.
 * @param {Model} model @param {string} text @param {number} head tokens that each stands behind @returns {number[][]} */
export function passagesOf({ tokenizer, positions, eos }, text, head) {
  if (head) {
    const last = tokenizer.eos !== null && (eos.has(tokenizer.eos) || !eos.size) ? tokenizer.eos : Math.min(...eos);
    const end = Number.isFinite(last) ? [last] : [];
    const longest = Math.min(LONGEST, positions - head - end.length);
    must(longest > 0, `The decoder reads ${positions} tokens, and its form of questions takes ${head} of them, so no sentence fits behind it.`);
    return sentencesOf(text).flatMap((sentence) => cut(tokenizer.encode(sentence), longest).map((part) => [...part, ...end]));
  }
  const start = tokenizer.bos ?? tokenizer.eos;
  const ids = [...tokenizer.encode(text), ...(tokenizer.eos === null ? [] : [tokenizer.eos])];
  const before = start === null ? [] : [start];
  return cut(ids, Math.min(PASSAGE, positions) - before.length).map((part) => [...before, ...part]);
}

/** @param {number[]} ids @param {number} width */
const cut = (ids, width) => Array.from({ length: Math.ceil(ids.length / width) }, (_, i) => ids.slice(i * width, (i + 1) * width));

/** The sentences of passages: each token's number, by passage, and the ids of every sentence. One begins with each passage,
 * and behind a token that ends a sentence.
 * @param {number[][]} passages @param {string[]} pieces @returns {{ units: number[][], parts: number[][] }} */
export function unitsOf(passages, pieces) {
  /** @type {number[][]} */
  const parts = [];
  const units = passages.map((passage) => {
    let begins = true;
    return passage.map((id) => {
      if (begins) parts.push([]);
      parts[parts.length - 1].push(id);
      const piece = pieces[id] ?? "";
      begins = /[.!?]$/.test(stripped(piece)) || piece.includes("\n");
      return parts.length - 1;
    });
  });
  return { units, parts };
}

// @ts-check
/* Markdown within a line: code, bold, italic, struck out, links, escapes. Nothing here makes markup: the result is a
 * structure over the text's own characters, each in exactly one leaf. */
/** @import { Block, Leaf } from "../types.js" */

/** @typedef {(Block | Leaf)[]} Kids */

const SAFE = /^(?:https?:\/\/|mailto:)[^\s<>"]+$/i;
const BARE = /^https?:\/\/[^\s<>"`]*[^\s<>"`.,;:!?'")\]]/i;
const PAIRS = ["**", "__", "~~", "*", "_"];
/** @type {{ [mark: string]: string }} */
const TAGS = { "**": "strong", __: "strong", "~~": "del", "*": "em", _: "em" };

/** @type {(from: number, to: number, mark?: boolean) => Leaf} */
export const leaf = (from, to, mark = false) => ({ from, to, mark });

/** @type {(character: string | undefined) => boolean} */
const isWord = (character) => character !== undefined && /[\p{L}\p{N}]/u.test(character);

/** The structure of text[from, to). @param {string} text @param {number} from @param {number} to @returns {Kids} */
export function inline(text, from, to) {
  /** @type {Kids} */
  const kids = [];
  let plain = from; // where the plain text before `at` begins
  let at = from;
  while (at < to) {
    const found = special(text, at, from, to);
    if (found) {
      if (plain < at) kids.push(leaf(plain, at));
      kids.push(...found.kids);
      at = found.end;
      plain = at;
    } else at += 1;
  }
  if (plain < to) kids.push(leaf(plain, to));
  return kids;
}

/** The construct that begins at `at`, with its end; null for plain text.
 * @param {string} text @param {number} at @param {number} from @param {number} to @returns {{ kids: Kids, end: number } | null} */
function special(text, at, from, to) {
  const character = text[at];
  if (character === "\\" && at + 1 < to && /[!-/:-@[-`{-~]/.test(text[at + 1])) {
    return { kids: [leaf(at, at + 1, true), leaf(at + 1, at + 2)], end: at + 2 };
  }
  if (character === "`") return code(text, at, to);
  if (character === "[" || (character === "!" && text[at + 1] === "[")) return link(text, at, to);
  if (character === "h" && !isWord(text[at - 1])) return bare(text, at, to);
  const mark = "*_~".includes(character) ? PAIRS.find((pair) => text.startsWith(pair, at)) : undefined;
  return mark ? pair(text, at, from, to, mark) : null;
}

/** @param {string} text @param {number} at @param {number} to */
function code(text, at, to) {
  const ticks = /^`+/.exec(text.slice(at, to))?.[0] ?? "`";
  const open = at + ticks.length;
  let close = text.indexOf(ticks, open);
  while (close >= 0 && text[close + ticks.length] === "`") {
    close = text.indexOf(ticks, close + (/^`+/.exec(text.slice(close))?.[0].length ?? 1));
  }
  if (close < 0 || close + ticks.length > to || close === open) return null;
  const end = close + ticks.length;
  const block = { tag: "code", kids: [leaf(at, open, true), leaf(open, close), leaf(close, end, true)] };
  return { kids: [block], end };
}

/** A link to the web or an address; of an image only its text is shown, because nothing is loaded.
 * @param {string} text @param {number} at @param {number} to */
function link(text, at, to) {
  const found = /^!?\[([^\]\n]+)\]\(([^()\s]+(?:\([^()\s]*\)[^()\s]*)*)\)/.exec(text.slice(at, to));
  if (!found || !SAFE.test(found[2])) return null;
  const open = at + found[0].indexOf("[") + 1;
  const close = open + found[1].length;
  const end = at + found[0].length;
  const kids = [leaf(at, open, true), ...inline(text, open, close), leaf(close, end, true)];
  return { kids: [{ tag: "a", attrs: { href: found[2] }, kids }], end };
}

/** @param {string} text @param {number} at @param {number} to */
function bare(text, at, to) {
  const found = BARE.exec(text.slice(at, to));
  if (!found) return null;
  const end = at + found[0].length;
  return { kids: [{ tag: "a", attrs: { href: found[0] }, kids: [leaf(at, end)] }], end };
}

/** Text between two equal marks; underscores within a word are plain.
 * @param {string} text @param {number} at @param {number} from @param {number} to @param {string} mark */
function pair(text, at, from, to, mark) {
  const open = at + mark.length;
  const before = at > from ? text[at - 1] : undefined;
  if (open >= to || /\s/.test(text[open]) || (mark[0] === "_" && isWord(before))) return null;
  for (let close = text.indexOf(mark, open + 1); close >= 0 && close + mark.length <= to; close = text.indexOf(mark, close + 1)) {
    const end = close + mark.length;
    const next = end < to ? text[end] : undefined;
    const isPart = next === mark[0] || text[close - 1] === mark[0]; // of a longer run of the mark
    if (/\s/.test(text[close - 1]) || (mark[0] === "_" && isWord(next)) || (isPart && !(next !== mark[0] && mark.length === 2))) continue;
    const kids = [leaf(at, open, true), ...inline(text, open, close), leaf(close, end, true)];
    return { kids: [{ tag: TAGS[mark], kids }], end };
  }
  return null;
}

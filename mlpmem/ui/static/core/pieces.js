// @ts-check
/* Tokens as text: characters of several tokens, line ends and indents. Pure functions on strings. */
import { glyph, quote } from "./dom.js";

const PARTIAL = "\uFFFD"; // a token whose character is not complete yet; the one that completes it has it whole

/** Whether a token is the beginning of a character. @type {(text: string) => boolean} */
export const isPart = (text) => text === PARTIAL;

/** The first and the last token of the character that token i is part of; [i, i] for a token of its own.
 * @type {(texts: string[], i: number) => [number, number]} */
export const characterAt = (texts, i) => {
  let last = i;
  while (last < texts.length - 1 && isPart(texts[last])) last += 1;
  let first = i;
  while (first > 0 && isPart(texts[first - 1])) first -= 1;
  return [first, last];
};

/** A token's name in a sentence; of a character's part, the part and the character.
 * @type {(texts: string[], i: number) => string} */
export const named = (texts, i) => {
  const [first, last] = characterAt(texts, i);
  if (first === last || isPart(texts[last])) return quote(texts[i]);
  return `part ${i - first + 1} of ${last - first + 1} of ${quote(texts[last])}`;
};

/** A token's text in pieces: strings, and signs for line ends and tabs. A line end is followed by its break;
 * spaces after the last one are the next line's indent and stay spaces, as do spaces alone.
 * @type {(text: string) => (string | { sign: string })[]} */
export const pieces = (text) => {
  if (/^ +$/.test(text)) return [text];
  const lines = text.split("\n");
  return lines.flatMap((line, i) => {
    const shown = line.trim() ? glyph(line) : line.replace(/[^ ]/g, (c) => glyph(c));
    const own = shown || (text === "" ? glyph("") : "");
    return [...(own ? [own] : []), ...(i < lines.length - 1 ? [{ sign: "↵" }, "\n"] : [])];
  });
};

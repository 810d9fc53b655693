// @ts-check
/* Markdown as a structure over a text: blocks whose leaves are parts of the text, in order, each character once. So a
 * token of the text keeps its place in it, and no markup of a text ever runs. */
/** @import { Block, Leaf } from "../types.js" */
import { inline, leaf } from "./inline.js";

/** A line: `at` is its first character, `from` the first after its containers' marks, `to` its end without the line end.
 * @typedef {{ at: number, from: number, to: number, end: number }} Line */

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^`\n]*$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^([ \t]*)([-*+]|\d{1,9}[.)])([ \t]+|$)/;
const DELIMITER = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

/** The blocks of a text. @param {string} text @returns {Block[]} */
export function blocksOf(text) {
  /** @type {Line[]} */
  const lines = [];
  for (let at = 0; at < text.length;) {
    const stop = text.indexOf("\n", at);
    const to = stop < 0 ? text.length : stop;
    lines.push({ at, from: at, to, end: stop < 0 ? to : stop + 1 });
    at = stop < 0 ? to : stop + 1;
  }
  return blocks(text, lines);
}

/** @param {string} text @param {Line} line */
const said = (text, line) => text.slice(line.from, line.to);

/** @param {string} line */
const indentOf = (line) => line.length - line.trimStart().length;

/** @param {string} text @param {Line[]} lines @returns {Block[]} */
function blocks(text, lines) {
  /** @type {Block[]} */
  const found = [];
  for (let i = 0; i < lines.length;) {
    const { block, next } = blockAt(text, lines, i);
    found.push(block);
    i = next;
  }
  return found;
}

/** @typedef {{ block: Block, next: number }} Found */

/** The block that begins at line i, and the line after it. @param {string} text @param {Line[]} lines @param {number} i @returns {Found} */
function blockAt(text, lines, i) {
  const line = said(text, lines[i]);
  if (!line.trim()) return { block: { tag: "gap", kids: [leaf(lines[i].at, lines[i].end, true)] }, next: i + 1 };
  const fence = FENCE.exec(line);
  if (fence) return fenced(text, lines, i, fence);
  if (RULE.test(line)) return { block: { tag: "hr", kids: [leaf(lines[i].at, lines[i].end, true)] }, next: i + 1 };
  const heading = HEADING.exec(line);
  if (heading) return headed(text, lines[i], heading, i);
  if (QUOTE.test(line)) return quoted(text, lines, i);
  if (ITEM.test(line)) return listed(text, lines, i);
  if (line.includes("|") && i + 1 < lines.length && DELIMITER.test(said(text, lines[i + 1])) && said(text, lines[i + 1]).includes("-")) {
    return tabled(text, lines, i);
  }
  return paragraph(text, lines, i);
}

/** Whether a line begins a block other than a paragraph. @param {string} line */
const isOther = (line) => !line.trim() || FENCE.test(line) || RULE.test(line) || HEADING.test(line) || QUOTE.test(line) || ITEM.test(line);

/** @param {string} text @param {Line[]} lines @param {number} i @returns {Found} */
function paragraph(text, lines, i) {
  let next = i + 1;
  while (next < lines.length && !isOther(said(text, lines[next]))) next += 1;
  /** @type {(Block | Leaf)[]} */
  const kids = [];
  const own = lines.slice(i, next);
  const whole = own.every((line, k) => k === 0 || line.at === line.from); // without containers' marks inside
  const spaces = indentOf(said(text, own[0]));
  const indent = spaces < 4 ? spaces : 0; // a deeper one is meant
  if (own[0].at < own[0].from + indent) kids.push(leaf(own[0].at, own[0].from + indent, true));
  const last = own[own.length - 1];
  if (whole) kids.push(...inline(text, own[0].from + indent, last.to));
  else {
    own.forEach((line, k) => {
      if (k && line.at < line.from) kids.push(leaf(line.at, line.from, true));
      kids.push(...inline(text, k ? line.from : line.from + indent, line.to));
      if (k < own.length - 1) kids.push(leaf(line.to, line.end));
    });
  }
  if (last.to < last.end) kids.push(leaf(last.to, last.end, true));
  return { block: { tag: "p", kids }, next };
}

/** @param {string} text @param {Line} line @param {RegExpExecArray} match @param {number} i @returns {Found} */
function headed(text, line, match, i) {
  const from = line.from + match[0].length;
  const kids = [leaf(line.at, from, true), ...inline(text, from, line.to)];
  if (line.to < line.end) kids.push(leaf(line.to, line.end, true));
  return { block: { tag: `h${Math.min(6, match[1].length + 2)}`, kids }, next: i + 1 };
}

/** A block of code; while it is written, its end is missing. @param {string} text @param {Line[]} lines @param {number} i @param {RegExpExecArray} match @returns {Found} */
function fenced(text, lines, i, match) {
  const closes = new RegExp(`^ {0,3}\\${match[1][0]}{${match[1].length},}[ \\t]*$`);
  const kids = [leaf(lines[i].at, lines[i].end, true)];
  let next = i + 1;
  while (next < lines.length && !closes.test(said(text, lines[next]))) {
    const { at, from, to, end } = lines[next];
    const isLast = next + 1 < lines.length && closes.test(said(text, lines[next + 1]));
    if (at < from) kids.push(leaf(at, from, true));
    if (from < to) kids.push(leaf(from, to));
    if (to < end) kids.push(leaf(to, end, isLast));
    next += 1;
  }
  if (next < lines.length) {
    kids.push(leaf(lines[next].at, lines[next].end, true));
    next += 1;
  }
  return { block: { tag: "pre", kids, attrs: { "data-language": match[2] } }, next };
}

/** @param {string} text @param {Line[]} lines @param {number} i @returns {Found} */
function quoted(text, lines, i) {
  /** @type {Line[]} */
  const own = [];
  let next = i;
  for (; next < lines.length; next += 1) {
    const match = QUOTE.exec(said(text, lines[next]));
    if (!match) break;
    own.push({ ...lines[next], from: lines[next].from + match[0].length });
  }
  return { block: { tag: "blockquote", kids: blocks(text, own) }, next };
}

/** A list with its items' own blocks. @param {string} text @param {Line[]} lines @param {number} i @returns {Found} */
function listed(text, lines, i) {
  const [, space, mark] = ITEM.exec(said(text, lines[i])) ?? ["", "", "-"];
  const numbered = /\d/.test(mark);
  /** @type {Block[]} */
  const items = [];
  let next = i;
  while (next < lines.length) {
    const match = ITEM.exec(said(text, lines[next]));
    if (!match || match[1].length > space.length + 1 || match[1].length < space.length || /\d/.test(match[2]) !== numbered) break;
    const inner = match[1].length + match[2].length + Math.min(4, Math.max(1, match[3].length));
    /** @type {Line[]} */
    const own = [{ ...lines[next], from: Math.min(lines[next].to, lines[next].from + inner) }];
    next += 1;
    while (next < lines.length && belongs(text, lines, next, Math.min(inner, space.length + 2))) {
      const indent = indentOf(said(text, lines[next]));
      own.push({ ...lines[next], from: lines[next].from + Math.min(inner, indent) });
      next += 1;
    }
    items.push({ tag: "li", kids: blocks(text, own) });
  }
  const start = numbered ? { start: String(Number.parseInt(mark, 10)) } : undefined;
  return { block: { tag: numbered ? "ol" : "ul", kids: items, attrs: start }, next };
}

/** Whether a line belongs to an item: it is indented, or blank with such a line or a next item after it.
 * @param {string} text @param {Line[]} lines @param {number} i @param {number} indent */
function belongs(text, lines, i, indent) {
  const line = said(text, lines[i]);
  if (line.trim()) return indentOf(line) >= indent;
  const after = lines.slice(i).find((one) => said(text, one).trim());
  if (!after) return false;
  const next = said(text, after);
  return indentOf(next) >= indent || ITEM.test(next);
}

/** @param {string} text @param {Line[]} lines @param {number} i @returns {Found} */
function tabled(text, lines, i) {
  const head = { tag: "thead", kids: [row(text, lines[i], "th")] };
  const rule = { tag: "gap", kids: [leaf(lines[i + 1].at, lines[i + 1].end, true)] };
  /** @type {Block[]} */
  const rows = [];
  let next = i + 2;
  while (next < lines.length && said(text, lines[next]).includes("|")) {
    rows.push(row(text, lines[next], "td"));
    next += 1;
  }
  return { block: { tag: "table", kids: [head, rule, { tag: "tbody", kids: rows }] }, next };
}

/** A row: its bars are marks in the cell before them. @param {string} text @param {Line} line @param {string} tag @returns {Block} */
function row(text, { at, from, to, end }, tag) {
  const stop = from + text.slice(from, to).replace(/[ \t]*\|?[ \t]*$/, "").length;
  /** @type {Block[]} */
  const cells = [];
  let begin = from + (/^[ \t]*\|?[ \t]*/.exec(text.slice(from, stop))?.[0].length ?? 0);
  let mark = at;
  while (begin <= stop) {
    const bar = /(?<!\\)\|/.exec(text.slice(begin, stop));
    const close = bar ? begin + bar.index : stop;
    const shut = begin + text.slice(begin, close).trimEnd().length;
    const after = bar ? close + 1 + (/^[ \t]*/.exec(text.slice(close + 1, stop))?.[0].length ?? 0) : end;
    const kids = [...(mark < begin ? [leaf(mark, begin, true)] : []), ...inline(text, begin, shut), ...(shut < after ? [leaf(shut, after, true)] : [])];
    cells.push({ tag, kids });
    if (!bar) break;
    begin = after;
    mark = after;
  }
  return { tag: "tr", kids: cells };
}

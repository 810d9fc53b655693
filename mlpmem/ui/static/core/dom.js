// @ts-check
/* Small DOM helpers. Text is set by textContent only, never as markup. */
/** @import { Lambda } from "./types.js" */

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element's attributes (null, undefined and false omit one), `on` event listeners, `style` properties.
 * @typedef {{ on?: { [event: string]: (event: any) => void }, style?: { [property: string]: string | number } } &
 *   { [name: string]: any }} Attrs
 */

/** @template {HTMLElement | SVGElement} E @param {E} node @param {Attrs | null} attrs @param {any[]} children */
function fill(node, attrs, children) {
  for (const [name, value] of Object.entries(attrs || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [event, fn] of Object.entries(attrs?.on ?? {})) node.addEventListener(event, fn);
    } else if (name === "style") {
      for (const [key, v] of Object.entries(attrs?.style ?? {})) node.style.setProperty(key, String(v));
    } else {
      node.setAttribute(name, value === true ? "" : String(value));
    }
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

/** An HTML element; strings among the children become text nodes.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag @param {Attrs | null} [attrs] @param {any[]} children @returns {HTMLElementTagNameMap[K]} */
export function h(tag, attrs = null, ...children) {
  return fill(document.createElement(tag), attrs, children);
}

/** An SVG element.
 * @template {keyof SVGElementTagNameMap} K
 * @param {K} tag @param {Attrs | null} [attrs] @param {any[]} children @returns {SVGElementTagNameMap[K]} */
export function svg(tag, attrs = null, ...children) {
  return fill(document.createElementNS(SVG, tag), attrs, children);
}

/** The element in `root` that a selector matches; it must exist.
 * @type {(root: Element, selector: string) => HTMLElement} */
export const inside = (root, selector) => {
  const found = root.querySelector(selector);
  if (found instanceof HTMLElement) return found;
  throw new Error(`${selector} is not on the page`);
};

/** The button of a tab, by its text. @type {(name: string) => HTMLElement | undefined} */
export const tabNamed = (name) => [.../** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("[role=tab]"))]
  .find((tab) => tab.textContent.trim() === name);

/** Opens a tab and returns what it holds, null after some seconds: Gradio lays a tab out when it is opened.
 * @template T @param {string} name @param {() => T | null} find @returns {Promise<T | null>} */
export const inTab = async (name, find) => {
  tabNamed(name)?.click();
  for (let tries = 0; !find() && tabNamed(name) && tries < 50; tries += 1) await new Promise((done) => { setTimeout(done, 100); });
  return find();
};

/** Whether an event's target is inside an element that a selector matches.
 * @type {(event: Event, selector: string) => boolean} */
export const isFrom = ({ target }, selector) => target instanceof Element && target.closest(selector) !== null;

/** Replaces text only if it differs, so that repaints are cheap.
 * @type {(node: Element, text: string) => void} */
export const setText = (node, text) => {
  if (node.textContent === text) return;
  const [only] = node.childNodes;
  if (only instanceof Text && node.childNodes.length === 1 && text) only.data = text; // a new node costs a layout more
  else node.textContent = text;
};

/** Writes a text into a Gradio box, which updates a little later.
 * @type {(area: HTMLTextAreaElement, text: string) => void} */
export const write = (area, text) => {
  area.value = text;
  area.dispatchEvent(new Event("input", { bubbles: true }));
};

/** The names of tokens that end a text. */
const END = /^(<\/s>|<eos>|<end_of_turn>|<\|(im_end|endoftext|end_of_text|eot_id|eom_id|end)\|>|<｜end▁of▁sentence｜>)$/;
/** Whether a token ends a text. @type {(text: string) => boolean} */
export const isEnd = (text) => END.test(text);

/** A token's text with its invisible characters made visible. @type {(text: string) => string} */
export const glyph = (text) => {
  if (text === "") return "∅";
  if (isEnd(text)) return "end";
  const shown = text.replace(/\uFFFD/g, "▫").replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/\r/g, "␍")
    .replace(/[\u202A-\u202E\u2066-\u2069]/g, "▫"); // what would turn the text around it
  return /^ +$/.test(shown) ? "␣".repeat(shown.length) : shown;
};

/** A token's text with a faint dot for its leading space, for lists of single tokens.
 * @type {(text: string) => [HTMLElement | "", string]} */
export const single = (text) => {
  const word = glyph(text);
  const spaced = word.startsWith(" ");
  return [spaced ? h("span", { class: "lead", "aria-hidden": "true" }, "·") : "",
    spaced ? word.slice(1) : word];
};

/** A token's text between quotation marks, for sentences. @type {(text: string) => string} */
export const quote = (text) => `“${glyph(text).trim() || glyph(text)}”`;

/** A probability from 0 to 1 with three significant digits. @type {(p: number) => string} */
export const digits = (p) => (p >= 0.1 || p === 0 ? p.toFixed(3) : p >= 0.0001 ? p.toPrecision(3) : p.toExponential(2));

/** A probability as per cent, at most five characters. @type {(p: number | null | undefined) => string} */
export const percent = (p) => {
  if (p === null || p === undefined) return "–";
  const value = 100 * p;
  if (value >= 99.95) return "100";
  if (value >= 0.95) return value.toFixed(1);
  if (value >= 0.01) return value.toFixed(2);
  if (value >= 0.001) return value.toFixed(3);
  return value > 0 ? value.toExponential(0) : "0";
};

/** A number with at most two decimals. @type {(value: number) => string} */
export const short = (value) => {
  if (!Number.isFinite(value)) return "–";
  if (value >= 100) return String(Math.round(value));
  return value >= 10 ? value.toFixed(1) : value.toFixed(2);
};

/** @type {(bytes: number) => string} */
export const megabytes = (bytes) => {
  const value = bytes / 1e6;
  if (value < 0.1) return `${Math.ceil(bytes / 1e3)} kB`;
  return `${value >= 100 ? Math.round(value) : value.toFixed(1)} MB`;
};

/** Lambda with two decimals, up to four if needed.
 * @type {(value: Lambda) => string} */
export const lambdaText = (value) =>
  (value === "auto" ? "auto" : value.toFixed(4).replace(/0{1,2}$/, ""));

export const isPhone = () => window.matchMedia("(max-width: 640px)").matches;
/** Whether the token drawer is a sheet over the page, and not beside the columns; as in drawer.css. */
export const hasSheet = () => window.matchMedia("(max-width: 1179px)").matches;
export const isCalm = () => window.matchMedia("(prefers-reduced-motion: reduce)").matches;

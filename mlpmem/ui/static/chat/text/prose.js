// @ts-check
/* An answer's tokens as the words of its prose: Compare's strip of tokens, laid out as Markdown.
 *
 * Marks such as asterisks are in the page too, and shown with the sources. Tokens are plain text for assistive tools
 * until the sources are shown or one is selected; then they are a list of options, as in Compare. */
/** @import { Block, Leaf } from "../types.js" */
/** @import { How, Lambda, Shown } from "../../core/types.js" */
import { h } from "../../core/dom.js";
import { TokenStrip } from "../../view/tokens.js";
import { copyButton } from "../copy.js";
import { blocksOf } from "./markdown.js";
import { isEnd, slicesOf } from "./slices.js";

const STRUCTURE = "p, h3, h4, h5, h6, ul, ol, li, pre, code, blockquote, table, thead, tbody, tr, th, td, strong, em, del, div, a";
const EMPTY = { from: 0, to: 0, mark: false };

/** @typedef {{ key: string, root: HTMLElement }} Shelf a block on screen and what it was made of */

export class Prose extends TokenStrip {
  /** @param {string} system @param {(index: number, how: How) => void} pick */
  constructor(system, pick) {
    super(system, (index, how) => { if (how === "key" || window.getSelection()?.isCollapsed !== false) pick(index, how); });
    this.label = this.root.getAttribute("aria-label") ?? "";
    this.root.classList.add("prose");
    this.dressed = false; // tokens are options
    this.tinted = false;
    /** Parts of tokens besides the one that is seen first. @type {[number, HTMLElement][]} */
    this.parts = [];
    /** @type {Shelf[]} */
    this.shelves = [];
    /** @type {{ text: string, starts: number[] }} */
    this.slices = { text: "", starts: [] };
    this.root.addEventListener("click", (event) => this.#tapped(event), true);
    this.#dress(false);
  }

  clear() {
    super.clear();
    this.parts = [];
    this.shelves = [];
  }

  /** Shows a trace; blocks that did not change stay as they are. @param {Shown} trace @param {boolean} growing */
  write(trace, growing) {
    const { text, starts } = slicesOf(trace, growing);
    this.slices = { text, starts };
    const blocks = blocksOf(text);
    const edges = [...blocks.map(startOf), text.length];
    let token = 0;
    const shelves = blocks.map((block, i) => {
      const first = token;
      while (token < starts.length && (starts[token] < edges[i + 1] || (i === blocks.length - 1))) token += 1;
      const key = `${first} ${edges[i]} ${starts.slice(first, token).join()} ${block.tag} ${text.slice(edges[i], edges[i + 1])}`;
      const old = this.shelves[i];
      return old?.key === key ? old : { key, root: this.#block(block, trace, { next: first, stop: token }) };
    });
    if (!blocks.length && starts.length) shelves.push({ key: "", root: h("p", null, this.#empties(trace, { next: 0, stop: starts.length })) });
    this.shelves = shelves;
    const same = shelves.findIndex(({ root }, i) => this.root.childNodes[i] !== root);
    if (same >= 0) this.root.replaceChildren(...[...this.root.childNodes].slice(0, same), ...shelves.slice(same).map(({ root }) => root));
    while (this.root.childNodes.length > shelves.length) this.root.lastChild?.remove();
    this.#count();
    if (trace.finish === "eos") this.markEnd();
  }

  /** Finds the tokens' elements: of a token's pieces, the first that is seen is the token, the others are its parts. */
  #count() {
    /** @type {HTMLElement[][]} */
    const found = [];
    for (const node of /** @type {NodeListOf<HTMLElement>} */ (this.root.querySelectorAll("[data-index]"))) {
      const index = Number(node.dataset.index);
      found[index] ??= [];
      found[index].push(node);
    }
    this.parts = [];
    this.nodes = found.map((pieces, index) => {
      const first = pieces.find(({ dataset }) => dataset.mark === undefined) ?? pieces.find(({ dataset }) => dataset.mark !== "blank") ?? pieces[0];
      for (const piece of pieces) {
        piece.className = piece === first ? "token" : "part";
        if (piece !== first) this.parts.push([index, piece]);
      }
      return first;
    });
    if (this.dressed) this.#dress(true);
    if (this.selected >= 0) this.#choose();
  }

  /** @param {Block} block @param {Shown} trace @param {{ next: number, stop: number }} cursor @returns {HTMLElement} */
  #block(block, trace, cursor) {
    const { tag, attrs = {}, kids } = block;
    const inner = kids.map((kid) => ("tag" in kid ? this.#block(kid, trace, cursor) : this.#leaf(kid, trace, cursor)));
    if (cursor.next < cursor.stop && cursor.stop === trace.steps.length && endOf(block) >= this.slices.text.length) inner.push(this.#empties(trace, cursor));
    if (tag === "pre") return codeBlock(attrs["data-language"], inner);
    if (tag === "a") return h("a", { href: attrs.href, target: "_blank", rel: "noopener noreferrer nofollow", title: attrs.href }, inner);
    if (tag === "gap") return h("div", { class: "gap" }, inner);
    if (tag === "hr") return h("div", { class: "rule" }, inner);
    if (tag === "table") return h("div", { class: "table-scroll" }, h("table", null, inner));
    return h(/** @type {keyof HTMLElementTagNameMap} */ (tag), { ...attrs, dir: /^(p|h\d|li|td|th)$/.test(tag) ? "auto" : null }, inner);
  }

  /** The pieces of a leaf, one per token. @param {Leaf} leaf @param {Shown} trace @param {{ next: number, stop: number }} cursor */
  #leaf({ from, to, mark }, trace, cursor) {
    const { text, starts } = this.slices;
    /** @type {(string | HTMLElement | (string | HTMLElement)[])[]} */
    const pieces = [];
    for (let at = from; at < to;) {
      let index = Math.max(0, cursor.next - 1);
      while (cursor.next < starts.length && starts[cursor.next] <= at) {
        index = cursor.next;
        cursor.next += 1;
        if ((starts[index + 1] ?? text.length) <= at && index + 1 < starts.length) pieces.push(this.#piece(trace, index, EMPTY));
      }
      const end = Math.min(to, starts[cursor.next] ?? text.length);
      pieces.push(this.#piece(trace, index, { from: at, to: end, mark }));
      at = end;
    }
    return pieces;
  }

  /** The tokens without characters of their own at the end of a text. @param {Shown} trace @param {{ next: number, stop: number }} cursor */
  #empties(trace, cursor) {
    /** @type {(HTMLElement | (string | HTMLElement)[])[]} */
    const pieces = [];
    for (; cursor.next < cursor.stop; cursor.next += 1) pieces.push(this.#piece(trace, cursor.next, EMPTY));
    return pieces;
  }

  /** @param {Shown} trace @param {number} index @param {Leaf} leaf */
  #piece(trace, index, { from, to, mark }) {
    const text = this.slices.text.slice(from, to);
    const spaces = mark || !text.trim() ? "" : /^ */.exec(text)?.[0] ?? "";
    const blank = !text.trim() && !text.includes("\n");
    const node = h("span", { "data-mark": mark ? (blank ? "blank" : "sign") : null, "data-index": index,
      "data-token-id": trace.steps[index]?.id, "data-void": text ? null : "" }, mark ? shownMark(text) : text.slice(spaces.length));
    if (isEnd(trace, index)) node.removeAttribute("data-void");
    return spaces ? [spaces, node] : node; // a mark touches the word
  }

  /** Tokens become options of a list, or plain text again. @param {boolean} on */
  #dress(on) {
    this.dressed = on;
    const { root } = this;
    if (on) {
      root.setAttribute("role", "listbox");
      root.setAttribute("aria-label", this.label);
    } else {
      root.removeAttribute("role");
      root.removeAttribute("aria-label");
    }
    root.toggleAttribute("data-dressed", on);
    for (const node of root.querySelectorAll(STRUCTURE)) {
      if (on) node.setAttribute("role", "presentation");
      else node.removeAttribute("role");
    }
    for (const node of root.querySelectorAll("a")) { // an option holds nothing else to press
      if (on) node.removeAttribute("href");
      else node.setAttribute("href", node.title);
    }
    for (const node of root.querySelectorAll("pre")) {
      if (on) node.removeAttribute("tabindex");
      else node.tabIndex = 0;
    }
    const stop = Math.max(0, this.selected);
    this.nodes.forEach((node, i) => {
      if (on) {
        node.setAttribute("role", "option");
        node.setAttribute("aria-selected", String(i === this.selected));
        node.tabIndex = i === stop ? 0 : -1;
      } else for (const name of ["role", "aria-selected", "aria-label", "tabindex", "title"]) node.removeAttribute(name);
      if (!on) this.painted.delete(node);
    });
  }

  /** Shows the sources of the tokens, or hides them. @param {boolean} on */
  tint(on) {
    this.tinted = on;
    this.root.toggleAttribute("data-tinted", on);
    this.#fit();
  }

  #fit() {
    const wanted = this.tinted || this.selected >= 0;
    if (wanted !== this.dressed) this.#dress(wanted);
  }

  /** @param {Shown} trace @param {Lambda} lambda @param {number} different */
  repaint(trace, lambda, different) {
    if (!this.dressed) return null;
    const flip = super.repaint(trace, lambda, different);
    for (const [index, node] of this.parts) {
      const { move = "same", marks } = this.nodes[index].dataset;
      node.dataset.move = move;
      node.style.setProperty("--w", this.nodes[index].style.getPropertyValue("--w"));
      if (marks) node.dataset.rest = marks;
      else delete node.dataset.rest;
    }
    return flip;
  }

  /** @param {number} index @param {boolean} [focus] */
  select(index, focus) {
    if (index >= 0) {
      this.selected = index;
      this.#fit();
    }
    super.select(index, focus);
    this.#choose();
    this.#fit();
  }

  /** Marks all parts of the selected token. */
  #choose() {
    for (const [index, node] of this.parts) node.toggleAttribute("data-chosen", index === this.selected);
  }

  /** A part of a token selects it; a link opens unless the sources are shown. @param {MouseEvent} event */
  #tapped(event) {
    const { target } = event;
    if (!(target instanceof HTMLElement)) return;
    const anchor = target.closest("a");
    if (anchor && !this.tinted) {
      event.stopImmediatePropagation();
      return;
    }
    if (anchor) event.preventDefault();
    const node = /** @type {HTMLElement | null} */ (target.closest("[data-index]"));
    if (node && !this.nodes.includes(node)) this.pick(Number(node.dataset.index), "pointer");
  }
}

/** A block of code with its language and a button that copies it. @param {string} language @param {any[]} inner */
function codeBlock(language, inner) {
  const code = h("code", null, inner);
  const said = () => {
    const copy = /** @type {HTMLElement} */ (code.cloneNode(true));
    for (const mark of copy.querySelectorAll("[data-mark], [data-end]")) mark.remove();
    return copy.textContent ?? "";
  };
  return h("div", { class: "code-block" },
    h("div", { class: "code-head" }, h("span", null, language || "code"), copyButton("Copy code", said)),
    h("pre", { tabindex: "0", dir: "ltr" }, code));
}

/** Syntax as it is shown with the sources. @param {string} text */
const shownMark = (text) => text.replaceAll("\n", "↵");

/** @param {Block | Leaf} node @returns {number} */
function startOf(node) {
  if (!("tag" in node)) return node.from;
  return node.kids.length ? startOf(node.kids[0]) : 0;
}

/** @param {Block | Leaf} node @returns {number} */
function endOf(node) {
  if (!("tag" in node)) return node.to;
  return node.kids.length ? endOf(node.kids[node.kids.length - 1]) : 0;
}

// @ts-check
/* The tokens of one column: a listbox with one tab stop, arrow keys, colours and marks. */
/** @import { How, Lambda, Shown, Step } from "../core/types.js" */
import { h, isEnd, lambdaText, percent } from "../core/dom.js";
import { creditOf, flipsOf, givenOf, isScored, lambdaAt, mix, shareOf } from "../core/mix.js";
import { isPart, named, pieces } from "../core/pieces.js";
import { inline, nameOf } from "../core/state.js";

/** @typedef {"same" | "up" | "down"} Move */
const STRONG = 4; // nats of credit with full colour: a factor of 55
const WEAK = 0.15; // nats of credit below which a token is not coloured

const MANY = 90; // tokens of a column that are always painted at once
const MARGIN = 240; // pixels around the window within which tokens are painted at once
const LATER = 90; // milliseconds without a change of lambda until the others are painted

/** Counts what may move tokens into the window. */
let moves = 0;
for (const name of ["scroll", "resize"]) window.addEventListener(name, () => { moves += 1; }, { passive: true, capture: true });

const BARE = /^[\s\uFFFD]*$/; // a token without a visible character

export class TokenStrip {
  /** pick(index, how) is called when a visitor selects a token.
   * @param {string} system @param {(index: number, how: How) => void} pick */
  constructor(system, pick) {
    this.system = system;
    this.pick = pick;
    /** @type {HTMLElement[]} */
    this.nodes = [];
    /** The key of each token's last painting. @type {WeakMap<HTMLElement, string>} */
    this.painted = new WeakMap();
    /** The node that shows a part's whole character. @type {WeakMap<HTMLElement, HTMLElement>} */
    this.whole = new WeakMap();
    this.selected = -1;
    /** The first token in or near the window, and the one after the last. @type {[number, number]} */
    this.near = [0, 0];
    this.known = ""; // the key of what `near` was found for
    this.later = 0; // the timer of the others' painting
    this.root = h("div", {
      class: "strip", role: "listbox", dir: "auto", "data-system": system,
      "aria-label": `Tokens, ${inline(system)}`,
      on: {
        click: (event) => this.#clicked(event),
        keydown: (event) => this.#pressed(event),
      },
    });
  }

  clear() {
    this.nodes = [];
    this.selected = -1;
    this.root.replaceChildren();
  }

  /** Removes all tokens from index `count` on. @param {number} count */
  cut(count) {
    for (const node of this.nodes.splice(count)) {
      const space = node.previousSibling;
      if (space instanceof Text) space.remove();
      node.remove();
    }
    if (this.selected < count) return;
    this.selected = -1;
    if (count) this.nodes[0].tabIndex = 0;
  }

  /** @param {Step[]} steps */
  append(steps) {
    for (const step of steps) {
      const node = this.#build(step);
      if (!this.nodes.length) node.tabIndex = 0;
      else if (this.#leads(step)) this.root.append(" ");
      if (!isPart(step.s)) this.#complete(node);
      this.nodes.push(node);
      this.root.append(node);
    }
  }

  /** Empties the tokens before the one that completes their character, which shows it whole.
   * @param {HTMLElement} whole */
  #complete(whole) {
    for (let i = this.nodes.length - 1; i >= 0 && this.nodes[i].dataset.part !== undefined; i -= 1) {
      this.nodes[i].replaceChildren();
      this.whole.set(this.nodes[i], whole);
    }
  }

  /** Whether a token's leading space is put before its element, so that marks touch the word.
   * @param {Step} step */
  #leads(step) {
    return step.s.startsWith(" ") && step.s.trim() !== "";
  }

  /** @param {Step} step */
  #build(step) {
    const node = h("span", {
      class: "token", role: "option", tabindex: "-1", "aria-selected": "false",
      "data-index": step.i, "data-token-id": step.id,
    }, pieces(this.#leads(step) ? step.s.slice(1) : step.s).map((piece) =>
      (typeof piece === "string" ? piece : h("span", { class: "sign", "aria-hidden": "true" }, piece.sign))));
    if (BARE.test(step.s)) node.dataset.bare = "";
    if (isPart(step.s)) node.dataset.part = "";
    if (isEnd(step.s)) node.dataset.end = "";
    return node;
  }

  /** Shows the last token, which ended the answer, as "end". */
  markEnd() {
    const node = this.nodes[this.nodes.length - 1];
    if (!node || node.dataset.end !== undefined) return;
    node.dataset.end = "";
    node.textContent = "end";
  }

  /** Paints colours and marks for `lambda`; `different` is the first index that differs from the decoder.
   * @param {Shown} trace @param {Lambda} lambda @param {number} different */
  repaint(trace, lambda, different) {
    const flips = flipsOf(trace, trace.fixed ? trace.lmbda : lambda); // a scrubbed text says what it was written at
    const first = flips.findIndex((flip) => flip !== null);
    const given = givenOf(trace);
    /** @type {(from: number, to: number) => void} */
    const paint = (from, to) => {
      for (let i = from; i < to && i < this.nodes.length && i < trace.steps.length; i += 1) {
        const step = trace.steps[i];
        const credit = creditOf(step, trace.system, lambda);
        const move = Math.abs(credit) < WEAK ? "same" : credit > 0 ? "up" : "down";
        const marks = (i === given - 1 ? "given " : i === different ? "differs " : "") +
          (flips[i] ? "flips " : "") + (trace.changed?.has(i) ? "changed " : "") +
          (first >= 0 && i > first && !isScored(trace) ? "stale" : "");
        this.#paint(this.nodes[i], step, trace, lambda, move, credit, marks.trim());
      }
    };
    const [from, to] = this.#window();
    paint(from, to);
    window.clearTimeout(this.later);
    if (from > 0 || to < this.nodes.length) {
      this.later = window.setTimeout(() => { paint(0, from); paint(to, this.nodes.length); }, LATER);
    }
    const row = flips[first];
    return row ? { index: first, row } : null;
  }

  /** The range of tokens that are painted at once: all of a short text, else those near the window, which only a long text's
   * layout is asked for, and only after something moved. @returns {[number, number]} */
  #window() {
    const count = this.nodes.length;
    if (count <= MANY) return [0, count];
    const key = `${moves} ${count} ${this.root.isConnected}`;
    if (key === this.known) return this.near;
    this.known = key;
    /** The number of first tokens before a height. @type {(edge: "top" | "bottom", height: number) => number} */
    const before = (edge, height) => {
      let [low, high] = [0, count];
      while (low < high) {
        const middle = (low + high) >> 1;
        if (this.nodes[middle].getBoundingClientRect()[edge] < height) low = middle + 1;
        else high = middle;
      }
      return low;
    };
    this.near = this.root.getClientRects().length ? [before("bottom", -MARGIN), before("top", window.innerHeight + MARGIN)] : [0, 0];
    return this.near;
  }

  /** @param {HTMLElement} node @param {Step} step @param {Shown} trace @param {Lambda} lambda
   * @param {Move} move @param {number} credit @param {string} marks */
  #paint(node, step, trace, lambda, move, credit, marks) {
    const weight = Math.min(1, Math.abs(credit) / STRONG).toFixed(2);
    const share = isScored(trace) ? shareOf(step, trace.system, lambda).toFixed(2) : "";
    const own = lambda === "auto" ? lambdaText(Number(lambdaAt(step, lambda).toFixed(2))) : "";
    const key = `${move}${weight}${share}${marks}${own}`;
    if (this.painted.get(node) === key) return;
    this.painted.set(node, key);
    node.dataset.move = move;
    node.style.setProperty("--w", move === "same" ? "0" : weight);
    node.title = own && `λ ${own} here`;
    if (share) node.style.setProperty("--share", share);
    if (marks) node.dataset.marks = marks;
    else delete node.dataset.marks;
    node.setAttribute("aria-label", this.#label(step, trace, lambda, move));
  }

  /** @param {Step} step @param {Shown} trace @param {Lambda} lambda @param {Move} move */
  #label(step, trace, lambda, move) {
    const weight = lambdaAt(step, lambda);
    const fused = percent(mix(step.p, trace.system, weight));
    const moved = { up: "raised", down: "lowered", same: "unchanged" }[move];
    const own = trace.system === "lm" ? "" : `, ${moved} by the ${nameOf(trace.system).source}`;
    const changed = trace.changed?.has(step.i) ? ", changed" : "";
    const chosen = lambda === "auto" ? `, lambda ${weight.toFixed(2)}` : "";
    const name = named(trace.steps.map((one) => one.s), step.i);
    return `${name}, ${fused} per cent${own}${chosen}${changed}`;
  }

  /** Marks the tokens that a document is evidence for; null removes the marks.
   * @param {Set<number> | null} indices */
  cite(indices) {
    this.root.toggleAttribute("data-citing", indices !== null);
    for (const [i, node] of this.nodes.entries()) node.toggleAttribute("data-cited", Boolean(indices?.has(i)));
  }

  /** Marks one token as selected, and moves the focus there with `focus`.
   * @param {number} index @param {boolean} [focus] */
  select(index, focus) {
    const old = this.nodes[this.selected];
    if (old) {
      old.setAttribute("aria-selected", "false");
      this.whole.get(old)?.removeAttribute("data-held");
    }
    this.selected = index;
    const node = this.nodes[index];
    if (!node) return;
    for (const other of this.nodes) other.tabIndex = other === node ? 0 : -1;
    node.setAttribute("aria-selected", "true");
    this.whole.get(node)?.setAttribute("data-held", "");
    if (focus) node.focus({ preventScroll: false });
  }

  /** Scrolls the selected token into view, next to a sheet's upper edge if it would be covered. */
  reveal() {
    this.nodes[this.selected]?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  /** @param {MouseEvent} event */
  #clicked({ target }) {
    const at = target instanceof HTMLElement ? this.nodes.indexOf(target) : -1;
    if (at >= 0) this.pick(at, "pointer");
  }

  /** @param {KeyboardEvent} event */
  #pressed(event) {
    const at = this.nodes.indexOf(/** @type {HTMLElement} */ (event.target));
    if (at < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const last = this.nodes.length - 1;
    /** @type {{ [key: string]: number }} */
    const goals = {
      ArrowRight: Math.min(last, at + 1), ArrowLeft: Math.max(0, at - 1),
      Home: 0, End: last, Enter: at, " ": at,
    };
    const goal = goals[event.key];
    if (goal === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    this.pick(goal, "key");
  }
}

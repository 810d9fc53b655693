// @ts-check
/* The tokens of one column: a listbox with one tab stop, arrow keys, colours and marks. */
import { glyph, h, lambdaText, percent, quote } from "../core/dom.js";
import { creditOf, flipsOf, givenOf, isScored, lambdaAt, mix, shareOf } from "../core/mix.js";
import { inline, nameOf } from "../core/state.js";

const STRONG = 4; // nats of credit at which the colour is full: a factor of 55
const WEAK = 0.15; // nats below which a token counts as not moved

const BARE = /^[\s\uFFFD]*$/; // a token that shows no character of its own

export class TokenStrip {
  /** pick(index, how) is called when a visitor chooses a token. */
  constructor(system, pick) {
    this.system = system;
    this.pick = pick;
    this.nodes = [];
    this.selected = -1;
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

  /** Takes away all tokens from index `count` on. */
  cut(count) {
    while (this.nodes.length > count) {
      const node = this.nodes.pop();
      const space = node.previousSibling;
      if (space?.nodeType === Node.TEXT_NODE) space.remove();
      node.remove();
    }
    if (this.selected < count) return;
    this.selected = -1;
    if (count) this.nodes[0].tabIndex = 0;
  }

  append(steps) {
    for (const step of steps) {
      const node = this.#build(step);
      if (!this.nodes.length) node.tabIndex = 0;
      else if (this.#leads(step)) this.root.append(" ");
      this.nodes.push(node);
      this.root.append(node);
    }
  }

  /** Whether a token begins with a space that can stand before it, so that marks hug the word. */
  #leads(step) {
    return step.s.startsWith(" ") && step.s.trim() !== "";
  }

  #build(step) {
    const node = h("span", {
      class: "token", role: "option", tabindex: "-1", "aria-selected": "false",
      "data-index": step.i, "data-token-id": step.id,
    }, glyph(this.#leads(step) ? step.s.slice(1) : step.s));
    if (step.s.includes("\n")) node.dataset.newline = "";
    if (BARE.test(step.s)) node.dataset.bare = "";
    return node;
  }

  /** The last token ended the answer: show so, whatever the tokenizer calls it. */
  markEnd() {
    const node = this.nodes[this.nodes.length - 1];
    if (!node || node.dataset.end !== undefined) return;
    node.dataset.end = "";
    node.textContent = "end";
  }

  /** Colours and marks for `lambda`; `different` is the first index that leaves the decoder. */
  repaint(trace, lambda, different) {
    const flips = flipsOf(trace, lambda);
    const first = flips.findIndex((flip) => flip !== null);
    const given = givenOf(trace);
    for (let i = 0; i < this.nodes.length && i < trace.steps.length; i += 1) {
      const step = trace.steps[i];
      const credit = creditOf(step, trace.system, lambda);
      const move = Math.abs(credit) < WEAK ? "same" : credit > 0 ? "up" : "down";
      const marks = (i === given - 1 ? "given " : i === different ? "differs " : "") +
        (flips[i] ? "flips " : "") + (trace.changed?.has(i) ? "changed " : "") +
        (first >= 0 && i > first && !isScored(trace) ? "stale" : "");
      this.#paint(this.nodes[i], step, trace, lambda, move, credit, marks.trim());
    }
    return first < 0 ? null : { index: first, row: flips[first] };
  }

  #paint(node, step, trace, lambda, move, credit, marks) {
    const weight = Math.min(1, Math.abs(credit) / STRONG).toFixed(2);
    const share = isScored(trace) ? shareOf(step, trace.system, lambda).toFixed(2) : "";
    const own = lambda === "auto" ? lambdaText(Number(lambdaAt(step, lambda).toFixed(2))) : "";
    const key = `${move}${weight}${share}${marks}${own}`;
    if (node.painted === key) return;
    node.painted = key;
    node.dataset.move = move;
    node.style.setProperty("--w", move === "same" ? "0" : weight);
    node.title = own && `λ ${own} here`;
    if (share) node.style.setProperty("--share", share);
    if (marks) node.dataset.marks = marks;
    else delete node.dataset.marks;
    node.setAttribute("aria-label", this.#label(step, trace, lambda, move));
  }

  #label(step, trace, lambda, move) {
    const weight = lambdaAt(step, lambda);
    const fused = percent(mix(step.p, trace.system, weight));
    const moved = { up: "raised", down: "lowered", same: "not moved" }[move];
    const own = trace.system === "lm" ? "" : `, ${moved} by the ${nameOf(trace.system).source}`;
    const changed = trace.changed?.has(step.i) ? ", changed" : "";
    const chosen = lambda === "auto" ? `, lambda ${weight.toFixed(2)}` : "";
    return `${quote(step.s)}, ${fused} per cent${own}${chosen}${changed}`;
  }

  /** Marks the tokens that a document is evidence for; null takes the marks away. */
  cite(indices) {
    this.root.toggleAttribute("data-citing", indices !== null);
    this.nodes.forEach((node, i) => node.toggleAttribute("data-cited", Boolean(indices?.has(i))));
  }

  /** Marks one token as selected; focus moves there only when asked. */
  select(index, focus) {
    const old = this.nodes[this.selected];
    if (old) old.setAttribute("aria-selected", "false");
    this.selected = index;
    const node = this.nodes[index];
    if (!node) return;
    for (const other of this.nodes) other.tabIndex = other === node ? 0 : -1;
    node.setAttribute("aria-selected", "true");
    if (focus) node.focus({ preventScroll: false });
  }

  #clicked(event) {
    const node = event.target.closest(".token");
    if (node) this.pick(this.nodes.indexOf(node), "pointer");
  }

  #pressed(event) {
    const at = this.nodes.indexOf(event.target);
    if (at < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const last = this.nodes.length - 1;
    const goal = {
      ArrowRight: Math.min(last, at + 1), ArrowLeft: Math.max(0, at - 1),
      Home: 0, End: last, Enter: at, " ": at,
    }[event.key];
    if (goal === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    this.pick(goal, "key");
  }
}

// @ts-check
/* One column's text at eleven lambdas, generated once; the slider then selects among whole texts. */
/** @import { Scrubbed, ScrubText, Shown, Step, TokenView, Trace, ValueOf } from "../core/types.js" */
import { h, setText, short } from "../core/dom.js";
import { mix } from "../core/mix.js";
import { nameOf, page } from "../core/state.js";

/** Restores the steps that a text shares with an earlier one.
 * @param {ScrubText[]} texts @returns {Scrubbed[]} */
function unfold(texts) {
  /** @type {Scrubbed[]} */
  const whole = [];
  for (const text of texts) {
    const { like, kept, steps, ...trace } = text;
    const shared = kept ? whole[like].steps.slice(0, kept) : [];
    const lambda = Number(trace.lmbda);
    /** @type {(step: Step) => Step} */
    const own = (step) => ({ ...step,
      p: { ...step.p, fused: mix(step.p, trace.system, lambda) },
      rest: { ...step.rest, fused: mix(step.rest, trace.system, lambda) } });
    whole.push({ ...trace, steps: [...shared.map(own), ...steps], fixed: true, changed: new Set(), kind: 0 });
  }
  return whole;
}

/** The indices of b's tokens outside a longest common subsequence of a and b.
 * @type {(a: Step[], b: Step[]) => Set<number>} */
const changedTokens = (a, b) => {
  const rows = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      rows[i][j] = a[i].id === b[j].id ? rows[i + 1][j + 1] + 1
        : Math.max(rows[i + 1][j], rows[i][j + 1]);
    }
  }
  const found = new Set(b.keys());
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i].id === b[j].id) {
      found.delete(j);
      i += 1;
      j += 1;
    } else if (rows[i + 1][j] >= rows[i][j + 1]) i += 1;
    else j += 1;
  }
  return found;
};

/** @type {(trace: Trace) => string} */
const key = (trace) => trace.steps.map((step) => step.id).join(" ");

/** A scrubbed column: its texts, their cost, and the number of different texts.
 * @typedef {{ texts: Scrubbed[], cost: ValueOf<"scrubbed">["cost"], kinds: number }} ScrubResult */
/** @typedef {import("./tree.js").TreeNode} TreeNode */
/** @typedef {{ button: HTMLButtonElement, line: HTMLElement, ticks: HTMLElement, drawn: ScrubResult | null }} Row */

export class Scrub {
  /** @param {TokenView} view */
  constructor(view) {
    this.view = view;
    /** The present request. @type {{ run: string, node: TreeNode, badge: [string, string?] } | null} */
    this.pending = null;
    /** @type {Map<string, Row>} */
    this.rows = new Map();
  }

  /** A column's row: the button, a line on the texts, and their ticks. @param {string} system */
  row(system) {
    const button = h("button", { type: "button", class: "small-button", title:
      "Generate this text at λ 0, 0.1 … 1, then select one with the slider",
    "aria-label": `Scrub λ, ${nameOf(system).title}`,
    on: { click: () => this.start(system) } }, "Scrub λ");
    const line = h("p", { class: "scrub-line", role: "status" });
    const ticks = h("div", { class: "scrub-ticks", "aria-hidden": "true", hidden: true });
    const root = h("div", { class: "scrub" }, button, line, ticks);
    this.rows.set(system, { button, line, ticks, drawn: null });
    return root;
  }

  /** @param {string} system */
  start(system) {
    if (this.view.replay.playing) this.view.replay.stop();
    const node = this.view.tree.node(system);
    if (!node?.trace.steps.length) return;
    const run = `${this.view.run}.${node.id}`;
    const { forced = [] } = node.trace.settings || {};
    const { text, kind: why } = this.view.head;
    const sent = this.view.request({ kind: "scrub", run, system, forced, lmbda: node.trace.lmbda,
      settings: node.trace.settings });
    if (sent) this.pending = { run, node, badge: [text, why] };
  }

  /** Takes a "scrub" value (progress) or a "scrubbed" value (the texts).
   * @param {ValueOf<"scrub"> | ValueOf<"scrubbed">} value */
  receive(value) {
    if (!this.pending || value.run !== this.pending.run) return;
    const { node } = this.pending;
    if (value.kind === "scrub") {
      this.view.head.mark(`scrubbing λ, token ${value.tokens}`, "scrub");
      return;
    }
    this.end();
    this.#store(node, value.texts, value.cost);
  }

  /** Takes a column's texts that came without a request, unless it has some or was branched.
   * @param {string} system @param {ScrubText[]} sent @param {ScrubResult["cost"]} cost */
  adopt(system, sent, cost) {
    const node = this.view.tree.node(system);
    if (node && node.parent === null && !node.scrub) this.#store(node, sent, cost);
  }

  /** @param {TreeNode} node @param {ScrubText[]} sent @param {ScrubResult["cost"]} cost */
  #store(node, sent, cost) {
    const texts = unfold(sent);
    const kinds = [...new Set(texts.map(key))];
    for (const text of texts) {
      text.changed = changedTokens(node.trace.steps, text.steps);
      text.kind = kinds.indexOf(key(text));
    }
    node.scrub = { texts, cost, kinds: kinds.length };
    this.view.repaint();
  }

  /** Ends the present request; returns whether there was one. */
  end() {
    if (!this.pending) return false;
    this.view.head.mark(...this.pending.badge);
    this.pending = null;
    this.view.setRunning(false);
    return true;
  }

  /** A node's text at the page's lambda: its own, or the nearest of the eleven.
   * @param {TreeNode} node @returns {Shown} */
  text(node) {
    const { lambda } = page;
    if (!node.scrub || lambda === null) return node.trace;
    return node.scrub.texts.reduce((best, text) =>
      (Math.abs(Number(text.lmbda) - lambda) < Math.abs(Number(best.lmbda) - lambda) - 1e-9 ? text : best));
  }

  /** Shows the number of texts, their cost, and which one is on screen. */
  repaint() {
    let any = false;
    for (const [system, row] of this.rows) {
      const { button, line, ticks } = row;
      const pane = this.view.panes.get(system);
      if (!pane) continue;
      const result = this.view.tree.current.get(system)?.scrub;
      any ||= Boolean(result);
      button.hidden = Boolean(result) || !pane.trace?.steps.length || pane.trace.recorded || pane.root.dataset.state !== "done";
      ticks.hidden = !result;
      setText(line, result && pane.trace ? this.#line(result, pane.trace) : "");
      if (!result) continue;
      if (row.drawn !== result) this.#draw(row, result);
      for (const [i, text] of result.texts.entries()) ticks.children[i].toggleAttribute("data-now", text === pane.trace);
    }
    this.view.root.toggleAttribute("data-scrubbed", any);
  }

  /** @param {ScrubResult} result @param {Shown} trace */
  #line(result, trace) {
    const { cost, kinds, texts } = result;
    if (!trace.fixed) {
      const times = cost.single ? `${(cost.seconds / cost.single).toFixed(1)}× the time of one (${short(cost.seconds)} s)` : `${short(cost.seconds)} s`;
      return `${texts.length} texts, ${kinds} different, in ${times}. Move the slider.`;
    }
    const n = trace.changed?.size;
    return `Written at λ ${Number(trace.lmbda).toFixed(1)}, the nearest of ${texts.length} · ` +
      `text ${Number(trace.kind) + 1} of ${kinds} · ${n} token${n === 1 ? "" : "s"} changed`;
  }

  /** @param {Row} row @param {ScrubResult} result */
  #draw(row, result) {
    row.drawn = result;
    row.ticks.replaceChildren(...result.texts.map((text, i) => h("i", {
      "data-part": i > 0 && text.kind !== result.texts[i - 1].kind })));
  }
}

// @ts-check
/* The tree of a run's texts and a visitor's branches, with undo and redo. */
/** @import { Candidate, Pane, Shown, TokenView } from "../core/types.js" */
import { glyph, h, lambdaText, quote } from "../core/dom.js";
import { kindOf, lambdaOf, nameOf } from "../core/state.js";
import { drawer } from "../drawer/drawer.js";

/** `parent` is an id, null for a run's own text; a branch differs from its parent at `index`, with `token`.
 * @typedef {{ id: number, parent: number | null, system: string, lmbda: Shown["lmbda"], index: number, token: string,
 *   trace: Shown, scrub?: import("./scrub.js").ScrubResult }} TreeNode */
/** A requested branch, and its node once it has begun.
 * @typedef {{ index: number, token: string, system: string, node?: TreeNode }} Plan */

export class Tree {
  /** @param {TokenView} view */
  constructor(view) {
    this.view = view;
    /** @type {Plan | null} */
    this.plan = null;
    /** @type {TreeNode[]} */
    this.nodes = [];
    /** The node on screen of each system. @type {Map<string, TreeNode>} */
    this.current = new Map();
    /** @type {[TreeNode, TreeNode][]} */
    this.past = [];
    /** @type {[TreeNode, TreeNode][]} */
    this.future = [];
    /** @type {(text: string, fn: () => void) => HTMLButtonElement} */
    const button = (text, fn) => h("button", { type: "button", class: "small-button",
      on: { click: fn } }, text);
    this.back = button("↶ Undo", () => this.undo());
    this.forth = button("↷ Redo", () => this.redo());
    this.list = h("ul", { class: "tree-list" });
    this.root = h("section", { class: "tree", "aria-label": "Branches", hidden: true },
      h("div", { class: "tree-head" }, h("h3", null, "Branches"), this.back, this.forth),
      this.list);
    this.render();
  }

  clear() {
    this.nodes = [];
    this.current = new Map();
    this.past = [];
    this.future = [];
    this.render();
  }

  /** A column's node, created from the run's own text if needed. @param {string} system */
  node(system) {
    const trace = this.view.panes.get(system)?.trace;
    return this.current.get(system) ?? (trace ? this.#add(system, null, trace) : null);
  }

  /** @param {string} system @param {number | null} parent @param {Shown} trace @param {number} [index] @param {string} [token] */
  #add(system, parent, trace, index = 0, token = "") {
    /** @type {TreeNode} */
    const node = { id: this.nodes.length, parent, system, lmbda: trace.lmbda, index, token, trace };
    this.nodes.push(node);
    this.current.set(system, node);
    return node;
  }

  /** Requests a branch of a column with a candidate in place of the token at index.
   * @param {Pane} pane @param {number} index @param {Candidate} candidate */
  branch({ trace, system }, index, candidate) {
    if (!trace) return;
    const room = Math.max(trace.settings?.max_new_tokens ?? 32, index + 13);
    const sent = this.view.request({ kind: "branch", run: this.view.run || "", system,
      lmbda: lambdaOf(trace),
      settings: { ...trace.settings, max_new_tokens: Math.min(128, room) },
      forced: [...trace.steps.slice(0, index).map((step) => step.id), candidate.id] });
    if (sent) this.plan = { index, token: candidate.text, system };
  }

  /** Adds the node of a branch that begins; `trace` is still empty.
   * @param {string} system @param {Shown} trace @param {Plan} plan */
  grow(system, trace, plan) {
    const from = this.node(system);
    if (!from) return;
    plan.node = this.#add(system, from.id, trace, plan.index, plan.token);
    this.past.push([from, plan.node]);
    this.future = [];
    this.render();
  }

  /** Removes a branch without tokens, and returns its parent's trace.
   * @param {Plan} plan @returns {Shown | undefined} */
  drop({ node, system }) {
    const [parent] = this.past.pop() ?? [];
    if (!parent) return undefined;
    this.nodes = this.nodes.filter((other) => other !== node);
    this.current.set(system, parent);
    return parent.trace;
  }

  /** Stores a column's text in its node. @param {string} system @param {Shown} trace */
  fill(system, trace) {
    const node = this.current.get(system);
    if (node) node.trace = trace;
    this.render();
  }

  /** @param {TreeNode} node */
  jump(node) {
    const from = this.current.get(node.system);
    if (!from || from === node || this.view.running) return;
    this.past.push([from, node]);
    this.future = [];
    this.#show(node);
  }

  undo() {
    this.#move(this.past, this.future, 0);
  }

  redo() {
    this.#move(this.future, this.past, 1);
  }

  /** @param {[TreeNode, TreeNode][]} from @param {[TreeNode, TreeNode][]} to @param {0 | 1} end */
  #move(from, to, end) {
    const pair = this.view.running ? undefined : from.pop();
    if (!pair) return;
    to.push(pair);
    this.#show(pair[end]);
  }

  /** @param {TreeNode} node */
  #show(node) {
    const { view } = this;
    this.current.set(node.system, node);
    view.closeDrawer();
    view.chosen = null;
    if (view.finished) view.finished = { ...view.finished, [node.system]: node.trace };
    view.repaint();
    this.render();
  }

  /** Shows in every column its node's text at the page's lambda. */
  settle() {
    const { view } = this;
    if (view.running || view.replay.playing) return;
    for (const pane of view.panes.values()) {
      const node = this.current.get(pane.system);
      const text = node && view.scrub.text(node);
      if (!text || text === pane.trace) continue;
      pane.show(text);
      if (view.chosen?.system !== pane.system) continue;
      view.chosen.index = Math.max(0, Math.min(view.chosen.index, text.steps.length - 1));
      pane.strip.select(view.chosen.index, false);
      drawer().show(view, pane, view.chosen.index);
    }
    view.scrub.repaint();
  }

  render() {
    const grown = this.nodes.filter((node) => node.parent !== null);
    this.root.hidden = !grown.length;
    this.back.disabled = !this.past.length;
    this.forth.disabled = !this.future.length;
    const systems = new Set(grown.map((node) => node.system));
    const roots = this.nodes.filter((node) => node.parent === null && systems.has(node.system));
    this.list.replaceChildren(...roots.map((node) => this.#item(node)));
  }

  /** @param {TreeNode} node @returns {HTMLElement} */
  #item(node) {
    const children = this.nodes.filter((other) => other.parent === node.id);
    const what = node.parent === null ? nameOf(node.system).title
      : [h("b", null, quote(node.token)), ` at token ${node.index + 1}`];
    const now = this.current.get(node.system) === node;
    const text = node.trace.text || node.trace.steps.map((step) => step.s).join("");
    const own = { "data-system": node.system, "data-hue": kindOf(node.system) };
    return h("li", own, h("button", { type: "button",
      class: "tree-node", "aria-current": now ? "true" : null, "data-node": node.id,
      on: { click: () => this.jump(node) } },
    h("span", { class: "swatch", "data-source": node.system, "aria-hidden": "true" }),
    h("span", { class: "tree-what", dir: "auto" }, what),
    node.trace.system === "lm" ? ""
      : h("span", { class: "tree-lambda" }, `λ ${lambdaText(node.lmbda)}`),
    h("span", { class: "tree-text", dir: "auto" }, glyph(text.trim()))),
    children.length ? h("ul", null, children.map((child) => this.#item(child))) : null);
  }
}

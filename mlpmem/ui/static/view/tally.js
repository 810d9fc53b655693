// @ts-check
/* Right answers per column over this visitor's questions; stored in the browser only. */
/** @import { Pane } from "../core/types.js" */
import { h, setText } from "../core/dom.js";
import { SOURCES } from "../core/mix.js";
import { nameOf } from "../core/state.js";

const KEY = "mlpmem-tally";
const MOST = 500; // stored questions

/** [a question, whether each column's answer was right]. @typedef {[string, { [system: string]: boolean }]} Row */

/** @returns {Row[]} */
function read() {
  try {
    const stored = JSON.parse(window.localStorage.getItem(KEY) || "[]");
    return Array.isArray(stored) ? stored.filter((row) => Array.isArray(row) && row[1]) : [];
  } catch {
    return [];
  }
}

class Tally {
  constructor() {
    this.rows = read(); // one row per question
    /** The columns of the last question, null before the first. @type {string[] | null} */
    this.shown = null;
    this.stored = false; // whether the browser stores data
    this.text = h("span", { class: "tally-text" });
    this.root = h("p", { class: "tally", hidden: true }, this.text,
      h("button", { type: "button", class: "link-button", "aria-label": "Reset the tally",
        on: { click: () => this.#store([]) } }, "reset"));
    this.#render();
  }

  /** Counts each column's first answer to a question.
   * @param {string} prompt @param {Map<string, Pane>} panes */
  count(prompt, panes) {
    if (this.stored) this.rows = read(); // another tab may have added rows
    /** @type {{ [system: string]: boolean }} */
    const right = {};
    for (const [system, pane] of panes) {
      const judged = pane.verdict.dataset.right;
      if (judged) right[system] = judged === "true";
    }
    if (!Object.keys(right).length) return;
    this.shown = Object.keys(right);
    const before = this.rows.find(([question]) => question === prompt)?.[1] ?? {};
    /** @type {Row} */
    const row = [prompt, { ...right, ...before }];
    this.#store([...this.rows.filter(([question]) => question !== prompt), row].slice(-MOST));
  }

  /** @param {Row[]} rows */
  #store(rows) {
    this.rows = rows;
    try {
      window.localStorage.setItem(KEY, JSON.stringify(rows));
      this.stored = true;
    } catch { /* without storage the tally lasts for this visit */ }
    this.#render();
  }

  /** One count of questions for all columns: those that every shown column answered. */
  #render() {
    const shown = this.shown ?? SOURCES.filter((system) => this.rows.some(([, right]) => system in right));
    const rows = this.rows.filter(([, right]) => shown.every((system) => system in right));
    this.root.hidden = !rows.length || !shown.length;
    const parts = shown.map((system) =>
      `${nameOf(system).short} ${rows.filter(([, right]) => right[system] === true).length}`);
    setText(this.text, `Right so far, of ${rows.length} ${rows.length === 1 ? "question" : "questions"}: ${parts.join(" · ")}`);
  }
}

/** @type {Tally | null} */
let only = null;

/** The page's tally, created on first use. @type {() => Tally} */
export const tally = () => (only ||= new Tally());

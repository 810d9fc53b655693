// @ts-check
/* Right answers per column over this visitor's questions; stored in the browser only. */
/** @import { Pane } from "../core/types.js" */
import { h, setText } from "../core/dom.js";
import { SOURCES } from "../core/mix.js";
import { kindOf, nameOf } from "../core/state.js";

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
    this.stored = false; // whether the browser stores data
    this.text = h("span", { class: "tally-text" });
    this.root = h("p", { class: "tally", hidden: true }, this.text,
      h("button", { type: "button", class: "link-button", "aria-label": "Reset the tally",
        on: { click: () => this.#store([]) } }, "reset"));
    this.#render();
  }

  /** Counts the columns' answers to a question, the first time only.
   * @param {string} prompt @param {Map<string, Pane>} panes */
  count(prompt, panes) {
    if (this.stored) this.rows = read(); // another tab may have added rows
    if (this.rows.some(([question]) => question === prompt)) return;
    /** @type {{ [system: string]: boolean }} */
    const right = {};
    for (const [system, pane] of panes) {
      const judged = pane.verdict.dataset.right;
      if (judged) right[system] = judged === "true";
    }
    /** @type {Row} */
    const row = [prompt, right];
    this.#store([...this.rows, row].slice(-MOST));
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

  #render() {
    const n = this.rows.length;
    this.root.hidden = !n;
    const extra = this.rows.flatMap(([, right]) => Object.keys(right)).filter((s) => kindOf(s));
    const parts = [...new Set([...SOURCES, ...extra])].map((system) => {
      const answered = this.rows.filter(([, right]) => system in right);
      const count = answered.filter(([, right]) => right[system] === true).length;
      return answered.length ? `${nameOf(system).short} ${count}/${answered.length}` : "";
    });
    setText(this.text, `Right so far: ${parts.filter(Boolean).join(" · ")}`);
  }
}

/** @type {Tally | null} */
let only = null;

/** The page's tally, created on first use. @type {() => Tally} */
export const tally = () => (only ||= new Tally());

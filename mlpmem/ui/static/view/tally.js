// @ts-check
/* Who was right, over the questions this visitor asked: kept in this browser, sent nowhere. */
/** @import { Pane } from "../core/types.js" */
import { h, setText } from "../core/dom.js";
import { SOURCES } from "../core/mix.js";
import { kindOf, nameOf } from "../core/state.js";

const KEY = "mlpmem-tally";
const MOST = 500; // questions remembered

/** A question and which columns answered it right. @typedef {[string, { [system: string]: boolean }]} Row */

/** @returns {Row[]} */
function read() {
  try {
    const kept = JSON.parse(window.localStorage.getItem(KEY) || "[]");
    return Array.isArray(kept) ? kept.filter((row) => Array.isArray(row) && row[1]) : [];
  } catch {
    return [];
  }
}

class Tally {
  constructor() {
    this.rows = read(); // a question counts once
    this.kept = false; // whether this browser keeps anything
    this.text = h("span", { class: "tally-text" });
    this.root = h("p", { class: "tally", hidden: true }, this.text,
      h("button", { type: "button", class: "link-button", "aria-label": "Reset the tally",
        on: { click: () => this.#keep([]) } }, "reset"));
    this.#render();
  }

  /** Counts what the judged columns say of a question, the first time it is asked.
   * @param {string} prompt @param {Map<string, Pane>} panes */
  count(prompt, panes) {
    if (this.kept) this.rows = read(); // another tab of the browser may have counted
    if (this.rows.some(([asked]) => asked === prompt)) return;
    /** @type {{ [system: string]: boolean }} */
    const right = {};
    for (const [system, pane] of panes) {
      const judged = pane.verdict.dataset.right;
      if (judged) right[system] = judged === "true";
    }
    /** @type {Row} */
    const row = [prompt, right];
    this.#keep([...this.rows, row].slice(-MOST));
  }

  /** @param {Row[]} rows */
  #keep(rows) {
    this.rows = rows;
    try {
      window.localStorage.setItem(KEY, JSON.stringify(rows));
      this.kept = true;
    } catch { /* a browser that keeps nothing counts for this visit */ }
    this.#render();
  }

  #render() {
    const n = this.rows.length;
    this.root.hidden = !n;
    const further = this.rows.flatMap(([, right]) => Object.keys(right)).filter((s) => kindOf(s));
    const parts = [...new Set([...SOURCES, ...further])].map((system) => {
      const asked = this.rows.filter(([, right]) => system in right);
      const won = asked.filter(([, right]) => right[system] === true).length;
      return asked.length ? `${nameOf(system).short} ${won}/${asked.length}` : "";
    });
    setText(this.text, `Right so far: ${parts.filter(Boolean).join(" · ")}`);
  }
}

/** @type {Tally | null} */
let only = null;

/** The browser's one tally, made on first use. @type {() => Tally} */
export const tally = () => (only ||= new Tally());

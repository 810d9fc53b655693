// @ts-check
/* The drawer's table: candidates of the next token under every source, sorted by one of them. */
/** @import { Candidate, Probs, Step } from "../core/types.js" */
import { h, percent, quote, setText, single } from "../core/dom.js";
import { SOURCES, candidateOf, mix } from "../core/mix.js";

const COLUMNS = ["lm", "memory", "knn", "fused"];
/** @type {{ [column: string]: string }} */
const HEADS = { lm: "decoder", memory: "memory", knn: "datastore", fused: "mix" };

const REST = 120; // milliseconds without a change of lambda until the rows are sorted again

/** What hides a column where its source is not there. @type {(column: string) => object} */
const needs = (column) => (["memory", "knn"].includes(column) ? { "data-needs": column } : {});

/** @typedef {{ root: HTMLElement, fill: HTMLElement, text: HTMLElement }} Slot */
/** @typedef {{ root: HTMLElement, cells: { [column: string]: Slot }, p: Probs }} Row */
/** @typedef {Row & { id: number, fused: number }} CandidateRow */

/** The cells of a row, one per column. @type {() => { [column: string]: Slot }} */
const cellsOf = () => Object.fromEntries(COLUMNS.map((column) => {
  const fill = h("i", { "aria-hidden": "true" });
  const text = h("b", null, "–");
  return [column, { root: h("td", { class: "p", "data-source": column, ...needs(column) }, h("span", null, fill, text)), fill, text }];
}));

/** @param {Slot} slot @param {number | null | undefined} p */
function put(slot, p) {
  setText(slot.text, percent(p));
  slot.fill.style.setProperty("--p", String(p ?? 0));
}

export class Candidates {
  /** branch(candidate) continues the text with a candidate. @param {(candidate: Candidate) => void} branch */
  constructor(branch) {
    this.branch = branch;
    this.by = "fused"; // the column that sorts the rows
    this.later = 0; // the timer of the next sorting
    /** @type {CandidateRow[]} */
    this.rows = [];
    /** @type {Row} */
    this.rest = { root: h("tr"), cells: cellsOf(), p: { lm: 0 } };
    this.body = h("tbody");
    this.heads = Object.fromEntries(COLUMNS.map((column) => [column, this.#sorter(column)]));
    const heads = COLUMNS.map((column) => this.heads[column].root);
    this.root = h("div", { class: "candidates", role: "group", "aria-label": "Candidates" }, h("table", null,
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "token, %"), heads)), this.body));
  }

  /** A column's head: a button that sorts by it. @param {string} column */
  #sorter(column) {
    const button = h("button", { type: "button", class: "sorter", on: { click: () => this.sort(column) } }, HEADS[column]);
    return { button, root: h("th", { scope: "col", "data-source": column, ...needs(column) }, button) };
  }

  /** Shows a step's candidates; branches tells whether the text can go on from one of them.
   * @param {Step} step @param {string} decoder the decoder's name @param {boolean} branches */
  show(step, decoder, branches) {
    setText(this.heads.lm.button, decoder || HEADS.lm);
    this.rows = step.cand.map((row) => this.#row(candidateOf(row), step, branches));
    this.rest = this.#restRow(step);
    this.body.replaceChildren(...this.rows.map((row) => row.root), this.rest.root);
  }

  /** Takes other numbers of the datastore for the same candidates. @param {Step} step */
  use(step) {
    const p = new Map(step.cand.map((row) => [row[0], candidateOf(row).p]));
    for (const row of this.rows) {
      row.p = p.get(row.id) ?? row.p;
      put(row.cells.knn, row.p.knn);
      row.root.setAttribute("data-knn", String(row.p.knn));
    }
    this.rest.p = step.rest;
    put(this.rest.cells.knn, step.rest.knn);
  }

  /** Mixes the last column again; no other depends on lambda. While lambda moves, the rows keep their places.
   * @param {string} system @param {number} lambda @param {boolean} [moves] */
  repaint(system, lambda, moves = false) {
    for (const row of this.rows) row.fused = mix(row.p, system, lambda);
    const top = Math.max(...this.rows.map((row) => row.fused));
    for (const row of this.rows) {
      row.root.setAttribute("data-fused", String(row.fused));
      put(row.cells.fused, row.fused);
      row.root.toggleAttribute("data-top", row.fused === top);
    }
    put(this.rest.cells.fused, mix(this.rest.p, system, lambda));
    window.clearTimeout(this.later);
    if (moves) this.later = window.setTimeout(() => this.sort(this.by), REST);
    else this.sort(this.by);
  }

  /** Puts the likeliest candidate by a column first. @param {string} column */
  sort(column) {
    this.by = column;
    for (const [name, { root }] of Object.entries(this.heads)) {
      if (name === column) root.setAttribute("aria-sort", "descending");
      else root.removeAttribute("aria-sort");
    }
    /** @type {(row: CandidateRow) => number} */
    const value = (row) => (column === "fused" ? row.fused : row.p[column] ?? -1);
    const sorted = [...this.rows].sort((a, b) => value(b) - value(a) || b.fused - a.fused || a.id - b.id);
    if (sorted.every((row, i) => this.body.children[i] === row.root)) return;
    const focused = document.activeElement;
    this.rows = sorted;
    for (const [i, { root }] of sorted.entries()) { // few rows change their place while lambda moves
      if (this.body.children[i] !== root) this.body.insertBefore(root, this.body.children[i]);
    }
    if (focused instanceof HTMLElement && this.body.contains(focused)) focused.focus({ preventScroll: true });
    this.#oneStop(this.#branches()[0]);
  }

  /** @param {Candidate} candidate @param {Step} step @param {boolean} branches */
  #row(candidate, step, branches) {
    const cells = cellsOf();
    const root = h("tr", { class: "candidate", "data-token-id": candidate.id,
      "data-chosen": candidate.id === step.id ? "" : null },
    h("th", { scope: "row", dir: "auto" }, branches ? this.#branch(candidate) : single(candidate.text)),
    COLUMNS.map((c) => cells[c].root));
    for (const source of SOURCES) {
      const p = candidate.p[source];
      if (p !== null && p !== undefined) root.setAttribute(`data-${source}`, String(p));
      put(cells[source], p);
    }
    return { root, cells, p: candidate.p, id: candidate.id, fused: 0 };
  }

  /** A candidate's text as a button that branches with it. @param {Candidate} candidate */
  #branch(candidate) {
    return h("button", { type: "button", class: "branch", tabindex: "-1",
      "aria-label": `Branch with ${quote(candidate.text)}`, on: { click: () => this.branch(candidate) } },
    h("span", null, single(candidate.text)));
  }

  /** @param {Step} step @returns {Row} */
  #restRow(step) {
    const cells = cellsOf();
    const root = h("tr", { class: "rest" },
      h("th", { scope: "row" }, "everything else"), COLUMNS.map((c) => cells[c].root));
    for (const source of SOURCES) put(cells[source], step.rest[source]);
    return { root, cells, p: step.rest };
  }

  /** @returns {HTMLElement[]} */
  #branches() {
    return [.../** @type {NodeListOf<HTMLElement>} */ (this.body.querySelectorAll(".branch"))];
  }

  /** @param {HTMLElement | undefined} stop the only button that Tab reaches */
  #oneStop(stop) {
    for (const button of this.#branches()) button.tabIndex = button === stop ? 0 : -1;
  }

  /** Moves the focus up or down the candidates' buttons; false if there are none. @param {number} by */
  walk(by) {
    const buttons = this.#branches();
    if (!buttons.length) return false;
    const at = buttons.indexOf(/** @type {HTMLElement} */ (document.activeElement));
    const next = buttons[at < 0 ? 0 : Math.max(0, Math.min(buttons.length - 1, at + by))];
    this.#oneStop(next);
    next.focus();
    return true;
  }
}

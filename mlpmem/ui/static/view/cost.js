// @ts-check
/* A column's cost: milliseconds per token and bytes, by part, as two stacked bars. */
/** @import { Cost, Opening, Trace } from "../core/types.js" */
import { h, megabytes, setText, short } from "../core/dom.js";
import { partsOf } from "../core/mix.js";
import { kindOf } from "../core/state.js";

/** @type {{ [source: string]: string }} */
const TIME = { lm: "decoder_ms", memory: "memory_ms", knn: "search_ms" };
/** @type {{ [source: string]: string }} */
const SIZE = { lm: "decoder_bytes", memory: "memory_bytes", knn: "datastore_bytes" };
/** @type {{ [source: string]: string }} */
const NAME = { lm: "decoder", memory: "memory", knn: "datastore", rag: "passages" };

/** One source's share, in milliseconds or bytes. @typedef {{ source: string, value: number }} Part */
/** @typedef {{ time: Part[], size: Part[], once?: number, weighed?: number }} Costs */
/** @typedef {{ time: number, size: number, decoder: number | null }} Scale */

/** @param {string} system @param {Cost | undefined} cost @param {{ [source: string]: string }} table @returns {Part[]} */
function parts(system, cost, table) {
  return ["lm", ...partsOf(system)]
    .map((source) => ({ source, value: cost?.[table[source]] ?? NaN }))
    .filter((part) => Number.isFinite(part.value));
}

/** Tokens per second with two significant digits or more. @type {(ms: number) => string} */
export const rate = (ms) => (ms <= 100 ? String(Math.round(1000 / ms)) : Number((1000 / ms).toPrecision(2)).toString());

/** @type {(list: Part[]) => number} */
const total = (list) => list.reduce((sum, part) => sum + part.value, 0);

/** The parts of a trace's cost, decoder first. decoder is its milliseconds in all columns, null for the
 * trace's own. @type {(trace: Opening & Partial<Trace>, decoder?: number | null) => Costs} */
export const costOf = (trace, decoder = null) => ({
  time: parts(trace.system, trace.cost, TIME)
    .map((part) => (part.source === "lm" && decoder !== null ? { ...part, value: decoder } : part)),
  size: [...parts(trace.system, trace.cost, SIZE),
    { source: "rag", value: trace.cost?.passages_bytes ?? NaN }].filter((p) => Number.isFinite(p.value)),
  once: trace.cost?.retrieval_ms, // retrieval, before the first token
  weighed: trace.cost?.evidence_ms, // the router's evidence from the prompt
});

/** @type {(time: Part[]) => string} */
const rated = (time) => (time.length ? `${rate(total(time))} tokens/s` : "");

/** A system's own tokens per second, "" if unknown: the page also asks the sources that a system does without.
 * @type {(trace: Opening & Partial<Trace>) => string} */
export const rateOf = (trace) => rated(costOf(trace).time);

export class CostRow {
  constructor() {
    this.time = this.#line();
    this.size = this.#line();
    this.root = h("div", { class: "cost" }, this.time.root, this.size.root);
  }

  #line() {
    const text = h("span", { class: "cost-text" });
    const detail = h("span", { class: "cost-detail" });
    const bar = h("span", { class: "cost-bar", "aria-hidden": "true" });
    const head = h("span", { class: "cost-head" }, text, detail);
    return { root: h("div", { class: "cost-line" }, head, bar), text, detail, bar };
  }

  /** Shows a cost; `scale` has the largest time and size of all columns.
   * @param {Costs} cost @param {Scale} scale */
  render(cost, scale) {
    const bytes = total(cost.size);
    setText(this.time.text, rated(cost.time));
    setText(this.time.detail, cost.time
      .map((p) => `${p.source === "knn" ? "search" : NAME[p.source]} ${short(p.value)} ms`)
      .join(" + ") + (cost.once !== undefined ? ` · retrieved in ${short(cost.once)} ms` : "") +
      (cost.weighed !== undefined ? ` · prompt read in ${short(cost.weighed)} ms` : ""));
    setText(this.size.text, cost.size.length ? megabytes(bytes) : "");
    setText(this.size.detail, cost.size
      .map((p) => `${NAME[p.source]} ${megabytes(p.value)}`).join(" + "));
    this.#bar(this.time.bar, cost.time, scale.time);
    this.#bar(this.size.bar, cost.size, scale.size);
  }

  /** @param {HTMLElement} bar @param {Part[]} list @param {number} scale */
  #bar(bar, list, scale) {
    bar.replaceChildren(...list.map((part) => h("i", {
      "data-source": part.source,
      style: { width: `${scale > 0 ? (100 * part.value) / scale : 0}%` },
    })));
  }
}

/** One scale for all columns: the largest totals, and the decoder's least time. The same decoder's
 * times differ by the size of the batch and by chance, which say nothing about a column.
 * @type {(traces: { [system: string]: Opening & Partial<Trace> }) => Scale} */
export const costScale = (traces) => {
  const rows = Object.entries(traces).map(([name, trace]) => ({ trace, tuned: kindOf(name) === "tuned" }));
  const times = rows.flatMap(({ trace, tuned }) => (tuned ? [] : [trace.cost?.decoder_ms ?? NaN])).filter(Number.isFinite);
  const decoder = times.length ? Math.min(...times) : null;
  const costs = rows.map(({ trace, tuned }) => costOf(trace, tuned ? null : decoder));
  return { decoder, time: Math.max(0, ...costs.map((c) => total(c.time))), size: Math.max(0, ...costs.map((c) => total(c.size))) };
};

// @ts-check
/* Share: the run on screen as a link, JSON or CSV; opening a saved run. */
/** @import { About, Shown, TokenView } from "../core/types.js" */
import { h, megabytes, setText } from "../core/dom.js";
import { SOURCES, candidateOf, lambdaAt, mix } from "../core/mix.js";
import { page } from "../core/state.js";

const MOST = 6e6; // characters of a file; the server checks them again
/** [a trace's setting, its name in a link]. @type {[keyof import("../core/types.js").Settings, string][]} */
const KEYS = [["max_new_tokens", "tokens"], ["temperature", "temperature"], ["top_p", "top_p"],
  ["top_k", "top_k"], ["seed", "seed"], ["min_p", "min_p"], ["repetition_penalty", "penalty"]];
const COLUMNS = ["system", "index", "chosen", "token_id", "token", "lm", "memory", "knn", "fused",
  "lmbda"];

/** @typedef {About & { v: number, lmbda: number | null, own?: true, traces: { [system: string]: Shown } }} Run */

/** The run on screen as the API returns it, null without a complete run. If all mixed columns show
 * scrubbed texts, each column has its own lambda.
 * @type {(view: TokenView | null) => Run | null} */
export const recordOf = (view) => {
  if (!view?.finished || [...view.panes.values()].some((p) => p.root.dataset.state === "stopped")) {
    return null;
  }
  const traces = { ...view.finished };
  let fixed = 0;
  for (const { system, trace } of view.panes.values()) {
    if (!trace?.fixed) continue;
    const { fixed: _, changed: __, kind: ___, ...plain } = trace;
    traces[system] = plain;
    fixed += 1;
  }
  const mixed = Object.values(traces).filter((trace) => trace.system !== "lm");
  const lmbda = fixed && fixed === mixed.length ? null : page.lambda;
  /** @type {Run} */
  const run = { v: 1, ...view.head.about, lmbda, traces };
  return view.own ? { ...run, own: true } : run; // the searched text itself is not saved
};

/** A run as CSV: one line per candidate of each token, mixed at the lambda on screen.
 * Tokens are JSON strings, so spaces and line ends are visible, and no cell is a formula.
 * @type {(run: Run) => string} */
const csvOf = (record) => {
  /** @type {(string | number)[][]} */
  const lines = [COLUMNS];
  for (const [system, trace] of Object.entries(record.traces)) {
    for (const step of trace.steps) {
      const lmbda = trace.system === "lm" ? 0 : lambdaAt(step, record.lmbda ?? trace.lmbda);
      for (const row of step.cand) {
        const { id, text, p } = candidateOf(row);
        lines.push([system, step.i, Number(id === step.id), id, JSON.stringify(text), p.lm,
          p.memory ?? "", p.knn ?? "", mix(p, trace.system, lmbda), lmbda]);
      }
    }
  }
  /** @type {(value: string | number) => string} */
  const cell = (value) => (/[",\n\r]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  return `${lines.map((line) => line.map(cell).join(",")).join("\r\n")}\r\n`;
};

/** The lambda for a link to a run, "auto" if a router chose it, null if every column has its
 * default. @param {Run} record */
function lambdaOf(record) {
  if (record.lmbda !== null) return record.lmbda;
  const mixed = SOURCES.slice(1).filter((name) => record.traces[name])
    .map((name) => record.traces[name]);
  if (mixed.some((t) => t.lmbda === "auto")) return "auto";
  const off = mixed.find((t) => page.status.routed ||
    Math.abs(Number(t.lmbda) - (page.defaults[t.system] ?? t.lmbda)) > 1e-9);
  return off ? off.lmbda : null;
}

/** A link that repeats a run on this page. @type {(run: Run) => string} */
export const linkOf = (record) => {
  const query = new URLSearchParams({ q: record.prompt ?? "" });
  const traces = Object.values(record.traces);
  const settings = traces[0]?.settings || {};
  for (const [name, key] of KEYS) {
    if (settings[name] !== undefined) query.set(key, String(settings[name]));
  }
  const lambda = lambdaOf(record);
  if (lambda !== null) query.set("lambda", String(lambda));
  const names = Object.keys(record.traces);
  if (names.join() !== SOURCES.join()) query.set("systems", names.join(","));
  return `${window.location.href.split(/[?#]/)[0]}?${query}`;
};

/** @param {string} name @param {string} type @param {string} text */
function save(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  window.setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** @type {(run: Run) => string} */
const fileName = (record) => `mlp-memory ${record.prompt}`.replace(/[^\p{L}\p{N}]+/gu, "-")
  .slice(0, 60).replace(/-$/, "");

/** The Share button with its panel; open(text) opens a saved run, null if that is not possible. */
export class Share {
  /** @param {((text: string) => void) | null} open */
  constructor(open) {
    this.note = h("p", { class: "share-note", role: "status" });
    this.box = h("input", { class: "share-link", readonly: true, hidden: true,
      "aria-label": "Link to this run", on: { focus: () => this.box.select() } });
    this.picker = h("input", { type: "file", accept: ".json,application/json", hidden: true,
      "aria-label": "Saved run", on: { change: () => this.#picked(open) } });
    this.needing = [
      this.#item("Copy link", "share-copy", () => this.#copy()),
      this.#item("Save as JSON", "share-json", () => this.#save("json")),
      this.#item("Save as CSV", "share-csv", () => this.#save("csv")),
    ];
    this.panel = h("div", { class: "share-panel", id: "share-panel", role: "group",
      "aria-label": "Save and share", hidden: true }, this.needing, this.box,
    open ? [h("hr"), this.#item("Open a saved run…", "share-open", () => this.picker.click()),
      this.picker] : [], this.note);
    this.button = h("button", { type: "button", class: "tool-button share-button",
      "aria-expanded": "false", "aria-controls": "share-panel",
      on: { click: () => this.toggle(this.panel.hidden !== false) } }, "Share");
    this.root = h("div", { class: "share", on: { keydown: (event) => this.#pressed(event) } },
      this.button, this.panel);
    document.addEventListener("pointerdown", (event) => {
      if (event.target instanceof Node && !this.root.contains(event.target)) this.toggle(false);
    });
  }

  /** @param {string} text @param {string} name @param {() => void} act */
  #item(text, name, act) {
    return h("button", { type: "button", class: `share-item ${name}`, on: { click: act } }, text);
  }

  /** @param {boolean} on */
  toggle(on) {
    if (on) {
      const complete = recordOf(page.activeView()) !== null;
      for (const item of this.needing) item.disabled = !complete;
      setText(this.note, complete ? "" : "Only a finished run can be shared.");
      this.box.hidden = true;
    }
    this.panel.hidden = !on;
    this.button.setAttribute("aria-expanded", String(on));
  }

  /** @param {KeyboardEvent} event */
  #pressed(event) {
    if (event.key !== "Escape" || this.panel.hidden) return;
    event.stopPropagation();
    this.toggle(false);
    this.button.focus();
  }

  async #copy() {
    const record = recordOf(page.activeView());
    if (!record) return;
    this.box.value = linkOf(record);
    try {
      await navigator.clipboard.writeText(this.box.value);
      setText(this.note, `The link is copied.${this.#lost(record)}`);
    } catch {
      this.box.hidden = false;
      this.box.focus();
      setText(this.note, `Copy the link from the box.${this.#lost(record)}`);
    }
  }

  /** A note on parts of a run that a link omits. @param {Run} run */
  #lost({ own, traces }) {
    const grown = Object.values(traces).some((trace) => trace.settings?.forced?.length);
    if (!own && !grown) return "";
    return ` The link uses ${own ? "the page's own corpus: save the run to keep your text's answers" : "no branches: save the run to keep them"}.`;
  }

  /** @param {"json" | "csv"} kind */
  #save(kind) {
    const record = recordOf(page.activeView());
    if (!record) return;
    const text = kind === "csv" ? csvOf(record) : JSON.stringify(record);
    save(`${fileName(record)}.${kind}`, kind === "csv" ? "text/csv" : "application/json", text);
    setText(this.note, "Saved.");
  }

  /** @param {((text: string) => void) | null} open */
  async #picked(open) {
    const file = this.picker.files?.[0];
    this.picker.value = "";
    if (!file || !open) return;
    if (page.runningView()) {
      setText(this.note, "A run is in progress. Stop it first.");
      return;
    }
    if (file.size > MOST) {
      setText(this.note, `The file must have at most 6 MB; it has ${megabytes(file.size)}.`);
      return;
    }
    open(await file.text());
    this.toggle(false);
    this.button.focus();
  }
}

// @ts-check
/* State shared by the parts of the page: lambda, the status, the views, the columns' names. */
/** @import { Defaults, Events, Lambda, LambdaBar, Offer, Own, Packed } from "./types.js" */
/** @import { Reader, Records, Shown, Status, TokenView, Trace } from "./types.js" */
import { h } from "./dom.js";
import { term } from "./glossary.js";
import { partsOf } from "./mix.js";

/** @type {{ [name: string]: ((detail: any) => void)[] }} */
const listeners = {};

export const page = {
  /** @type {number | null} */
  lambda: null, // null: every text is shown at its own lambda
  auto: false, // a router chooses it for the next text; lambda is null then
  /** @type {Defaults} */
  defaults: { memory: 0.5, knn: 0.5 },
  /** @type {Status} */
  status: { state: "loading", waiting: "", no_memory: "" },
  /** @type {TokenView[]} */
  views: [],
  /** @type {LambdaBar | null} */
  bar: null,
  local: false, // answers come from this browser, so a silent run is a sleeping tab and no lost connection
  /** Scores a text on the Inspect tab, if there is one; `special` tells that it has control tokens. An answer
   * brings its ids, because what somebody typed may be a control token's name, and text all the same.
   * @type {((text: string, special: boolean, ids?: number[]) => void) | null} */
  inspect: null,
  /** What an answer last brought to that tab. @type {{ text: string, ids: number[] }} */
  brought: { text: "", ids: [] },
  /** Opens a neighbour's document on the Corpus tab, if there is one. @type {Reader | null} */
  read: null,
  /** Opens a saved conversation in the chat, if there is one, and returns what to say; it may throw an error for a person.
   * @type {((file: string) => string) | null} */
  openTalk: null,
  /** @template {keyof Events} N @param {N} name @param {(detail: Events[N]) => void} fn */
  on(name, fn) {
    listeners[name] ||= [];
    listeners[name].push(fn);
  },
  /** @template {keyof Events} N @param {N} name @param {Events[N]} detail */
  emit(name, detail) {
    for (const fn of listeners[name] || []) fn(detail);
  },
  /** @param {number | null} value @param {boolean} [auto] */
  setLambda(value, auto = false) {
    this.lambda = value;
    this.auto = auto;
    this.emit("lambda", value);
  },
  /** The view on the open tab. */
  activeView() {
    const here = this.views.filter((view) => view.root.isConnected);
    return here.find((view) => view.shown) || here[0] || null;
  },
  /** The view of any tab whose run is in progress. */
  runningView() {
    return this.views.find((view) => view.running) || null;
  },
};

/** The lambda that a trace on screen is mixed at: the slider's, also between those of scrubbed texts; else its own, or
 * "auto" if every token has one (lambdaAt). @type {(trace: Shown) => Lambda} */
export const lambdaOf = (trace) => page.lambda ?? trace.lmbda;

/** Whether a router can choose a system's lambda. Where a visitor's own text is searched, it is the
 * text's own gate, if the server fits one. @type {(system: string, own?: Own) => boolean} */
export const canRoute = (system, own) => own && partsOf(system).includes("knn")
  ? system === "knn" && Boolean(page.status.gated)
  : (page.status.auto || []).includes(system);

/** @typedef {{ title: string, source: string, short: string, kind?: string, alone?: string, guessed?: boolean }} Name */
/** @type {{ [system: string]: Name }} */
const NAMES = Object.assign(Object.create(null), {
  lm: { title: "Decoder only", source: "decoder", short: "decoder" },
  memory: { title: "With memory", source: "memory", short: "memory" },
  knn: { title: "With datastore", source: "datastore", short: "datastore" },
});
/** @type {{ [system: string]: string }} */
export const CAPTIONS = {
  lm: "A frozen language model. It knows only its training text.",
  memory: "The same decoder, mixed with a small MLP, the memory.",
  knn: "The same decoder, mixed with a kNN search over the corpus.",
};
/** Each system's measured accuracy. @type {{ [system: string]: Records }} */
export const RECORDS = Object.create(null);
/** Of an answer that no passage of a visitor's own text was near. */
export const AWAY = "The gate found no passage of your text near enough: the decoder answers alone.";
/** Captions of columns that search a visitor's own text. @type {{ [system: string]: string }} */
export const OWN_CAPTIONS = {
  knn: "The same decoder, mixed with a kNN search over your own text. The memory does not know " +
    "this text, because it was trained earlier.",
  mixed: "The same decoder, mixed with memory and the datastore of your own text in equal shares.",
  rag: "The same decoder without a memory; the best passage of your own text by BM25 is put before " +
    "the prompt.",
};
/** @type {{ [group: string]: string }} */
export const GROUPS = {
  A1: "a fact that decoder and memory were taught",
  A2: "a fact that only the decoder was taught",
  B: "a fact that the decoder was never told",
  text: "running text",
  stranger: "one-off invented names",
};

/** @type {{ [group: string]: string }} */
const TERMS = { A1: "known", A2: "known", B: "fresh" };

/** A tag with a document's group, explained on hover. @type {(group: string) => HTMLElement} */
export const groupTag = (group) => {
  const tag = h("span", { class: "group-tag", "data-group": group }, GROUPS[group] || "");
  return TERMS[group] ? term(tag, TERMS[group]) : tag;
};

/** A value from Python, sent as one string; see components.py.
 * @type {(value: Packed | undefined) => any} */
export const unpack = (value) => (value?.json ? JSON.parse(value.json) : null);

/** @type {(system: string) => Name} */
export const nameOf = (system) => NAMES[system] || { title: system, source: system, short: system };

/** A column's title within a sentence. @type {(system: string) => string} */
export const inline = (system) => (kindOf(system) ? nameOf(system).short : nameOf(system).title.toLowerCase());

/** The kind of an extra column: "mixed", "rag", "tuned", "memory"; "" for the three sources.
 * @type {(system: string) => string} */
export const kindOf = (system) => nameOf(system).kind || "";
/** @type {{ [kind: string]: string }} */
const SOURCE = { mixed: "memory and datastore", memory: "other memory" };
const MOST_CAPTION = 160; // characters, as in a bundle
/** @type {{ [kind: string]: string }} */
const ALONE = { rag: "With the passage, the decoder", tuned: "This decoder" };

/** Registers the names of extra columns. @type {(columns: Offer[] | undefined) => void} */
export const introduce = (columns) => {
  for (const { name, kind, title, short, caption, guessed } of columns || []) {
    if (NAMES[name] && !kindOf(name)) continue;
    NAMES[name] = { kind, title, short, source: SOURCE[kind] || "decoder", alone: ALONE[kind],
      guessed };
    CAPTIONS[name] = caption;
  }
};

/** Registers the columns of a run from another page, with names derived from its traces.
 * @type {(traces: { [system: string]: Partial<Trace> }) => void} */
export const introduceTraces = (traces) => {
  for (const [name, trace] of Object.entries(traces)) {
    if (NAMES[name] && !NAMES[name].guessed) continue;
    const kind = trace.system === "mixed" ? "mixed" : trace.system !== "lm" ? "memory"
      : Number.isFinite(trace.cost?.retrieval_ms) ? "rag" : "tuned";
    const short = name.replaceAll("_", " ");
    const title = short.charAt(0).toUpperCase() + short.slice(1);
    const caption = String(trace.model?.label || "").slice(0, MOST_CAPTION);
    introduce([{ name, kind, title, short, caption, guessed: true }]);
  }
};

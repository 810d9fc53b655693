/* The shapes of what Python sends, as mlpmem's Trace.to_dict and ui's stream.py write them. Types only: nothing of this
 * file reaches a browser. */

import type { LambdaBar } from "../tools/lambda.js";
import type { Columns } from "../view/columns.js";
import type { Pane } from "../view/panes.js";
import type { TokenView } from "../view/view.js";

export type { Columns, LambdaBar, Pane, TokenView };
export type Source = "lm" | "memory" | "knn";
/** "auto": a router chose one for every token, which stands in its step. */
export type Lambda = number | "auto";
/** A probability by source; absent or null where a source did not answer. */
export type Probs = { lm: number } & { [source: string]: number | null | undefined };

/** [token id, text, p of lm, of memory, of knn] */
export type CandidateRow = [number, string, number, number | null, number | null];
export interface Candidate { id: number; text: string; p: { lm: number; memory: number | null; knn: number | null } }

/** [entry, title, group, left, target, target id, right, squared L2 distance, weight 0 .. 1] */
export type NeighbourRow =
  [number, string, string, string, string, number, string, number | null, number | null];
export interface Neighbour {
  entry: number; title: string; group: string; left: string; target: string; targetId: number;
  right: string; distance: number | null; weight: number | null;
}

/** Opens the document of a neighbour. */
export type Reader = (neighbour: Neighbour) => void;

export interface Step {
  i: number;
  id: number;
  s: string;
  p: Probs;
  cand: CandidateRow[];
  rest: Probs;
  js: number | null;
  nn: NeighbourRow[];
  ms: number | null;
  far?: [number, number][]; // absent in older recordings
  lmbda?: number; // this token's own, where the trace's is "auto"
}

export interface Settings {
  max_new_tokens?: number; temperature?: number; top_p?: number; top_k?: number; seed?: number;
  min_p?: number; repetition_penalty?: number; stop?: string[]; special?: boolean;
  forced?: number[]; scored?: boolean | number; asked?: string;
}

/** A column that begins. */
export interface Opening { system: string; lmbda: Lambda; settings: Settings }

export interface Trace extends Opening {
  v: number;
  prompt: string;
  prompt_ids: number[];
  model: { [name: string]: string };
  steps: Step[];
  finish: string;
  text: string;
  cost: Cost;
}
export type Cost = { [part: string]: number };
export type Traces = { [system: string]: Trace };

/** What a column shows: a trace that grows or is whole, or a scrubbed text. */
export type Shown = Opening & Partial<Trace> & { steps: Step[]; fixed?: boolean; changed?: Set<number>; kind?: number };
/** One of eleven scrubbed texts; its first `kept` steps are those of text number `like`. */
export type ScrubText = Trace & { like: number; kept: number };
export type Scrubbed = Trace & { fixed: true; changed: Set<number>; kind: number };

/** What is known of a prompt. */
export interface About { prompt?: string; answer?: string; aliases?: string[]; part?: string; wording?: string }

/** The visitor's own text that was searched, as the server calls it: "" for none, true in a saved run. */
export type Own = string | true;

/** One value for a token view. */
export type Value = { run: string } & (
  | { kind: "message"; text: string }
  | { kind: "invite" }
  | About & { kind: "recorded"; traces: Traces; own?: Own }
  | About & { kind: "opened"; traces: Traces; own?: Own; lmbda: number | null }
  | About & { kind: "linked"; traces: Traces | null; own?: Own; ready: boolean; lmbda: Lambda | null }
  | About & { kind: "begin"; traces: { [system: string]: Opening }; columns?: string[]; own?: Own; branch?: boolean; typed?: string }
  | { kind: "steps"; seq: number; steps: { [system: string]: Step[] } }
  | { kind: "wait" | "failed"; columns: { [system: string]: string } }
  | { kind: "column"; columns: { [system: string]: Opening } }
  | { kind: "part"; traces: Traces }
  | { kind: "done"; traces: Traces; failed?: { [system: string]: string }; lmbdas?: { [source: string]: number } }
  | { kind: "scrub"; tokens: number }
  | { kind: "scrubbed"; texts: ScrubText[]; cost: { seconds: number; single: number } });
export type ValueOf<K> = Extract<Value, { kind: K }>;

/** One value for Inspect: a token view's, its progress, or the scored text. */
export type Inspected = Value | { kind: "progress"; run: string; done: number; total: number };

export interface Status {
  state: string; line?: string; share?: number | null; ready?: boolean; settled?: boolean; waiting: string;
  no_memory?: string; defaults?: Defaults; auto?: string[]; routed?: boolean;
}
export type Defaults = { [source: string]: number };
/** A further column, as extras.py offers it. */
export interface Offer { name: string; kind: string; title: string; short: string; caption: string; guessed?: boolean }
/** Shares of [new, known] facts that a system gets right, at its own lambda and as a router chose. */
export type Records = { own?: [number, number]; auto?: [number, number] };
export interface Example { prompt: string; group: string }
export interface Turn { question: string; answer: string; system: string; try: number; firsts: [number, string][]; done: boolean }
export interface Hit { document: number; title: string; group: string; before: string; match: string; after: string }
export type Found =
  | { kind: "message"; text: string }
  | { kind: "hits"; query: string; count: number; hits: Hit[] }
  | { kind: "document"; document: number; title: string; group: string; passages: string[][]; count: number };
export type OwnText =
  | { kind: "message"; text: string }
  | { kind: "begin"; run: string; title: string }
  | { kind: "progress"; run: string; done: number; total: number }
  | { kind: "ready"; run: string; title: string; documents: number; tokens: number; bytes: number; seconds: number; note?: string }
  | { kind: "gone"; stopped?: string };
export interface Probed { number: number; error?: string; rows?: { id: number; text: string; named: string; p: Probs }[] }
/** What a column may be asked for; the server checks it. */
export interface Request {
  kind: "branch" | "scrub" | "typed"; run: string; system: string; lmbda: Lambda | null; settings?: Settings; forced: number[];
  systems?: string[]; typed?: string;
}

/** A value of Python's that travels as one string, see components.py. */
export interface Packed { json: string }
/** The properties of a Gradio component, and how a script hears that one changed. */
export type Props<T, More = object> = { value?: T } & More;
export type Watch = (name: "value", listener: () => void) => void;

/** How a token was chosen: by pointer or key it takes the focus too. */
export type How = "pointer" | "key" | "page" | "drawer";

/** What the parts of the page tell each other. */
export interface Events {
  lambda: number | null; status: Status; pending: undefined;
  view: Columns; cite: Columns; stopped: Columns; ended: Columns;
}

declare global {
  interface Window { MLPMEM: object }
}

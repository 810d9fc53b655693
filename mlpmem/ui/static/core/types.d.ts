/* The types of Python's values, as Trace.to_dict and ui/request/stream.py write them. This file is not sent to the
 * browser. */

import type { LambdaBar } from "../tools/lambda.js";
import type { Columns } from "../view/columns.js";
import type { Pane } from "../view/panes.js";
import type { TokenView } from "../view/view.js";

export type { Columns, LambdaBar, Pane, TokenView };
export type Source = "lm" | "memory" | "knn";
/** "auto": a router chose one for every token, in step.lmbda. */
export type Lambda = number | "auto";
/** Probabilities by source; absent or null for a source without an answer. */
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

/** A conversation as a file has it; `left` counts the oldest turns that it leaves out. */
export interface Conversation {
  v: 1; kind: "chat"; lmbda: number | null; left: number;
  turns: { question: string; own?: true; right?: string[]; traces: { [system: string]: Shown } }[];
}
/** A conversation that can be shared; `fragment` ends a link to it, null if it is too long for one. */
export interface Shared { count: number; own: boolean; fragment: string | null; record: () => Conversation }

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
  lmbda?: number; // this token's own, if the trace's is "auto"
  top?: number; // candidates of each source that are kept at least; absent in older recordings
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

/** A column's content: a partial or whole trace, a scrubbed text, or a recording within a live run. */
export type Shown = Opening & Partial<Trace> & { steps: Step[]; fixed?: boolean; changed?: Set<number>; kind?: number; recorded?: boolean };
/** One of eleven scrubbed texts; its first `kept` steps are those of text number `like`. */
export type ScrubText = Trace & { like: number; kept: number };
/** Columns' texts at eleven lambdas, which a recording brings. */
export type Scrubs = { [system: string]: { texts: ScrubText[]; cost: { seconds: number; single: number | null } } };
export type Scrubbed = Trace & { fixed: true; changed: Set<number>; kind: number };

/** The known facts about a prompt. */
export interface About { prompt?: string; answer?: string; aliases?: string[]; part?: string; wording?: string;
  chat?: boolean } // asked as a chat

/** The short id of the visitor's own text that was searched: "" for none, true in a saved run. */
export type Own = string | true;

/** Captions of columns in place of their usual ones. */
export type Captions = { [system: string]: string };

/** One value for a token view. */
export type Value = { run: string } & (
  | { kind: "message"; text: string }
  | { kind: "invite"; prompt?: string; systems?: string[] }
  | About & { kind: "recorded"; traces: Traces; own?: Own; captions?: Captions; paced?: boolean; scrubs?: Scrubs }
  | About & { kind: "opened"; traces: Traces; own?: Own; captions?: Captions; lmbda: number | null }
  | About & { kind: "linked"; traces: Traces | null; own?: Own; captions?: Captions; ready: boolean; lmbda: Lambda | null }
  | About & { kind: "begin"; traces: { [system: string]: Opening }; columns?: string[]; own?: Own; branch?: boolean; typed?: string; captions?: Captions }
  | { kind: "steps"; seq: number; steps: { [system: string]: Step[] } }
  | { kind: "wait" | "failed"; columns: { [system: string]: string } }
  | { kind: "column"; columns: { [system: string]: Opening } }
  | { kind: "part"; traces: Traces }
  | { kind: "done"; traces: Traces; failed?: { [system: string]: string }; lmbdas?: { [source: string]: number }; truth?: Probs[] | null }
  | { kind: "answers"; system: string; texts: ScrubText[]; cost: { seconds: number; single: number | null } }
  | { kind: "scrub"; tokens: number }
  | { kind: "scrubbed"; texts: ScrubText[]; cost: { seconds: number; single: number | null } });
export type ValueOf<K> = Extract<Value, { kind: K }>;

/** One value for Inspect: a token view's, its progress, or the scored text. */
export type Inspected = Value | { kind: "early"; run: string; traces: Traces; lmbdas: { [source: string]: number } } | { kind: "progress"; run: string; done: number; total: number };

export interface Status {
  state: string; line?: string; share?: number | null; ready?: boolean; settled?: boolean; waiting: string;
  no_memory?: string; download?: string; defaults?: Defaults; auto?: string[]; routed?: boolean; gated?: boolean;
  chat?: import("../chat/types.js").Facts | null;
}
export type Defaults = { [source: string]: number };
/** An extra column, as offers.py lists it. */
export interface Offer { name: string; kind: string; title: string; short: string; caption: string; guessed?: boolean }
/** A system's accuracy on [new, known] facts, at its own lambda and with a router. */
export type Records = { own?: [number, number]; auto?: [number, number] };
export interface Example { prompt: string; group: string }
export interface Hit { document: number; title: string; group: string; before: string; match: string; after: string }
export type Found =
  | { kind: "message"; text: string }
  | { kind: "hits"; query: string; count: number; hits: Hit[] }
  | { kind: "document"; document: number; title: string; group: string; passages: string[][]; count: number };
export type OwnText =
  | { kind: "message"; text: string }
  | { kind: "begin"; run: string; title: string }
  | { kind: "reading"; run: string; name: string; index: number; count: number }
  | { kind: "progress"; run: string; done: number; total: number; fitting?: boolean }
  | { kind: "ready"; run: string; title: string; documents: number; tokens: number; bytes: number; seconds: number; note?: string; failed?: string[] }
  | { kind: "gone"; stopped?: string };
/** A recorded question of the game, with the answers at every lambda. */
export interface GameRow { prompt: string; answers: string[]; lmbdas: number[]; lm: string; memory: string[]; knn: string[]; curve: number[] }
export interface GameRound {
  question: string; answer: string; lmbda: number; curve: number[];
  columns: { system: string, title: string, text: string, right: boolean }[];
}
/** A datastore to save, in base64. */
export type SavedStore = { kind: "saved"; title: string; data: string } | { kind: "message"; text: string };
/** Told sentences, and the teaching of a memory. */
export type Taught =
  | { kind: "message"; text: string }
  | { kind: "told"; sentences: string[]; seconds?: number }
  | { kind: "teaching"; run: string; step: number; steps: number; loss: number; left: number | null }
  | { kind: "taught"; run: string; sentences: number; seconds: number; steps: number; planned: number;
      rows: { sort: string; question: string; answer: string; before: string; after: string }[] }
  | { kind: "untaught" };
export interface Probed { number: number; error?: string; rows?: { id: number; named: string; p: Probs; tokens: Probs[] }[] }
/** Passages that say what the memory wrote; every second part is a word of question or answer. */
export interface Origins { run: string; error: string; origins: { document: number; title: string; group: string; parts: string[] }[] }
/** A request of a column's own buttons; the server checks it. */
export interface Request {
  kind: "branch" | "scrub" | "typed"; run: string; system: string; lmbda: Lambda | null; settings?: Settings; forced: number[];
  systems?: string[]; typed?: string; chat?: boolean;
}

/** A value from Python, sent as one string; see components.py. */
export interface Packed { json: string }
/** The properties of a Gradio component, and the function that watches one. */
export type Props<T, More = object> = { value?: T } & More;
export type Watch = (name: "value", listener: () => void) => void;

/** How a token was selected; by pointer or key it also takes the focus. */
export type How = "pointer" | "key" | "page" | "drawer";

/** The page's events and their data. */
export interface Events {
  lambda: number | null; status: Status; pending: undefined;
  view: Columns; cite: Columns; stopped: Columns; ended: Columns;
}

declare global {
  interface Window { MLPMEM: object }
}

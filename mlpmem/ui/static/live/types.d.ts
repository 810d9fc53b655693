/* The types of what the page asks the worker, and of what the engine passes on. This file is not sent to the browser. */

import type { ChatRequest, ChatValue, Facts as ChatFacts } from "../chat/types.js";
import type { Inspected, Lambda, OwnText, Probed, Step, Value } from "../core/types.js";

/** A value that answers a plan. */
export type Answer = Value | ChatValue | Inspected | OwnText | Probed;

/** The files of a model that the page loads, as mlpmem/space/live.py lists them; every part but the last has `size` bytes. */
export interface Listed { bytes: number; sha256: string; size: number; parts: string[]; hashes: string[] }
export interface Live {
  version: string; // names the browser's cache
  name: string; // of the bundle
  title: string; // what the page calls the model
  files: { [name: string]: Listed };
  settings: { lmbda: { [source: string]: number }; k: number; knn_temperature: number; memory_temperature: number; auto: boolean };
  questions: boolean; // the decoder was trained on "Question: ... Answer:"
  chat: boolean; // it can chat: it has no chat template, or one that `turns` gives
  turns: Turns | null;
  chats: boolean; // prompts are asked as chats, as the memory's questions were
  texts: Texts; // what the gate of a visitor's own text is fitted to
  asked: boolean; // it is large, so it is loaded only when a visitor asks for it
  eos: number[];
}

/** Requests of no text in particular with their answers, and questions about some words of a sentence, {}. */
export interface Texts { general: [string, string][]; asked: string[] }

/** The texts of a chat template around its turns, as mlpmem/space/turns.py finds them; `end` comes before the answer to be
 * written, and `system` holds what stands around a system message. */
export interface Turns { before: string; answer: string; question: string; end: string; system: [string, string] | null }

export interface Options {
  max_new_tokens: number; temperature: number; top_p: number; top_k: number; seed: number; min_p: number;
  repetition_penalty: number; special: boolean; stop: string[];
}

/** What the page asks; its answers bear the same run. */
export type Plan = { run: string } & (
  | { kind: "compare"; prompt: string; systems: string[]; lmbda: Lambda | null; options: Options; forced: number[]; own: boolean; chat?: boolean }
  | { kind: "scrub"; prompt: string; system: string; lmbda: Lambda | null; options: Options; forced: number[]; own: boolean; chat?: boolean }
  | ChatRequest & { kind: "chat"; own: boolean }
  | { kind: "inspect"; text: string; ids?: number[]; lmbda: number | null; own: boolean; special?: boolean }
  | { kind: "probe"; number: number; ids: number[]; text: string; own: boolean }
  | { kind: "own"; text: string }
  | { kind: "forget" });
export type PlanOf<K> = Extract<Plan, { kind: K }>;

/** What the worker says: about its files, or a value of a job; the last of a job is "end". */
export type Said =
  | { about: "files"; loaded: number; total: number }
  | { about: "ready"; facts: Facts }
  | { about: "lost"; text: string }
  | { about: "value"; job: number; value: Answer }
  | { about: "end"; job: number };
/** A loaded model: systems with a router, whether the kernel runs, whether the files are kept for the next visit, the
 * seconds from the last byte, the bytes of its parts, and what the chat must know. */
export interface Facts { auto: string[]; kernel: boolean; kept: boolean; seconds: number; decoder: number; memory: number; chat: ChatFacts }
/** What the page sends: the files to load, a job, or its end. */
export type Sent = { load: Live } | { job: number; plan: Plan } | { stop: number };

/** Hidden states, with any context vectors behind each (R, K), and what enters the head (R, D), R rows. */
export interface States { hidden: Float32Array; features: Float32Array }
/** One position under every source: log-probs (V,), what was searched, and the state (K,) that all come from. */
export interface Position {
  logs: { [source: string]: Float32Array };
  found: Found | null;
  state: Float32Array;
}
/** What a search found; `near` is what a gate reads of it: the greatest share of a sentence, tokens that the best entry follows,
 * and the nearest state's distance relative to what is usual between sentences. */
export interface Found { entries: number[]; distances: Float32Array; weights: number[]; values: number[]; near: number[] }

/** One system at one lambda in one run, with what it has written so far. */
export interface Writer {
  name: string; system: string; lmbda: Lambda; evidence: number; steps: Step[]; finish: string; row: number;
  ids: number[]; push: (bytes: Uint8Array) => string;
}
export type { Lambda, Step };

/* The types of the chat: its conversation, its requests and what answers them. This file is not sent to the browser. */

import type { About, Lambda, Own, Settings, Shown, Step, Trace } from "../core/types.js";

/** A part of a text, `from` up to `to`. A mark is syntax, such as the asterisks of a bold word. */
export interface Leaf { from: number; to: number; mark: boolean }
/** A node of a text's structure; every character is in exactly one leaf, in order. */
export interface Block { tag: string; kids: (Block | Leaf)[]; attrs?: { [name: string]: string } }

/** One answer of one system. `read` counts the tokens of its prompt, `room` the decoder's, `dropped` the oldest turns that
 * did not fit. `state` is "waiting", "running", "done", "stopped" or "failed". */
export interface Answer {
  id: string; system: string; trace: Shown; state: string; error: string; asked: Sampling;
  read: number; room: number; dropped: number;
  how: "" | "again" | "word"; // begun with another token, or written on from one that the visitor chose
}
/** A column's answers to one question; `at` is the one on screen. */
export interface Versions { list: Answer[]; at: number }
/** One question. `after` names the answers that it follows; of several questions at one place, the last picked is shown.
 * `asked` and `picked` count in one sequence; a turn kept by an older page has no `asked`. */
export interface Turn {
  id: string; parent: string; after: { [system: string]: string }; question: string; typed: boolean; form: boolean;
  own: Own; about: About; asked: number; picked: number; answers: { [system: string]: Versions };
}

/** How an answer is sampled; null is the model's own. */
export interface Sampling {
  system: string; temperature: number | null; top_p: number | null; min_p: number | null;
  repetition_penalty: number | null; longest: number | null; stop: string[]; seed?: number;
}
/** What the page knows of a model (mlpmem/ui/service/facts.py). */
export interface Facts {
  systems: string[]; template: boolean; room: number; tokenizer: string; longest: number; most: number; question: number;
  usual: { [name: string]: number };
}

/** One column of a request: its earlier turns, the ids that its answer begins with, and how many of them the page has. */
export interface Asked { system: string; before: [string, string][]; forced: number[]; kept: number }
export interface ChatRequest {
  run: string; question: string; typed: boolean; lmbda: Lambda | null; settings: Sampling; columns: Asked[];
}
export interface Begun { system: string; lmbda: Lambda; settings: Settings; kept: number; read: number; room: number; dropped: number }
/** One value of an answer. */
export type ChatValue = { run: string } & (
  | { kind: "message"; text: string }
  | About & { kind: "begin"; form: boolean; own: Own; columns: { [system: string]: Begun } }
  | { kind: "steps"; seq: number; steps: { [system: string]: Step[] } }
  | { kind: "failed"; columns: { [system: string]: string } }
  | { kind: "done"; seq: number; traces: { [system: string]: Trace } });

/** What the chat needs of the page around it. */
export interface Around { ask: (request: ChatRequest) => void; halt: () => void }
export interface Texts { note: string; question: string; systems: string[]; starters: [string, string][] }

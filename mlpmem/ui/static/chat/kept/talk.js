// @ts-check
/* A conversation as a tree of questions, each with every system's answers. Plain values, without DOM.
 *
 * A question belongs to the answers on screen when it was asked (`after`), so another version of an answer has its own
 * later turns, and the old ones come back with the old version. */
/** @import { Answer, Asked, Turn, Versions } from "../types.js" */
import { textOf } from "../text/slices.js";

const ROOT = "";

/** A new id. */
const newId = () => crypto.getRandomValues(new Uint32Array(3)).join("-");

/** The answer of a column on screen. @type {(versions: Versions | undefined) => Answer | null} */
export const shownOf = (versions) => versions?.list[versions.at] ?? null;

export class Talk {
  constructor() {
    /** @type {Map<string, Turn>} */
    this.turns = new Map();
    this.picks = 0;
  }

  /** Takes turns as they were kept. @param {Turn[]} turns */
  restore(turns) {
    const ids = new Set([ROOT, ...turns.map(({ id }) => id)]);
    const known = turns.map((turn) => ({ ...turn, asked: turn.asked ?? turn.picked,
      ...(ids.has(turn.parent) ? {} : { parent: ROOT, after: {} }) })); // the turn before was erased on another page
    known.sort((a, b) => a.asked - b.asked); // they are kept by id, which is random
    this.turns = new Map(known.map((turn) => [turn.id, turn]));
    this.picks = Math.max(0, ...known.map((turn) => turn.picked));
  }

  /** The questions that follow a turn's answers on screen, in the order in which they were asked.
   * @param {string} parent @param {{ [system: string]: string }} after */
  #children(parent, after) {
    const found = [...this.turns.values()].filter((turn) => turn.parent === parent);
    return found.filter((turn) => Object.entries(turn.after).every(([system, id]) => after[system] === id));
  }

  /** The ids of a turn's answers on screen. @param {Turn | undefined} turn @returns {{ [system: string]: string }} */
  #afterOf(turn) {
    const entries = Object.entries(turn?.answers ?? {}).map(([system, versions]) => [system, shownOf(versions)?.id ?? ""]);
    return Object.fromEntries(entries);
  }

  /** The turns on screen, oldest first. @returns {Turn[]} */
  path() {
    /** @type {Turn[]} */
    const path = [];
    for (let last = path[path.length - 1]; ; last = path[path.length - 1]) {
      const next = this.#children(last?.id ?? ROOT, this.#afterOf(last));
      if (!next.length) return path;
      path.push(next.reduce((best, turn) => (turn.picked > best.picked ? turn : best)));
    }
  }

  /** The questions at a turn's place, itself among them. @param {Turn} turn */
  siblings(turn) {
    return this.#children(turn.parent, this.#afterOf(this.turns.get(turn.parent)));
  }

  /** Shows another question at its place. @param {Turn} turn */
  pick(turn) {
    this.picks += 1;
    turn.picked = this.picks;
  }

  /** Adds a question at the end, or at an earlier turn's place. @param {string} question @param {Turn} [instead] @returns {Turn} */
  add(question, instead) {
    const path = this.path();
    const parent = instead ? this.turns.get(instead.parent) : path[path.length - 1];
    /** @type {Turn} */
    const turn = { id: newId(), parent: parent?.id ?? ROOT, after: this.#afterOf(parent), question, typed: false, form: false,
      own: "", about: {}, asked: 0, picked: 0, answers: {} };
    this.turns.set(turn.id, turn);
    this.pick(turn);
    turn.asked = turn.picked;
    return turn;
  }

  /** Adds an answer to a turn and shows it. @param {Turn} turn @param {Answer} answer */
  answer(turn, answer) {
    turn.answers[answer.system] ??= { list: [], at: 0 };
    const versions = turn.answers[answer.system];
    versions.list.push(answer);
    versions.at = versions.list.length - 1;
  }

  /** Removes an answer that never began, and shows the version `at` again; the only version stays.
   * @param {Turn} turn @param {Answer} answer @param {number} at */
  withdraw(turn, answer, at) {
    const versions = turn.answers[answer.system];
    if (!versions || versions.list.length < 2) return;
    versions.list = versions.list.filter((one) => one !== answer);
    versions.at = Math.min(at, versions.list.length - 1);
  }

  /** Whether later questions follow an answer. @param {Turn} turn @param {Answer} answer */
  isFollowed(turn, answer) {
    return [...this.turns.values()].some((one) => one.parent === turn.id && one.after[answer.system] === answer.id);
  }

  /** The turns before one, oldest first. @param {Turn} turn @returns {Turn[]} */
  before(turn) {
    const found = [];
    for (let one = this.turns.get(turn.parent); one; one = this.turns.get(one.parent)) found.unshift(one);
    return found;
  }

  /** A system's own history before a turn: the questions that it answered, with its answers, texts unchanged.
   * `skipped` counts the others. @param {Turn} turn @param {string} system */
  history(turn, system) {
    /** @type {[string, string][]} */
    const before = [];
    let skipped = 0;
    let { after } = turn;
    for (const one of this.before(turn).reverse()) {
      const answer = one.answers[system]?.list.find(({ id }) => id === after[system]);
      if (answer?.trace.steps.length) before.unshift([one.question, textOf(answer.trace)]);
      else skipped += 1;
      ({ after } = one);
    }
    return { before, skipped };
  }

  /** A column of a request. @param {Turn} turn @param {string} system @param {number[]} forced @param {number} kept @returns {Asked} */
  asked(turn, system, forced, kept) {
    return { system, before: this.history(turn, system).before, forced, kept };
  }
}

/** A new answer, of which some steps may be known.
 * @param {string} system @param {import("../types.js").Sampling} asked @param {Partial<Answer["trace"]>} [trace] @returns {Answer} */
export const newAnswer = (system, asked, trace = {}) => ({ id: newId(), system, asked, state: "waiting", error: "", read: 0, room: 0,
  dropped: 0, how: "", trace: { system, lmbda: 0, settings: {}, ...trace, steps: [...(trace.steps ?? [])], finish: "" } });

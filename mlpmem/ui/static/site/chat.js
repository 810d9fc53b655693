// @ts-check
/* The Chat tab: one system answers in turns, as mlpmem/ui/panels/chat.py does on a server. */
/** @import { Lambda, Trace, Turn, Value } from "../core/types.js" */
/** @import { Desk } from "./desk.js" */
import { h, inside, setText } from "../core/dom.js";
import { page } from "../core/state.js";
import { mountView } from "../view/page.js";
import { mountLog } from "../tabs/chat.js";
import { at } from "./desk.js";
import { Slot, newRun, packed } from "./slot.js";

const MOST_TURNS = 12;
const NAMES = { lm: "Decoder only", memory: "With memory", knn: "With datastore" };

/** @typedef {Turn & { lmbda: Lambda | null }} Asked */

/** A turn without an answer; "firsts" will have its likeliest first tokens.
 * @param {string} question @param {string} system @param {Lambda | null} lmbda @returns {Asked} */
const newTurn = (question, system, lmbda) => ({ question, answer: "", system, lmbda, try: 1, firsts: [], done: false, typed: false });

/** The turn for another answer: try n begins with the n-th likeliest token. @param {Asked} turn @param {string} system @param {Lambda | null} lmbda @returns {Asked} */
const anotherTry = (turn, system, lmbda) => {
  const fresh = newTurn(turn.question, system, lmbda);
  if (turn.system !== system || turn.lmbda !== lmbda || !turn.firsts.length) return fresh;
  return { ...fresh, try: (turn.try - 1 + Number(turn.done)) % turn.firsts.length + 1, firsts: turn.firsts };
};

/** The candidates for an answer's first token, without the end token. @param {Trace} trace @returns {[number, string][]} */
const firstsOf = ({ steps, finish }) => {
  const end = finish === "eos" ? steps[steps.length - 1].id : null;
  return steps[0].cand.filter((row) => row[0] !== end).map((row) => [row[0], row[1]]);
};

export class Chat {
  /** @param {Desk} desk */
  constructor(desk) {
    this.desk = desk;
    /** @type {Asked[]} */
    this.turns = [];
    /** @type {number | null} */
    this.job = null;
    const { chat } = desk.values;
    setText(at("chat-note"), chat.note);
    this.log = new Slot(packed([]), { hint: chat.hint });
    mountLog(at("chat-log"), this.log.props, this.log.watch, () => {});
    mountView(at("chat-view"), { prefix: "chat-pane-", systems: [] }, () => {});
    this.view = page.views[page.views.length - 1];
    this.box = /** @type {HTMLTextAreaElement} */ (inside(at("chat-input"), "textarea"));
    this.#offer();
    at("chat-send").addEventListener("click", () => this.#send());
    at("chat-retry").addEventListener("click", () => this.#retry());
    at("chat-stop").addEventListener("click", () => desk.door?.stop(this.job));
    at("chat-clear").addEventListener("click", () => this.#clear());
    this.box.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.ctrlKey || event.metaKey || event.isComposing) return;
      event.preventDefault();
      this.#send();
    });
  }

  /** Offers the systems; the datastore answers only from a text of the visitor's. */
  #offer() {
    this.sources = Object.entries(NAMES).map(([name, text]) => {
      const input = h("input", { type: "radio", name: "chat-source", value: name, checked: name === "memory" });
      return { name, input, root: h("label", null, input, text) };
    });
    at("chat-source").replaceChildren(...this.sources.map(({ root }) => root));
    this.refresh();
  }

  /** Hides the datastore without a text of the visitor's. */
  refresh() {
    const [, memory, knn] = this.sources ?? [];
    knn.root.hidden = !this.desk.own;
    if (knn.root.hidden && knn.input.checked) memory.input.checked = true;
  }

  get system() {
    return this.sources?.find(({ input }) => input.checked)?.name ?? "memory";
  }

  #send() {
    this.#answer([...this.turns.slice(-MOST_TURNS + 1), newTurn(this.box.value, this.system, this.desk.lambda)]);
  }

  #retry() {
    const last = this.turns[this.turns.length - 1];
    if (last) this.#answer([...this.turns.slice(0, -1), anotherTry(last, this.system, this.desk.lambda)]);
    else window.setTimeout(() => this.view.say("There is no question to ask again. Write one first."));
  }

  #clear() {
    this.desk.door?.stop(this.job);
    this.turns = [];
    this.log.set(packed([]));
    this.view.receive({ kind: "recorded", run: newRun(), traces: {} });
    this.box.value = "";
  }

  /** @param {Asked[]} turns */
  #answer(turns) {
    const last = turns[turns.length - 1];
    const { question, system, lmbda, firsts } = last;
    const forced = last.try > 1 ? [firsts[last.try - 1][0]] : [];
    const before = turns.slice(0, -1).filter((turn) => turn.answer).map((turn) => [turn.question, turn.answer]);
    const own = system === "knn" ? this.desk.own : "";
    const plan = { kind: "chat", turns: [...before, [question, ""]], system, lmbda, forced, own: Boolean(own) };
    this.job = this.desk.ask(plan, (/** @type {Value} */ value) => {
      if (value.kind === "begin") {
        this.turns = turns;
        this.box.value = "";
        this.view.receive({ ...value, ...this.desk.known(this.desk.asPrompt(question)), own });
      } else this.view.receive(value);
      if (value.kind !== "message") this.#grow(last, value);
    });
  }

  /** @param {Asked} turn @param {Value} value */
  #grow(turn, value) {
    if (value.kind === "steps") {
      for (const step of value.steps[turn.system] ?? []) turn.answer += step.s === "\uFFFD" ? "" : step.s;
    } else if (value.kind === "done") {
      const trace = value.traces[turn.system];
      turn.answer = trace.text;
      turn.done = true;
      if (!turn.firsts.length) turn.firsts = firstsOf(trace);
    }
    this.log.set(packed(this.turns));
  }
}

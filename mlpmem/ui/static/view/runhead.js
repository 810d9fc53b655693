// @ts-check
/* The line above the panes: the run's origin, its prompt, and the known facts about it. */
/** @import { About } from "../core/types.js" */
import { h, setText } from "../core/dom.js";
import { term } from "../core/glossary.js";
import { GROUPS, groupTag } from "../core/state.js";

const SPOKEN = new Set(["waiting", "stopped"]); // kinds of badges that screen readers announce
const PATIENCE = 60000; // milliseconds in the queue without a message

export class RunHead {
  /** button plays the run. undo(typed) repeats the run with the prompt as typed.
   * @param {HTMLElement} button @param {(typed: string) => void} undo */
  constructor(button, undo) {
    /** @type {About} */
    this.about = {}; // fields of an export besides the traces
    /** @type {string[]} */
    this.answers = []; // the right answer and its aliases
    this.badge = h("span", { class: "badge" });
    this.prompt = h("span", { class: "asked", dir: "auto" });
    this.form = h("button", { type: "button", class: "form-chip", hidden: true,
      on: { click: () => undo(this.typed) } }, "asked in the trained form ×");
    this.typed = ""; // the typed prompt, if the form changed it
    this.part = h("span", { class: "group-tag" });
    this.truth = h("button", { type: "button", class: "truth", dir: "auto", title: "Its probability at every λ" });
    this.spoken = h("span", { class: "unseen", role: "status" });
    this.patience = 0; // the timer of a waiting run
    /** The badge of the run on screen while another waits. @type {[string, string]} */
    this.before = ["", ""];
    this.root = h("div", { class: "run-head" }, this.badge, this.prompt, this.form, this.part, this.truth,
      button, this.spoken);
  }

  get kind() {
    return this.badge.dataset.kind;
  }

  get text() {
    return this.badge.textContent;
  }

  /** Shows the run's origin or state; `kind` is its name in the code.
   * @param {string} text @param {string} [kind] */
  mark(text, kind = "") {
    setText(this.badge, text);
    this.badge.dataset.kind = kind;
    setText(this.spoken, SPOKEN.has(kind) ? text : "");
  }

  /** Shows a value's prompt and the known facts about it.
   * @param {About & { kind: string, typed?: string }} value @param {string} badge */
  show(value, badge) {
    this.mark(badge, value.kind);
    const { prompt = "", answer = "", aliases = [], part = "", wording = "", chat = false } = value;
    this.about = { prompt, answer, aliases, part, wording, ...(chat ? { chat } : {}) };
    setText(this.prompt, prompt);
    this.prompt.title = prompt;
    this.answers = answer ? [answer, ...aliases] : [];
    this.typed = value.typed ?? "";
    this.form.hidden = !this.typed;
    setText(this.form, chat ? "asked as a chat ×" : "asked in the trained form ×");
    this.form.title = `You typed: ${this.typed}. Click to ask it as typed.`;
    this.reveal(false);
    const held = ["test", "unseen"].includes(wording);
    this.part.replaceChildren(...(GROUPS[part] ? [groupTag(part),
      held ? [h("span", { class: "joint" }, " · "), term(h("span", null, "in a wording never trained on"), "unseen")] : []].flat() : []));
  }

  /** Shows the right answer if it is known, or hides it during a run. @param {boolean} on */
  reveal(on) {
    setText(this.truth, on && this.answers.length ? `right answer: ${this.answers[0]}` : "");
  }

  /** The run is in the queue; `forgotten` is called if no message arrives in time.
   * @param {() => void} forgotten */
  wait(forgotten) {
    if (this.kind !== "waiting") this.before = [this.text, this.kind ?? ""];
    this.mark("waiting in the queue", "waiting");
    this.#startTimer(forgotten);
  }

  /** The waiting run never began: the badge is the one of the run on screen again. @param {string} spoken */
  back(spoken) {
    this.mark(...this.before);
    setText(this.spoken, spoken);
  }

  /** Shows the number of runs ahead, and restarts the timer.
   * @param {number | null | undefined} count @param {() => void} forgotten */
  ahead(count, forgotten) {
    if (this.kind !== "waiting" || typeof count !== "number") return;
    this.mark(count > 0 ? `waiting: ${count} ahead of you` : "waiting: you are next", "waiting");
    this.#startTimer(forgotten);
  }

  /** @param {() => void} forgotten */
  #startTimer(forgotten) {
    window.clearTimeout(this.patience);
    this.patience = window.setTimeout(() => {
      if (this.kind === "waiting") forgotten();
    }, PATIENCE);
  }
}

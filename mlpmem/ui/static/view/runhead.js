// @ts-check
/* The line above the panes: how the run came about, what was asked, what is known of it. */
/** @import { About } from "../core/types.js" */
import { h, setText } from "../core/dom.js";
import { GROUPS } from "../core/state.js";

const SPOKEN = new Set(["waiting", "stopped"]); // what a screen reader is told of the badge
const PATIENCE = 60000; // milliseconds in the queue without a word

export class RunHead {
  /** button plays the run; it ends the line. undo(typed) asks again without the form.
   * @param {HTMLElement} button @param {(typed: string) => void} undo */
  constructor(button, undo) {
    /** @type {About} */
    this.about = {}; // what an export says of the run besides its traces
    /** @type {string[]} */
    this.answers = []; // the right one and its aliases
    this.badge = h("span", { class: "badge" });
    this.prompt = h("span", { class: "asked", dir: "auto" });
    this.form = h("button", { type: "button", class: "form-chip", hidden: true,
      on: { click: () => undo(this.typed) } }, "asked in the bundle’s form ×");
    this.typed = ""; // what was typed, where the form changed it
    this.part = h("span", { class: "group-tag" });
    this.truth = h("span", { class: "truth", dir: "auto" });
    this.spoken = h("span", { class: "unseen", role: "status" });
    this.patience = 0; // the timer of a run that waits
    this.root = h("div", { class: "run-head" }, this.badge, this.prompt, this.form, this.part, this.truth,
      button, this.spoken);
  }

  get kind() {
    return this.badge.dataset.kind;
  }

  get text() {
    return this.badge.textContent;
  }

  /** Says how the run came about or what it waits for; kind names the same for the program.
   * @param {string} text @param {string} [kind] */
  mark(text, kind = "") {
    setText(this.badge, text);
    this.badge.dataset.kind = kind;
    setText(this.spoken, SPOKEN.has(kind) ? text : "");
  }

  /** Shows what a value from Python says of its run.
   * @param {About & { kind: string, typed?: string }} value @param {string} badge */
  show(value, badge) {
    this.mark(badge, value.kind);
    const { prompt = "", answer = "", aliases = [], part = "", wording = "" } = value;
    this.about = { prompt, answer, aliases, part, wording };
    setText(this.prompt, prompt);
    this.prompt.title = prompt;
    this.answers = answer ? [answer, ...aliases] : [];
    this.typed = value.typed ?? "";
    this.form.hidden = !this.typed;
    this.form.title = `You typed: ${this.typed}. Ask it as you typed it.`;
    this.form.setAttribute("aria-label", this.form.title);
    this.reveal(false);
    const held = ["test", "unseen"].includes(wording) ? " · wording nobody trained on" : "";
    this.part.replaceChildren(...(GROUPS[part]
      ? [h("b", null, part), ` ${GROUPS[part]}${held}`] : []));
  }

  /** Tells the right answer, where one is known, or hides it while a run is under way. @param {boolean} on */
  reveal(on) {
    setText(this.truth, on && this.answers.length ? `right answer: ${this.answers[0]}` : "");
  }

  /** The run is in the queue; `forgotten` is called when no word of it comes.
   * @param {() => void} forgotten */
  wait(forgotten) {
    this.mark("waiting for its turn", "waiting");
    this.#patient(forgotten);
  }

  /** This many runs come first; the visitor is not forgotten.
   * @param {number | null | undefined} count @param {() => void} forgotten */
  ahead(count, forgotten) {
    if (this.kind !== "waiting" || typeof count !== "number") return;
    this.mark(count > 0 ? `waiting: ${count} ahead of you` : "waiting: you are next", "waiting");
    this.#patient(forgotten);
  }

  /** @param {() => void} forgotten */
  #patient(forgotten) {
    window.clearTimeout(this.patience);
    this.patience = window.setTimeout(() => {
      if (this.kind === "waiting") forgotten();
    }, PATIENCE);
  }
}

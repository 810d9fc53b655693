// @ts-check
/* The line above the panes: how the run came about, what was asked, what is known of it. */
import { h, setText } from "../core/dom.js";
import { GROUPS } from "../core/state.js";

const SPOKEN = new Set(["waiting", "stopped"]); // what a screen reader is told of the badge
const PATIENCE = 60000; // milliseconds in the queue without a word

export class RunHead {
  /** button plays the run; it ends the line. */
  constructor(button) {
    this.about = {}; // what an export says of the run besides its traces
    this.answers = []; // the right one and its aliases
    this.badge = h("span", { class: "badge" });
    this.prompt = h("span", { class: "asked", dir: "auto" });
    this.part = h("span", { class: "group-tag" });
    this.truth = h("span", { class: "truth", dir: "auto" });
    this.root = h("div", { class: "run-head" }, this.badge, this.prompt, this.part, this.truth,
      button, this.spoken = h("span", { class: "unseen", role: "status" }));
  }

  get kind() {
    return this.badge.dataset.kind;
  }

  get text() {
    return this.badge.textContent;
  }

  /** Says how the run came about or what it waits for; kind names the same for the program. */
  mark(text, kind) {
    setText(this.badge, text);
    this.badge.dataset.kind = kind;
    setText(this.spoken, SPOKEN.has(kind) ? text : "");
  }

  /** Shows what a value from Python says of its run. */
  show(value, badge) {
    this.mark(badge, value.kind);
    this.about = { prompt: value.prompt || "", answer: value.answer || "",
      aliases: value.aliases || [], part: value.part || "", wording: value.wording || "" };
    const { prompt, answer, aliases, part, wording } = this.about;
    setText(this.prompt, prompt);
    this.prompt.title = prompt;
    this.answers = answer ? [answer, ...aliases] : [];
    this.reveal(false);
    const held = ["test", "unseen"].includes(wording) ? " · wording nobody trained on" : "";
    this.part.replaceChildren(...(GROUPS[part]
      ? [h("b", null, part), ` ${GROUPS[part]}${held}`] : []));
  }

  /** Tells the right answer, where one is known, or hides it while a run is under way. */
  reveal(on) {
    setText(this.truth, on && this.answers.length ? `right answer: ${this.answers[0]}` : "");
  }

  /** The run is in the queue; `forgotten` is called when no word of it comes. */
  wait(forgotten) {
    this.mark("waiting for its turn", "waiting");
    this.#patient(forgotten);
  }

  /** This many runs come first; the visitor is not forgotten. */
  ahead(count, forgotten) {
    if (this.kind !== "waiting" || !Number.isInteger(count)) return;
    this.mark(count > 0 ? `waiting: ${count} ahead of you` : "waiting: you are next", "waiting");
    this.#patient(forgotten);
  }

  #patient(forgotten) {
    window.clearTimeout(this.patience);
    this.patience = window.setTimeout(() => {
      if (this.kind === "waiting") forgotten();
    }, PATIENCE);
  }
}

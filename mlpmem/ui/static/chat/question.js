// @ts-check
/* One turn on screen: the question, which can be edited and asked again, and the answers side by side. */
/** @import { Turn } from "./types.js" */
/** @import { Acts } from "./answer.js" */
import { h, setText } from "../core/dom.js";
import { AnswerPane, Pager } from "./answer.js";
import { copyButton } from "./copy.js";
import { shownOf } from "./kept/talk.js";

/** What a visitor does with a question, besides the answers' acts.
 * @typedef {Acts & { edit: (turn: Turn, question: string) => boolean, repeat: (turn: Turn) => void, typed: (turn: Turn) => void,
 *   choose: (turn: Turn, by: number) => void }} TurnActs */

export class TurnView {
  /** @param {Turn} turn @param {TurnActs} on */
  constructor(turn, on) {
    this.turn = turn;
    this.on = on;
    /** @type {Map<string, AnswerPane>} */
    this.panes = new Map();
    this.said = h("p", { class: "said", dir: "auto" }, turn.question);
    this.pager = new Pager("version of the question", (by) => on.choose(turn, by));
    /** @type {(text: string, label: string, fn: () => void) => HTMLButtonElement} */
    const tool = (text, label, fn) => h("button", { type: "button", class: "chat-tool", "aria-label": label, on: { click: fn } }, text);
    this.repeat = tool("Ask again", "Ask again, the same question", () => on.repeat(turn));
    this.form = h("button", { type: "button", class: "form-chip", hidden: true, on: { click: () => on.typed(turn) } }, "asked in the trained form ×");
    this.tools = h("div", { class: "asks-tools" }, this.form, this.pager.root, tool("Edit", "Edit the question", () => this.edit()),
      copyButton("Copy the question", () => turn.question), this.repeat);
    this.bubble = h("div", { class: "asks" }, this.said);
    this.columns = h("div", { class: "answer-columns" });
    this.fallen = h("p", { class: "fallen", hidden: true });
    this.root = h("article", { class: "turn", "aria-label": "Question and answers" }, this.fallen,
      h("div", { class: "asks-row" }, this.bubble, this.tools), this.columns);
  }

  /** Shows the turn's answers. @param {Turn[]} siblings the questions at its place */
  show(siblings) {
    const { turn } = this;
    this.pager.show(siblings.indexOf(turn), siblings.length);
    this.form.hidden = !turn.form;
    this.form.title = "You typed it otherwise. Click to ask it as typed.";
    const systems = Object.keys(turn.answers);
    if (systems.join() !== [...this.panes.keys()].join()) {
      this.panes = new Map(systems.map((system) => [system, this.panes.get(system) ?? new AnswerPane(system, this.on)]));
      this.columns.replaceChildren(...[...this.panes.values()].map(({ root }) => root));
      this.columns.dataset.count = String(systems.length);
      if (systems.length > 1) this.columns.tabIndex = 0; // a phone scrolls it
      else this.columns.removeAttribute("tabindex");
    }
    for (const [system, versions] of Object.entries(turn.answers)) {
      const answer = shownOf(versions);
      if (answer) this.panes.get(system)?.show(answer, versions.at, versions.list.length);
    }
  }

  /** The question becomes a box: Enter asks it, Esc leaves it. */
  edit() {
    const box = h("textarea", { class: "edit-box", dir: "auto", "aria-label": "Edited question", rows: "1", on: {
      keydown: (event) => {
        if (event.key === "Escape") leave();
        else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) ask();
        else return;
        event.preventDefault();
        event.stopPropagation();
      } } });
    box.value = this.turn.question;
    const leave = () => {
      this.bubble.replaceChildren(this.said);
      this.root.removeAttribute("data-editing");
      this.tools.querySelector("button")?.focus();
    };
    const ask = () => {
      if (this.on.edit(this.turn, box.value)) leave();
    };
    this.bubble.replaceChildren(box, h("div", { class: "edit-acts" },
      h("button", { type: "button", class: "small-button", on: { click: leave } }, "Cancel"),
      h("button", { type: "button", class: "small-button strong", on: { click: ask } }, "Ask again")));
    this.root.toggleAttribute("data-editing", true);
    box.focus();
    box.setSelectionRange(box.value.length, box.value.length);
  }

  /** Says how many of the oldest turns were no longer read from here on. @param {number} dropped @param {number} before */
  fell(dropped, before) {
    this.fallen.hidden = dropped <= before;
    const count = dropped === 1 ? "The oldest turn" : `The ${dropped} oldest turns`;
    setText(this.fallen, `${count} no longer ${dropped === 1 ? "fits" : "fit"} into the context, so ${dropped === 1 ? "it is" : "they are"} not read from here on.`);
  }
}

/** Notes at every turn how many of the oldest are no longer read. @param {TurnView[]} views */
export const noteFallen = (views) => {
  let before = 0;
  for (const view of views) {
    const dropped = Math.max(0, ...Object.values(view.turn.answers).map((versions) => shownOf(versions)?.dropped ?? 0));
    view.fell(dropped, before);
    before = Math.max(before, dropped);
  }
};

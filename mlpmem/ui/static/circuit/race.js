// @ts-check
/* Bars of the tokens or answers that compete at the present lambda. */
/** @import { Rival } from "./flow.js" */
import { glyph, h, percent, setText } from "../core/dom.js";
import { isRight } from "../core/mix.js";
import { BOUND } from "../core/truth.js";

/** @typedef {{ root: HTMLElement, fill: HTMLElement, p: HTMLElement }} Lane */

export class Race {
  constructor() {
    this.key = "";
    /** @type {Lane[]} */
    this.lanes = [];
    this.list = h("ol", { class: "race-lanes" });
    this.title = h("p", { class: "race-title" });
    this.root = h("div", { class: "race" }, this.title, this.list);
  }

  /** Shows rivals; whole answers are judged where the right ones are known.
   * @param {Rival[]} rivals @param {string[]} answers @param {import("../core/types.js").Lambda | null} [whole] their lambda */
  show(rivals, answers, whole = null) {
    const key = JSON.stringify([rivals.map((rival) => rival.text), answers]);
    if (key !== this.key) this.#build(rivals, answers);
    this.key = key;
    const most = Math.max(...rivals.map((rival) => rival.p));
    const other = rivals.some(({ p, written }) => written && p < most);
    setText(this.title, whole === null ? "the strongest candidates" : whole === "auto" ? "the whole answer, λ auto" : other
      ? "the whole answer; it is written token by token" : "the whole answer");
    this.list.title = rivals.some(({ bound }) => bound) ? BOUND : "";
    for (const [i, { p, written, bound }] of rivals.entries()) {
      const { root, fill, p: text } = this.lanes[i];
      fill.style.setProperty("--p", p.toFixed(4));
      setText(text, `${bound ? "≤ " : ""}${percent(p)} %`);
      root.toggleAttribute("data-written", written);
    }
  }

  /** @param {Rival[]} rivals @param {string[]} answers */
  #build(rivals, answers) {
    this.lanes = rivals.map(({ text }) => {
      const right = answers.some((answer) => isRight(text, answer));
      const fill = h("i", { "aria-hidden": "true" });
      const p = h("span", { class: "lane-p" });
      const mark = answers.length ? h("span", { class: "lane-mark", "data-right": String(right) }, right ? "✓" : "✗") : "";
      const root = h("li", { class: "lane" }, h("span", { class: "lane-text", dir: "auto", title: text.trim() }, glyph(text).trim() || glyph(text)),
        mark, h("span", { class: "lane-bar" }, fill), p);
      return { root, fill, p };
    });
    this.list.replaceChildren(...this.lanes.map((lane) => lane.root));
  }
}

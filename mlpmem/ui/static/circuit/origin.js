// @ts-check
/* Where the memory has its answer from: passages that say the same, found afterwards and not used. */
/** @import { Origins, Step } from "../core/types.js" */
import { h, percent, quote, setText } from "../core/dom.js";
import { neighbourOf } from "../core/mix.js";
import { groupTag } from "../core/state.js";

/** The document whose passages the datastore would have pointed to, by weight, if they go on as the text does.
 * @type {(steps: Step[]) => { title: string, weight: number } | null} */
const pointed = (steps) => {
  const sums = new Map();
  for (const step of steps) {
    for (const neighbour of (step.nn || []).map(neighbourOf)) {
      if (neighbour.targetId === step.id) sums.set(neighbour.title, (sums.get(neighbour.title) ?? 0) + (neighbour.weight ?? 0));
    }
  }
  const [best] = [...sums].sort((a, b) => b[1] - a[1]);
  return best ? { title: best[0], weight: best[1] / steps.length } : null;
};

export class Origin {
  /** find({question, answer}) asks the server. @param {(data: { question: string, answer: string }) => void} find */
  constructor(find) {
    this.find = find;
    /** @type {{ answer: string, steps: Step[] } | null} */
    this.asked = null;
    this.button = h("button", { type: "button", class: "origin-ask", "aria-expanded": "false", hidden: true },
      "Where does the memory have that from?");
    this.line = h("p", { class: "origin-line", role: "status" });
    this.list = h("ol", { class: "origin-list" });
    this.root = h("div", { class: "origin", hidden: true }, this.line, this.list);
  }

  /** @param {string} question @param {string} answer @param {Step[]} steps */
  ask(question, answer, steps) {
    this.asked = { answer: answer.trim(), steps };
    this.root.hidden = false;
    this.button.setAttribute("aria-expanded", "true");
    setText(this.line, "Searching the corpus …");
    this.list.replaceChildren();
    this.find({ question, answer });
  }

  close() {
    this.asked = null;
    this.root.hidden = true;
    this.button.setAttribute("aria-expanded", "false");
  }

  /** @param {Origins | null} value */
  receive(value) {
    if (!value || !this.asked) return;
    const { answer, steps } = this.asked;
    const short = quote(answer.length > 60 ? `${answer.slice(0, 58).trimEnd()}…` : answer);
    const guess = pointed(steps);
    const also = guess ? ` The datastore, asked afterwards too, points to ${quote(guess.title)} with ${percent(guess.weight)} % of its weight.` : "";
    const { length } = value.origins;
    setText(this.line, value.error || (length
      ? `The memory wrote ${short} from its weights and read no passage. ${length === 1 ? "This passage of its corpus says" : "These passages of its corpus say"} the same.${also}`
      : `The memory wrote ${short} from its weights. No passage was found that says so: the decoder may have known it, or it is made up.${also}`));
    this.list.replaceChildren(...value.origins.map(({ title, group, parts }, i) => h("li", { class: "origin-card", style: { "--i": i } },
      h("div", { class: "origin-head" }, h("b", { dir: "auto" }, title), groupTag(group), h("span", { class: "origin-tag" }, "found later, not used")),
      h("p", { dir: "auto" }, parts.map((part, at) => (at % 2 ? h("mark", null, part) : part))))));
  }
}

// @ts-check
/* Where the memory has its answer from: passages that say the same, found afterwards and not used. */
/** @import { Origins, Step } from "../core/types.js" */
import { h, isCalm, percent, quote, setText } from "../core/dom.js";
import { neighbourOf } from "../core/mix.js";
import { groupTag } from "../core/state.js";

const CUT = 60; // characters of an answer in a sentence
const SPREAD = 0.3; // share of the weight below which a datastore points to no document

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

/** Names as a list in words. @type {(names: string[]) => string} */
const listed = (names) => (names.length > 1 ? `${names.slice(0, -1).join(", ")} and ${names[names.length - 1]}` : names[0]);

/** What a search of the corpus for an answer found, in sentences.
 * @type {(titles: string[], answer: string) => string} */
const foundText = (titles, answer) => {
  const said = quote(answer.length > CUT ? `${answer.slice(0, CUT - 2).trimEnd()}…` : answer);
  const wrote = "The memory wrote it from its weights and read no passage.";
  if (!titles.length) {
    return `Searched later, nothing found: no passage of the corpus answers this question with ${said}. ` +
      `${wrote} The decoder may have known it, or it is made up.`;
  }
  const documents = [...new Set(titles)];
  const where = listed(documents.map(quote));
  if (titles.length === 1) return `Found later, not used: one passage of the corpus says ${said}, in ${where}. ${wrote}`;
  const all = documents.length === 1 ? "all in" : "in";
  return `Found later, not used: ${titles.length} passages of the corpus say ${said}, ${all} ${where}. ${wrote}` +
    (documents.length > 1 ? " The search cannot tell which of them taught it." : "");
};

/** What the datastore would have pointed to, in a sentence; "" if it has no answer.
 * @type {(titles: string[], steps: Step[]) => string} */
const pointedText = (titles, steps) => {
  const best = pointed(steps);
  if (!best) return "";
  const [title, share] = [quote(best.title), `${percent(best.weight)} % of its weight`];
  const search = "The datastore's own search, not used by the memory either,";
  if (best.weight < SPREAD) return `${search} points to no single document: ${title} has the most, ${share}.`;
  if (titles.includes(best.title)) return `${search} points there too: ${title} has ${share}.`;
  return `${search} points to ${titles.length ? "another document, " : ""}${title}: ${share}.`;
};

/** @type {(titles: string[], answer: string, steps: Step[]) => string} */
export const originText = (titles, answer, steps) =>
  [foundText(titles, answer), pointedText(titles, steps)].filter(Boolean).join(" ");

export class Origin {
  /** find({question, answer}) asks the server. @param {(data: { question: string, answer: string }) => void} find */
  constructor(find) {
    this.find = find;
    /** @type {{ answer: string, steps: Step[] } | null} */
    this.asked = null;
    this.button = h("button", { type: "button", class: "origin-ask", "aria-expanded": "false", hidden: true,
      title: "Searches the corpus for passages that say what the memory wrote" }, "Where is that from?");
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
    this.#reveal();
    this.find({ question, answer });
  }

  /** Scrolls what was found above the lambda bar. */
  #reveal() {
    this.root.scrollIntoView({ block: "nearest", behavior: isCalm() ? "auto" : "smooth" });
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
    setText(this.line, value.error || originText(value.origins.map(({ title }) => title), answer, steps));
    this.list.replaceChildren(...value.origins.map(({ title, group, parts }, i) => h("li", { class: "origin-card", style: { "--i": i } },
      h("div", { class: "origin-head" }, h("b", { dir: "auto" }, title), groupTag(group), h("span", { class: "origin-tag" }, "found later, not used")),
      h("p", { dir: "auto" }, parts.map((part, at) => (at % 2 ? h("mark", null, part) : part))))));
    this.#reveal();
  }
}

// @ts-check
/* A conversation that a link brings: its questions are asked here, one after another, once the visitor says so. */
/** @import { Linked as Link } from "./kept/link.js" */
import { h, quote, setText, tabNamed } from "../core/dom.js";
import { page } from "../core/state.js";
import { readFragment } from "./kept/link.js";

const CUT = 80; // characters of the first question in the notice

/** Opens the Chat tab once the page stands, if its link brings a conversation; Gradio lays a tab out when it is opened. */
export const openLinked = () => {
  let isNew = readFragment(window.location.hash) !== null;
  page.on("view", () => {
    if (!isNew || (page.local && !page.status.ready)) return;
    isNew = false;
    tabNamed("Chat")?.click();
  });
};

export class Linked {
  /** ask(row, at) asks a question of the link, of which `at` came before; false if it cannot now.
   * @param {(row: Link["turns"][number], at: number, link: Link) => boolean} ask */
  constructor(ask) {
    this.ask = ask;
    this.link = readFragment(window.location.hash);
    this.at = 0; // questions asked
    this.note = h("p", { class: "linked-note", role: "status" });
    this.go = h("button", { type: "button", class: "small-button strong", on: { click: () => this.#begin() } });
    this.root = h("div", { class: "linked", hidden: !this.link }, this.note, h("div", { class: "linked-acts" }, this.go,
      h("button", { type: "button", class: "small-button", on: { click: () => this.drop() } }, "Dismiss")));
    if (!this.link) return;
    const { turns: [{ question }, ...more] } = this.link;
    const first = quote(question.length > CUT ? `${question.slice(0, CUT).trimEnd()}…` : question);
    setText(this.note, `A link brings a conversation: ${first}${more.length ? ` and ${more.length} more` : ""}. ` +
      "Its answers are written again here; your own conversation stays, as another version of the first question.");
    setText(this.go, more.length ? `Ask all ${more.length + 1} questions` : "Ask it");
  }

  #begin() {
    if (!this.link || this.at || !this.#next()) return;
    this.root.hidden = true;
    window.history.replaceState(null, "", window.location.href.split("#")[0]); // a reload does not ask again
  }

  #next() {
    const row = this.link?.turns[this.at];
    if (!this.link || !row || !this.ask(row, this.at, this.link)) return false;
    this.at += 1;
    return true;
  }

  /** A question's answers have come, or failed. @param {boolean} complete */
  after(complete) {
    if (!this.link || !this.at) return;
    if (!complete || !this.#next()) this.link = null;
  }

  drop() {
    this.link = null;
    this.root.hidden = true;
  }
}

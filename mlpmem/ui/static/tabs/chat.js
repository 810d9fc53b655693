// @ts-check
/* The conversation as plain text; the last answer's tokens are in a token view below it. */
/** @import { Packed, Props, Status, Turn, Watch } from "../core/types.js" */
import { h, inside, quote, setText } from "../core/dom.js";
import { nameOf, page, unpack } from "../core/state.js";

const NEAR = 40; // pixels from the end within which the log scrolls along

/** An answer without the blank lines and the single space before it; an indent is kept.
 * @param {string} text */
const trimmed = (text) => text.trimEnd().replace(/^\s*\n/, "").replace(/^ (?! )/, "");

/** What the log says of a turn's answer. @param {Turn} turn @param {boolean} last */
const said = (turn, last) => trimmed(turn.answer) || (turn.done ? "(no text)" : last ? "…" : "(stopped)");

class ChatLog {
  /** @param {HTMLElement} host @param {string} hint */
  constructor(host, hint) {
    this.asking = hint;
    this.known = ""; // key of the content without the last answer
    this.root = h("div", { class: "log", role: "log", tabindex: "0",
      "aria-label": "Conversation" });
    this.hint = h("p", { class: "log-hint" });
    host.replaceChildren(this.root);
    page.on("status", () => this.#hint());
    this.render([]);
  }

  /** @param {Turn[]} turns */
  render(turns) {
    const below = this.root.scrollHeight - this.root.scrollTop - this.root.clientHeight < NEAR;
    const last = turns.at(-1);
    const known = JSON.stringify(turns.map((turn) =>
      [turn.question, turn.system, turn.try, turn.typed, turn === last ? "" : turn.answer]));
    if (last && known === this.known) { // only the last answer changed
      setText(inside(this.root, ":scope > :last-child > :last-child"), said(last, true));
    } else {
      const nodes = turns.flatMap((turn) => [this.#question(turn), this.#answer(turn, turn === last)]);
      this.root.replaceChildren(...(nodes.length ? nodes : [this.hint]));
    }
    this.root.setAttribute("aria-busy", String(last !== undefined && !last.done));
    this.#hint();
    if (below || known !== this.known) this.root.scrollTop = this.root.scrollHeight;
    this.known = known;
  }

  /** Ends the turn; an answer without a token was stopped. */
  ended() {
    this.root.setAttribute("aria-busy", "false");
    const answer = this.root.querySelector(".answers:last-child .said");
    if (answer?.textContent === "…") setText(answer, "(stopped)");
  }

  /** @param {Turn} turn */
  #question(turn) {
    return h("div", { class: "turn asks" }, h("p", { class: "said", dir: "auto" }, turn.question));
  }

  /** @param {Turn} turn @param {boolean} last */
  #answer(turn, last) {
    return h("div", { class: "turn answers" },
      h("span", { class: "who" }, h("span", { class: "swatch", "data-source": turn.system }),
        nameOf(turn.system).title, this.#tried(turn)),
      h("p", { class: "said", dir: "auto" }, said(turn, last)));
  }

  /** Notes: asked as typed; a later try, which begins with a less likely token so that it does not repeat itself.
   * @param {Turn} turn */
  #tried(turn) {
    const typed = turn.typed ? " · asked as typed" : "";
    if (turn.try < 2) return typed;
    return `${typed} · try ${turn.try}, begun with ${quote(turn.firsts[turn.try - 1][1])}`;
  }

  #hint() {
    setText(this.hint, page.status.ready
      ? this.asking
      : "The model is still loading. Ask a question when it is ready.");
  }
}

/** came() notifies the server when the available sources change.
 * @type {(element: Element, props: Props<Packed, { hint: string }>, watch: Watch, came: () => void) => void} */
export const mountLog = (element, props, watch, came) => {
  const log = new ChatLog(inside(element, ".log-host"), props.hint);
  const show = () => log.render(unpack(props.value) || []);
  watch("value", show);
  show();
  let known = "";
  /** @param {Status} status */
  const changed = ({ ready, settled, no_memory: none }) => {
    const now = ready ? `${settled} ${Boolean(none)}` : "";
    if (now && now !== known) came();
    known = now;
  };
  page.on("ended", (view) => { if (view.prefix === "chat-pane-") log.ended(); });
  page.on("status", changed);
  changed(page.status);
};

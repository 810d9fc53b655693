// @ts-check
/* The Corpus tab: hits, an open document, and the status of a visitor's own datastore. */
/** @import { Found, OwnText, Packed, Props, Reader, Watch } from "../core/types.js" */
import { h, inside, isCalm, isFrom, isPhone, megabytes, quote, setText, tabNamed, write } from "../core/dom.js";
import { groupTag, unpack } from "../core/state.js";
import { forgetLeft, leftOut } from "./files.js";

const STRANGERS = "Passages on invented names, most of which occur only once. From them decoder and memory learn " +
  "to doubt an unknown name. No question is about them.";

/** @typedef {{ document: number, query: string } | { title: string, group: string, place: string }} Asked
 * @typedef {(asked: Asked) => void} Open */

class CorpusView {
  /** @param {HTMLElement} host @param {Open} open */
  constructor(host, open) {
    this.open = open;
    this.place = ""; // words of the passage to scroll to in an opened document
    this.alert = h("p", { class: "alert", role: "alert" });
    this.count = h("p", { class: "panel-note", role: "status" });
    this.hits = h("ol", { class: "hits" });
    this.page = h("article", { class: "document", tabindex: "0", "aria-label": "Document" });
    this.page.append(h("p", { class: "log-hint" }, "Search, then open a document to read it."));
    this.grid = h("div", { class: "corpus-grid" }, h("div", null, this.count, this.hits), this.page);
    host.replaceChildren(this.alert, this.grid);
  }

  /** @param {Found | null} value */
  receive(value) {
    if (!value) return;
    setText(this.alert, value.kind === "message" ? value.text : "");
    if (value.kind === "message") this.place = "";
    if (value.kind === "hits") this.#list(value);
    if (value.kind === "document") this.#read(value);
  }

  /** @param {Extract<Found, { kind: "hits" }>} value */
  #list({ query, count, hits }) {
    const shown = hits.length < count ? `; the first ${hits.length} are shown` : "";
    setText(this.count, count ? `${count} ${count === 1 ? "document contains" : "documents contain"} ` +
      `${quote(query)}${shown}.` : `No document contains ${quote(query)}. Try fewer or other words.`);
    this.hits.replaceChildren(...hits.map((hit) => h("li", null,
      h("button", { type: "button", class: "hit", "aria-pressed": "false", "data-document": hit.document,
        on: { click: () => this.open({ document: hit.document, query }) } },
      h("span", { class: "hit-head" }, h("span", { class: "neighbour-name", dir: "auto" }, hit.title),
        groupTag(hit.group)),
      h("span", { class: "neighbour-text", dir: "auto" }, "…", hit.before,
        hit.match ? h("mark", null, hit.match) : "", hit.after, "…"))))); // only the title may match
    this.hits.scrollTop = 0;
  }

  /** @param {Extract<Found, { kind: "document" }>} value */
  #read({ document, title, group, passages, count }) {
    const more = passages.length < count
      ? `The first ${passages.length} of ${count.toLocaleString("en")} passages.` : "";
    this.page.replaceChildren(
      h("h2", { dir: "auto" }, title, " ", groupTag(group)),
      group === "stranger" ? h("p", { class: "panel-note" }, STRANGERS) : "",
      more ? h("p", { class: "panel-note" }, more) : "",
      ...passages.map((parts) => h("p", { dir: "auto" }, // every second part is a match
        ...parts.map((part, i) => (i % 2 ? h("mark", null, part) : part)))));
    const here = this.place ? this.page.querySelector("mark") : null;
    this.page.scrollTop = here ? here.offsetTop - this.page.offsetTop - this.page.clientHeight / 3 : 0;
    this.place = "";
    for (const hit of /** @type {NodeListOf<HTMLElement>} */ (this.hits.querySelectorAll(".hit"))) {
      hit.setAttribute("aria-pressed", String(Number(hit.dataset.document) === document));
    }
    if (isPhone()) this.page.scrollIntoView({ behavior: isCalm() ? "auto" : "smooth" });
  }
}

/** Goes to Compare with an empty prompt box, where the visitor's text is searched now. */
const askOwn = () => {
  tabNamed("Compare")?.click();
  const box = document.querySelector("#prompt textarea");
  if (!(box instanceof HTMLTextAreaElement)) return;
  write(box, "");
  window.setTimeout(() => box.focus(), 80);
};

class Own {
  /** @param {HTMLElement} host */
  constructor(host) {
    this.alert = h("p", { class: "alert", role: "alert" });
    this.bar = h("i");
    this.progress = h("div", { class: "own-bar", hidden: true }, this.bar);
    this.line = h("p", { class: "own-line", role: "status" });
    this.left = h("ul", { class: "own-left", "aria-label": "Files left out", hidden: true });
    /** @type {string | null} */
    this.run = null; // the run that builds a datastore
    this.timer = 0; // timer of the text's expiry
    this.summary = ""; // the line on the stored text
    this.ask = h("button", { type: "button", class: "pane-tool", hidden: true, on: { click: () => askOwn() } }, "Ask it");
    host.replaceChildren(this.alert, this.progress, this.line, this.left, this.ask);
    for (const name of ["data-own", "data-keying"]) document.body.removeAttribute(name);
    document.addEventListener("click", (event) => { if (isFrom(event, "#own-make")) this.#wait(); });
  }

  /** Make was pressed: until the first value arrives, the run is in the queue. */
  #wait() {
    forgetLeft();
    document.body.toggleAttribute("data-keying", true);
    setText(this.line, "Waiting in the queue …");
  }

  /** @param {OwnText | null} value */
  receive(value) {
    if (!value) return;
    setText(this.alert, value.kind === "message" ? value.text : "");
    if ((value.kind === "progress" || value.kind === "reading") && value.run !== this.run) return; // a late value of a cancelled run
    const keying = ["begin", "reading", "progress"].includes(value.kind);
    this.progress.hidden = !keying;
    document.body.toggleAttribute("data-keying", keying);
    this.run = keying && "run" in value ? value.run : null;
    this.#leave(value.kind === "ready" ? [...leftOut(), ...(value.failed ?? [])] : []);
    if (value.kind === "begin") {
      this.bar.style.width = "0";
      setText(this.line, `Reading ${quote(value.title)} …`);
    } else if (value.kind === "reading") {
      setText(this.line, `Reading ${value.index} of ${value.count}: ${quote(value.name)} …`);
    } else if (value.kind === "progress") {
      this.bar.style.width = `${(100 * value.done) / Math.max(1, value.total)}%`;
      setText(this.line, `${value.fitting ? "Fitting the gate" : "Computing keys"}: ${value.done.toLocaleString("en")} of ` +
        `${value.total.toLocaleString("en")} tokens …`);
    } else if (value.kind === "ready") this.#ready(value);
    else if (value.kind === "gone") {
      this.#gone(value.stopped ? "Cancelled: nothing of it is kept."
        : "Deleted. The page uses its own corpus again.");
    }
    else if (value.kind === "message") setText(this.line, this.summary);
  }

  /** @param {Extract<OwnText, { kind: "ready" }>} value */
  #ready({ title, documents, tokens, bytes, seconds, note }) {
    const until = seconds ? `for you only until ${new Date(Date.now() + 1000 * seconds)
      .toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })} or a reload` : "in this tab only, and sent nowhere";
    document.body.setAttribute("data-own", "");
    this.summary = `${quote(title)}: ${documents} ` +
      `${documents === 1 ? "document" : "documents"}, ${tokens.toLocaleString("en")} tokens, ` +
      `${megabytes(bytes)}, kept ${until}. The datastore's column, Inspect ` +
      "and Chat use it now. The page's own memory does not know it, because it was trained earlier." +
      (note ? ` (${note})` : "");
    setText(this.line, this.summary);
    this.ask.hidden = false;
    window.clearTimeout(this.timer);
    if (seconds) this.timer = window.setTimeout(() => this.#expire(), 1000 * seconds);
  }

  /** Names the files that were left out. @param {string[]} sentences */
  #leave(sentences) {
    this.left.hidden = !sentences.length;
    this.left.replaceChildren(...sentences.map((text) => h("li", { dir: "auto" }, `Left out: ${text}`)));
  }

  #expire() {
    this.#gone("Your text has expired and is gone.");
    const served = document.querySelector("#store-choice input");
    if (served instanceof HTMLElement) served.click();
  }

  /** @param {string} text */
  #gone(text) {
    window.clearTimeout(this.timer);
    this.summary = "";
    this.ask.hidden = true;
    document.body.removeAttribute("data-own");
    setText(this.line, text);
  }
}

const LONGEST = 48; // characters of the context before a neighbour's token

/** The view, once its tab was opened. @type {CorpusView | null} */
let only = null;

/** Opens a neighbour's document on the Corpus tab at its passage. @type {Reader} */
export const readDocument = ({ title, group, left, target }) => {
  tabNamed("Corpus")?.click();
  /** Retries until the tab's elements exist, which Gradio creates when it is opened. @param {number} tries */
  const ask = (tries) => {
    const view = only;
    if (view?.page.isConnected && view.page.getClientRects().length) {
      const before = (left + target).split("¶").at(-1) ?? "";
      view.place = (before.length > LONGEST ? before.slice(-LONGEST).replace(/^\S*\s/, "") : before).trim();
      view.open({ title, group, place: view.place });
    } else if (tries) window.setTimeout(() => ask(tries - 1), 50);
  };
  ask(100);
};

/** @type {(element: Element, props: Props<Packed>, watch: Watch, open: Open) => void} */
export const mountCorpus = (element, props, watch, open) => {
  const view = new CorpusView(inside(element, ".corpus-host"), open);
  only = view;
  watch("value", () => view.receive(unpack(props.value)));
};

/** @type {(element: Element, props: Props<Packed>, watch: Watch) => void} */
export const mountOwn = (element, props, watch) => {
  const own = new Own(inside(element, ".own-host"));
  watch("value", () => own.receive(unpack(props.value)));
};

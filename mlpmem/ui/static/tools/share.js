// @ts-check
/* Share: the run or the conversation on screen as a link, JSON or CSV; opening a saved run. */
/** @import { About, Conversation, Lambda, Shared, Shown, TokenView } from "../core/types.js" */
import { h, inTab, megabytes, setText, tabNamed } from "../core/dom.js";
import { SOURCES, candidateOf, lambdaAt, mix } from "../core/mix.js";
import { page } from "../core/state.js";

const MOST = 6e6; // bytes of a run's file; the server checks them again
const MOST_TALK = 21e6; // bytes of a conversation's file, a little more than is saved
/** [a trace's setting, its name in a link]. @type {[keyof import("../core/types.js").Settings, string][]} */
const KEYS = [["max_new_tokens", "tokens"], ["temperature", "temperature"], ["top_p", "top_p"],
  ["top_k", "top_k"], ["seed", "seed"], ["min_p", "min_p"], ["repetition_penalty", "penalty"]];
const COLUMNS = ["system", "index", "chosen", "token_id", "token", "lm", "memory", "knn", "fused",
  "lmbda"];
const SAID = 8000; // milliseconds that a note stays

/** @typedef {About & { v: number, lmbda: number | null, own?: true, traces: { [system: string]: Shown } }} Run */

/** The run on screen as the API returns it, null without a complete run. If all mixed columns show
 * scrubbed texts, each column has its own lambda.
 * @type {(view: TokenView | null) => Run | null} */
export const recordOf = (view) => {
  if (!view?.finished || [...view.panes.values()].some((p) => p.root.dataset.state === "stopped")) {
    return null;
  }
  const traces = { ...view.finished };
  let fixed = 0;
  for (const { system, trace } of view.panes.values()) {
    if (!trace?.fixed) continue;
    const { fixed: _, changed: __, kind: ___, ...plain } = trace;
    traces[system] = plain;
    fixed += 1;
  }
  const mixed = Object.values(traces).filter((trace) => trace.system !== "lm");
  const lmbda = fixed && fixed === mixed.length ? null : page.lambda;
  /** @type {Run} */
  const run = { v: 1, ...view.head.about, lmbda, traces };
  return view.own ? { ...run, own: true } : run; // the searched text itself is not saved
};

/** The lines of a run: one per candidate of each token, mixed at the lambda on screen. Tokens are JSON
 * strings, so spaces and line ends are visible, and no cell is a formula.
 * @param {{ [system: string]: Shown }} traces @param {number | null} shown */
function* linesOf(traces, shown) {
  for (const [system, trace] of Object.entries(traces)) {
    for (const step of trace.steps) {
      const lmbda = trace.system === "lm" ? 0 : lambdaAt(step, shown ?? trace.lmbda);
      for (const row of step.cand) {
        const { id, text, p } = candidateOf(row);
        yield [system, step.i, Number(id === step.id), id, JSON.stringify(text), p.lm,
          p.memory ?? "", p.knn ?? "", mix(p, trace.system, lmbda), lmbda];
      }
    }
  }
}

/** A run, or all turns of a conversation, as CSV. @type {(record: Run | Conversation) => string} */
const csvOf = (record) => {
  /** @type {(string | number)[][]} */
  const lines = "turns" in record
    ? [["turn", ...COLUMNS], ...record.turns.flatMap(({ traces }, i) =>
      [...linesOf(traces, record.lmbda)].map((line) => [record.left + i + 1, ...line]))]
    : [COLUMNS, ...linesOf(record.traces, record.lmbda)];
  /** @type {(value: string | number) => string} */
  const cell = (value) => (/[",\n\r]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  return `${lines.map((line) => line.map(cell).join(",")).join("\r\n")}\r\n`;
};

/** The lambda for a link to mixed texts, "auto" if a router chose it, null if each has its default.
 * @type {(shown: number | null, mixed: Shown[]) => Lambda | null} */
export const linkedLambda = (shown, mixed) => {
  if (shown !== null) return shown;
  if (mixed.some((t) => t.lmbda === "auto")) return "auto";
  const off = mixed.find((t) => page.status.routed ||
    Math.abs(Number(t.lmbda) - (page.defaults[t.system] ?? t.lmbda)) > 1e-9);
  return off ? off.lmbda : null;
};

/** This page's address without a link's values. */
const here = () => window.location.href.split(/[?#]/)[0];

/** A link that repeats a run on this page. @type {(run: Run) => string} */
export const linkOf = (record) => {
  const query = new URLSearchParams({ q: record.prompt ?? "" });
  const traces = Object.values(record.traces);
  const settings = traces[0]?.settings || {};
  for (const [name, key] of KEYS) {
    if (settings[name] !== undefined) query.set(key, String(settings[name]));
  }
  const mixed = SOURCES.slice(1).flatMap((name) => record.traces[name] ?? []);
  const lambda = linkedLambda(record.lmbda, mixed);
  if (lambda !== null) query.set("lambda", String(lambda));
  const names = Object.keys(record.traces);
  if (names.join() !== SOURCES.join()) query.set("systems", names.join(","));
  return `${here()}?${query}`;
};

/** @param {string} name @param {string} type @param {string} text */
function save(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  window.setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** @type {(title: string | undefined) => string} */
const fileName = (title) => `mlp-memory ${title}`.replace(/[^\p{L}\p{N}]+/gu, "-")
  .slice(0, 60).replace(/-$/, "");

/** A note on parts of a run that a link omits. @type {(run: Run) => string} */
const lost = ({ own, traces }) => {
  const grown = Object.values(traces).some((trace) => trace.settings?.forced?.length);
  if (!own && !grown) return "";
  return ` The link uses ${own ? "the page's own corpus: save the run to keep your text's answers" : "no branches: save the run to keep them"}.`;
};

/** @type {(count: number) => string} */
const questions = (count) => (count === 1 ? "1 question" : `${count} questions`);

/** @type {(view: TokenView | null) => boolean} */
const isChat = (view) => view?.prefix === "chat-pane-";

/** What can be shared of a view: a link, null if it would be too long; a record to save; and what to say of each.
 * @typedef {{ title: string, link: string | null, record: () => Run | Conversation, about: string, lost: string }} Offer
 * @type {(view: TokenView | null) => Offer | null} */
const offerOf = (view) => {
  const talk = view?.conversation() ?? null;
  if (talk || isChat(view)) return talk && talked(talk);
  const run = recordOf(view);
  return run && { title: run.prompt ?? "", link: linkOf(run), record: () => run, about: "", lost: lost(run) };
};

/** @type {(talk: Shared) => Offer} */
const talked = ({ count, own, fragment, record }) => {
  const asks = `The link has ${count === 1 ? "your question" : `all ${count} questions`} and your settings, not the answers: these are ` +
    `written again where it is opened${own ? ", without your own text" : ""}.`;
  return { title: "conversation", link: fragment && `${here()}${fragment}`, record, lost: ` ${asks}`,
    about: fragment ? `The whole conversation, ${questions(count)}. ${asks} A file also has the answers with their tokens.`
      : `The whole conversation, ${questions(count)}. It is too long for a link: save it as a file.` };
};

/** What a file's text looks like: a conversation, a run, or neither. @type {(text: string) => "chat" | "run" | ""} */
const kindOfFile = (text) => {
  try {
    const value = JSON.parse(text);
    return value?.kind === "chat" ? "chat" : value?.traces ? "run" : "";
  } catch {
    return "";
  }
};

/** What opens a saved conversation, once the chat's tab stands; null without a chat. */
const talkOpener = () => inTab("Chat", () => page.openTalk);

/** The Share button with its panel; open(text) opens a saved run, null if that is not possible. */
export class Share {
  /** @param {((text: string) => void) | null} open */
  constructor(open) {
    this.note = h("p", { class: "share-note" }); // in the panel, on what can be shared
    this.said = h("p", { class: "share-said", role: "status" }); // below the button, on what was done
    this.fading = 0; // the timer of what was said
    /** The view and the run that the panel was opened on. @type {[TokenView | null, string | null | undefined]} */
    this.on = [null, null];
    this.box = h("input", { class: "share-link", readonly: true, hidden: true,
      "aria-label": "Link to this run", on: { focus: () => this.box.select() } });
    this.picker = h("input", { type: "file", accept: ".json,application/json", hidden: true,
      "aria-label": "Saved run or conversation", on: { change: () => this.#picked() } });
    this.copying = this.#item("Copy link", "share-copy", () => this.#copy());
    this.needing = [
      this.copying,
      this.#item("Save as JSON", "share-json", () => this.#save("json")),
      this.#item("Save as CSV", "share-csv", () => this.#save("csv")),
    ];
    this.opening = this.#item("", "share-open", () => this.picker.click());
    this.panel = h("div", { class: "share-panel", id: "share-panel", role: "group",
      "aria-label": "Save and share", hidden: true }, this.needing, this.box,
    h("hr"), this.opening, this.picker, this.note);
    this.open = open;
    this.button = h("button", { type: "button", class: "tool-button share-button",
      "aria-expanded": "false", "aria-controls": "share-panel",
      on: { click: () => this.toggle(this.panel.hidden !== false) } }, "Share");
    this.root = h("div", { class: "share", on: { keydown: (event) => this.#pressed(event) } },
      this.button, this.panel, this.said);
    document.addEventListener("pointerdown", (event) => {
      if (event.target instanceof Node && !this.root.contains(event.target)) this.toggle(false);
    });
    for (const name of /** @type {const} */ (["view", "pending"])) page.on(name, () => this.#follow());
  }

  /** @param {string} text @param {string} name @param {() => void} act */
  #item(text, name, act) {
    return h("button", { type: "button", class: `share-item ${name}`, on: { click: act } }, text);
  }

  /** @param {boolean} on */
  toggle(on) {
    if (on) {
      const view = page.activeView();
      const offer = offerOf(view);
      this.on = [view, view?.run];
      for (const item of this.needing) item.disabled = !offer;
      this.copying.disabled = !offer?.link;
      this.opening.hidden = !this.open && !isChat(view);
      setText(this.opening, isChat(view) ? "Open a saved conversation…" : "Open a saved run…");
      setText(this.note, offer ? offer.about : isChat(view) ? "Only a conversation whose answers are written can be shared."
        : "Only a finished run can be shared.");
      this.box.hidden = true;
      this.#say("");
    }
    this.panel.hidden = !on;
    this.button.setAttribute("aria-expanded", String(on));
  }

  /** Closes the panel once another tab or run is on screen. */
  #follow() {
    const view = page.activeView();
    if (!this.panel.hidden && (view !== this.on[0] || view?.run !== this.on[1] || view?.running)) this.toggle(false);
  }

  /** Closes the panel after its use, and says what was done. @param {string} text */
  #done(text) {
    this.toggle(false);
    this.button.focus();
    this.#say(text);
  }

  /** @param {string} text */
  #say(text) {
    window.clearTimeout(this.fading);
    setText(this.said, text);
    if (text) this.fading = window.setTimeout(() => setText(this.said, ""), SAID);
  }

  /** @param {KeyboardEvent} event */
  #pressed(event) {
    if (event.key !== "Escape" || this.panel.hidden) return;
    event.stopPropagation();
    this.toggle(false);
    this.button.focus();
  }

  async #copy() {
    const offer = offerOf(page.activeView());
    if (!offer?.link) return;
    this.box.value = offer.link;
    try {
      await navigator.clipboard.writeText(this.box.value);
      this.#done(`The link is copied.${offer.lost}`);
    } catch {
      this.box.hidden = false;
      this.box.focus();
      setText(this.note, `Copy the link from the box.${offer.lost}`);
    }
  }

  /** @param {"json" | "csv"} kind */
  #save(kind) {
    const offer = offerOf(page.activeView());
    if (!offer) return;
    const record = offer.record();
    const text = kind === "csv" ? csvOf(record) : JSON.stringify(record);
    save(`${fileName(offer.title)}.${kind}`, kind === "csv" ? "text/csv" : "application/json", text);
    const left = "turns" in record && record.left;
    this.#done(left ? `Saved without the ${left === 1 ? "oldest turn" : `${left} oldest turns`}, which would make the file too large.` : "Saved.");
  }

  async #picked() {
    const file = this.picker.files?.[0];
    this.picker.value = "";
    if (!file) return;
    if (page.runningView()) {
      setText(this.note, "A run is in progress. Stop it first.");
      return;
    }
    const isLarge = file.size > MOST; // for a run, but perhaps not for a conversation
    const text = file.size > MOST_TALK ? "" : await file.text();
    const kind = kindOfFile(text);
    if (kind === "chat") {
      await this.#opened(text);
    } else if (isLarge) {
      setText(this.note, `The file must have at most 6 MB, a conversation's 21 MB; it has ${megabytes(file.size)}.`);
    } else if (this.open && (kind || !isChat(page.activeView()))) {
      tabNamed("Compare")?.click(); // where it is shown, or what is wrong with it
      this.open(text);
      this.#done("");
    } else setText(this.note, "The file is not a saved conversation, or it is damaged.");
  }

  /** Opens a saved conversation in the chat. @param {string} text */
  async #opened(text) {
    const open = await talkOpener();
    try {
      this.#done(open ? open(text) : "This page has no chat to open the conversation in.");
    } catch (error) {
      this.toggle(true);
      setText(this.note, error instanceof Error ? error.message : "");
    }
  }
}

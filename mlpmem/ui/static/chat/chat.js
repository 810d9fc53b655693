// @ts-check
/* The chat: a conversation in this browser, whose answers are token views. The server answers, and keeps nothing. */
/** @import { Around, ChatValue, Texts, Turn } from "./types.js" */
/** @import { Candidate, Packed, Pane, Props, Watch } from "../core/types.js" */
/** @import { Plan } from "./run.js" */
import { h, inside, setText } from "../core/dom.js";
import { groupName, tellIt } from "../core/panels.js";
import { isAway } from "../core/mix.js";
import { AWAY, page, unpack } from "../core/state.js";
import { legend } from "../view/panes.js";
import { actsOf } from "./acts.js";
import { Composer } from "./composer.js";
import { linkedLambda } from "../tools/share.js";
import { Keep } from "./kept/keep.js";
import { fragmentOf, recordOf } from "./kept/link.js";
import { readConversation } from "./kept/opened.js";
import { Talk, newAnswer, shownOf } from "./kept/talk.js";
import { Linked } from "./linked.js";
import { TurnView, noteFallen } from "./question.js";
import { ChatRun } from "./run.js";
import { Settings, facts } from "./settings.js";
import { Shown } from "./shown.js";

const SAVE = 3000; // milliseconds between two savings of an answer that grows
const SILENCE = 200000; // milliseconds without a value; the server's deadline is shorter

export class Chat extends Shown {
  /** @param {HTMLElement} host @param {Texts} texts @param {Around} around */
  constructor(host, texts, around) {
    super(host);
    this.around = around;
    this.undo = h("button", { type: "button", class: "small-button", hidden: true, on: { click: () => this.unclear() } },
      "Undo: bring the last conversation back");
    this.fresh = h("button", { type: "button", id: "chat-clear", class: "chat-tool", on: { click: () => this.clear() } }, "New chat");
    this.empty = h("div");
    this.talk = new Talk();
    this.keep = new Keep();
    /** The run under way. @type {ChatRun | null} */
    this.job = null;
    this.saved = 0; // time of the last saving
    this.silence = 0; // the timer of a run without values
    /** The conversation before it was erased, until the next question. @type {Turn[]} */
    this.erased = [];
    this.settings = new Settings({ changed: (values) => this.keep.note("settings", values), erase: () => this.clear(), kept: () => this.keep.bytes });
    this.composer = new Composer({ send: () => this.send(), stop: () => this.stop(),
      chosen: () => this.keep.note("systems", this.composer.wanted) }, texts);
    this.acts = actsOf(this);
    this.tree = { branch: (/** @type {Pane} */ pane, /** @type {number} */ index, /** @type {Candidate} */ { id }) =>
      this.acts.write(/** @type {any} */ (pane), index, id) };
    this.linked = new Linked(this.#linked.bind(this));
    this.#layOut(texts);
    this.listen();
    const left = () => this.job && this.keep.save(this.job.turn); // the page may never come back
    window.addEventListener("pagehide", left);
    document.addEventListener("visibilitychange", left);
    page.openTalk = (file) => this.openFile(file);
    this.#restore();
  }

  /** @param {Texts} texts */
  #layOut({ note, starters }) {
    this.empty = h("div", { class: "chat-empty" }, h("h2", null, "Ask something"), h("p", { class: "panel-note" }, note),
      h("div", { class: "starters" }, starters.map(([group, text]) => h("button", { type: "button", class: "starter",
        on: { click: () => this.send(text) } }, group ? h("span", { class: "starter-kind" }, groupName(group)) : "",
      h("span", { dir: "auto" }, text)))), this.undo, h("button", { type: "button", class: "chat-tool", hidden: page.local,
        on: { click: tellIt } }, "Or tell it a fact of your own, and ask"));
    const bar = h("div", { class: "chat-bar" }, this.composer.source,
      h("div", { class: "chat-tools" }, this.switch, this.settings.button, this.fresh));
    const key = legend();
    this.root.replaceChildren(h("div", { class: "chat" }, bar, this.alert, this.linked.root, key,
      h("div", { class: "chat-body" }, h("div", { class: "chat-main" }, this.empty, this.log, this.composer.root), this.slot)));
  }

  /** The tab was opened: a text of the visitor's own may have come or gone. */
  opened() {
    this.composer.offer();
    if (this.talk.turns.size) this.follow(true);
  }

  async #restore() {
    const { turns, more } = await this.keep.load();
    if (more.settings) this.settings.values = more.settings;
    this.settings.mark();
    if (more.systems?.length) this.composer.want(more.systems);
    if (!turns.length || this.talk.turns.size) return;
    for (const answer of turns.flatMap((turn) => Object.values(turn.answers).flatMap(({ list }) => list))) {
      if (answer.state === "waiting" || answer.state === "running") answer.state = "stopped"; // the page was left
    }
    this.talk.restore(turns);
    this.render();
    this.follow(true);
  }

  /** Asks a question at the end of the conversation: the one in the box, or a starter. @param {string} [starter] */
  send(starter) {
    const { box } = this.composer;
    const question = starter ?? box.value;
    if (!question.trim()) {
      this.composer.say("Write a question first.");
      box.focus();
      return;
    }
    if (!this.isFree(question)) return;
    if (starter === undefined) box.value = "";
    this.pose(this.talk.add(question));
  }

  /** The conversation on screen, null while an answer is being written or without one. */
  conversation() {
    const path = this.talk.path();
    if (this.running || !path.length) return null;
    const mixed = path.flatMap(({ answers }) => Object.values(answers)).flatMap((versions) => shownOf(versions)?.trace ?? [])
      .filter(({ system }) => system !== "lm");
    return { count: path.length, own: path.some(({ own }) => own), record: () => recordOf(path, page.lambda),
      fragment: fragmentOf(path, linkedLambda(page.lambda, mixed)) };
  }

  /** Shows a saved conversation at the place of the one on screen, and returns what to say. @param {string} file */
  openFile(file) {
    const { turns, lmbda } = readConversation(file);
    const [first] = this.talk.path();
    this.closeDrawer();
    for (const [i, { question, own, right: [answer = "", ...aliases], traces }] of turns.entries()) {
      const turn = this.talk.add(question, i ? undefined : first);
      Object.assign(turn, { own: own || "", about: { answer, aliases } });
      for (const trace of Object.values(traces)) {
        const state = trace.finish ? "done" : "stopped";
        this.talk.answer(turn, { ...newAnswer(trace.system, this.settings.sent), trace, state });
      }
      this.keep.save(turn);
    }
    page.bar?.set(lmbda);
    this.render();
    this.follow(true);
    return `Opened, ${turns.length === 1 ? "1 question" : `${turns.length} questions`}.${first ? " Your own conversation is the first question's other version." : ""}`;
  }

  /** Whether a question can be asked now; says why not. @param {string} [question] */
  isFree(question = "") {
    const running = page.runningView();
    const most = facts()?.question ?? Number.POSITIVE_INFINITY;
    const { length } = [...question]; // characters, as the server counts them
    const text = !page.status.ready ? `The model cannot answer yet: ${page.status.line || "it is loading"}.`
      : /** @type {any} */ (running) === this ? "An answer is being written. Stop it first, or wait."
        : running ? "A run is in progress on another tab. Wait for it, or stop it with Esc."
          : length > most ? `A question has at most ${most.toLocaleString("en")} characters; this one has ${length.toLocaleString("en")}. Shorten it.` : "";
    this.composer.say(text);
    return !text;
  }

  /** @param {Turn} turn @param {string[]} [systems] */
  pose(turn, systems = this.composer.systems, asked = this.settings.sent, lambda = this.nextLambda) {
    this.erased = [];
    this.start(turn, systems.map((system) => ({ answer: newAnswer(system, asked), forced: [], kept: 0 })), lambda);
  }

  /** Asks a question of a link: the first at the place of the conversation's first. @type {import("./linked.js").Linked["ask"]} */
  #linked({ question, systems }, at, { settings, lmbda }) {
    if (!this.isFree()) return false;
    const turn = this.talk.add(question, at ? undefined : this.talk.path()[0]);
    const able = systems.filter((system) => this.composer.has(system));
    this.pose(turn, able.length ? able : this.composer.systems, { ...this.settings.sent, ...settings }, lmbda ?? this.nextLambda);
    return true;
  }

  /** @param {Turn} turn @param {Plan[]} plans @param {import("../core/types.js").Lambda | null} lmbda */
  start(turn, plans, lmbda) {
    const placed = plans.map((plan) => ({ ...plan, at: turn.answers[plan.answer.system]?.at ?? 0 }));
    for (const { answer } of plans) if (!turn.answers[answer.system]?.list.includes(answer)) this.talk.answer(turn, answer);
    this.job = new ChatRun(turn, placed);
    this.setRunning(true);
    this.render();
    this.follow(true);
    this.keep.save(turn);
    this.around.ask(this.job.request(this.talk, lmbda));
    page.emit("pending", undefined);
  }

  /** Takes one value. @param {ChatValue | null} value */
  receive(value) {
    const { job } = this;
    if (!value?.kind || !job) return;
    this.#listen();
    if (value.kind === "message") {
      job.settle(value.text);
      this.#finish();
      return;
    }
    if (value.run !== job.id) return; // a late value of a stopped run
    this.waiting = false;
    if (job.receive(value)) this.#finish();
    else this.grow(job);
  }

  /** Shows what has come. @param {ChatRun} job */
  grow(job) {
    const view = this.views.get(job.turn.id);
    if (!view) return;
    view.show(this.talk.siblings(job.turn));
    this.remark(view);
    this.paint(view);
    this.keepDrawer();
    this.follow(false);
    if (performance.now() - this.saved < SAVE) return;
    this.saved = performance.now();
    this.keep.save(job.turn);
  }

  #finish() {
    const { job } = this;
    this.job = null;
    this.setRunning(false);
    if (!job) return;
    this.keep.save(job.turn);
    this.render();
    this.keepDrawer();
    this.follow(false);
    this.linked.after(job.answers.every(({ state }) => state === "done"));
    const [answer] = job.answers;
    setText(this.live, answer.error || (answer.state === "stopped" ? "Stopped." : `Answered: ${answer.trace.text ?? ""}`));
  }

  /** Stop was pressed: the tokens so far stay. */
  stop() {
    if (!this.job) return;
    this.around.halt();
    const { turn } = this.job;
    for (const { answer, at } of this.job.stop()) this.talk.withdraw(turn, answer, at ?? 0);
    this.#finish();
    page.emit("stopped", /** @type {any} */ (this));
  }

  /** Ends a run that lost its connection. */
  #listen() {
    window.clearTimeout(this.silence);
    if (page.local) return;
    this.silence = window.setTimeout(() => {
      this.job?.settle("The connection was lost. Ask again.");
      this.#finish();
    }, SILENCE);
  }

  /** @param {boolean} on */
  setRunning(on) {
    this.running = on;
    this.waiting = on;
    if (on) this.#listen();
    else window.clearTimeout(this.silence);
    this.composer.setRunning(on);
    this.log.setAttribute("aria-busy", String(on));
    for (const { repeat } of this.views.values()) repeat.disabled = on;
    document.body.toggleAttribute("data-running", page.runningView() !== null);
    if (!on) page.emit("ended", /** @type {any} */ (this));
  }

  /** Begins a new conversation; the old one is erased from this browser. */
  clear() {
    if (this.running) this.stop();
    this.closeDrawer();
    this.erased = [...this.talk.turns.values()];
    this.talk = new Talk();
    this.keep.erase();
    this.render();
    this.composer.box.focus();
  }

  /** Brings an erased conversation back. */
  unclear() {
    this.talk.restore(this.erased);
    for (const turn of this.erased) this.keep.save(turn);
    this.erased = [];
    this.render();
    this.follow(true);
  }

  /** Paints the whole conversation. */
  render() {
    const path = this.talk.path();
    const views = path.map((turn) => this.views.get(turn.id) ?? new TurnView(turn, this.acts));
    this.views = new Map(views.map((view) => [view.turn.id, view]));
    const other = views.findIndex(({ root }, i) => this.log.children[i] !== root);
    const kept = other < 0 ? views.length : other; // the turns before stay in place, with what is focused in them
    while (this.log.children.length > kept) this.log.lastElementChild?.remove();
    this.log.append(...views.slice(kept).map(({ root }) => root));
    views.forEach((view, i) => {
      view.show(this.talk.siblings(view.turn));
      view.repeat.disabled = this.running;
      if (i === views.length - 1) view.repeat.id = "chat-retry";
      else view.repeat.removeAttribute("id");
      this.remark(view);
    });
    noteFallen(views);
    this.log.hidden = !views.length;
    this.empty.hidden = views.length > 0;
    this.undo.hidden = !this.erased.length;
    this.fresh.disabled = !views.length;
    this.composer.measure(path[path.length - 1]);
    this.repaint();
  }

  /** Notes at an answer how it came about and what it has not read. @param {TurnView} view */
  remark(view) {
    const { answer = "", aliases = [] } = view.turn.about;
    for (const [system, pane] of view.panes) {
      const { skipped } = this.talk.history(view.turn, system);
      const unread = skipped ? `It has not read ${skipped === 1 ? "the earlier turn" : `${skipped} earlier turns`}, which it did not answer.` : "";
      const away = system === "knn" && view.turn.own && pane.answer?.state === "done" && isAway(pane.answer.trace) ? AWAY : "";
      pane.remark([unread, away, pane.begun].filter(Boolean).join(" "), answer ? [answer, ...aliases] : []);
    }
  }
}

/** @type {(element: Element, props: Props<Packed, { texts: Texts }>, watch: Watch, around: Around) => void} */
export const mountChat = (element, props, watch, around) => {
  const chat = new Chat(inside(element, ".chat-host"), props.texts, around);
  watch("value", () => chat.receive(unpack(props.value)));
};

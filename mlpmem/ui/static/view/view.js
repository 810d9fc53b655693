// @ts-check
/* The token view: columns of tokens, filled by Python's values (Value in core/types.d.ts).
 *
 * "recorded" and "done" have whole traces, "begin" opens a run, "steps" is a delta with a sequence number, "message" is
 * an error, "invite" starts a run of the prompt in the box, "opened" is a saved run, "linked" a permalink. A "begin" with
 * branch fills one column and keeps the others. "scrub" and "scrubbed" are for scrub.js. Columns with their own prompt or
 * weights run after the others: "wait" is a column's loading message, "column" opens it, "part" has whole traces of
 * finished columns, "failed" is a column's error.
 */
/** @import { Opening, Pane, Request, Settings, Shown, Step, Traces, Value, ValueOf } from "../core/types.js" */
import { hasSheet, setText } from "../core/dom.js";
import { isScored } from "../core/mix.js";
import { introduceTraces, kindOf, nameOf, page } from "../core/state.js";
import { Columns } from "./columns.js";
import { costScale } from "./cost.js";
import { tally } from "./tally.js";

const SILENCE = 200000; // milliseconds without a value; the server's deadline is shorter

/** @typedef {ValueOf<"recorded"> | ValueOf<"opened"> | ValueOf<"linked">} Opened */

export class TokenView extends Columns {
  /** @param {HTMLElement} host @param {import("./columns.js").Options} options */
  constructor(host, options) {
    super(host, options);
    this.seq = 0; // of the last delta
    this.halted = false; // stopped before it began, so that its values are late
    this.running = false;
    /** The whole traces of the run on screen. @type {{ [system: string]: Shown } | null} */
    this.finished = null;
    /** The branch in progress. @type {import("./tree.js").Plan | null} */
    this.growing = null;
    this.silence = 0; // the timer of a run without values
    page.views.push(this);
  }

  /** Takes one value from Python. @param {Value | null} value */
  receive(value) {
    if (!value?.kind) return;
    if (this.halted && value.kind === "begin") return;
    if (this.running) this.#listen();
    if (value.kind === "message") this.say(value.text);
    else if (value.kind === "recorded") this.showRecorded(value);
    else if (value.kind === "begin") this.begin(value);
    else if (value.kind === "invite") this.invite(value);
    else if (value.kind === "opened") this.#opened(value);
    else if (value.kind === "linked") this.#linked(value);
    else if (value.kind === "scrub" || value.kind === "scrubbed") this.scrub.receive(value);
    else if (value.run !== this.run) return; // a late value of a stopped run
    else if (value.kind === "steps" && value.seq === this.seq + 1) {
      this.seq = value.seq;
      this.add(value.steps);
    } else if (value.kind === "wait") this.hold(value.columns, "waiting");
    else if (value.kind === "column") this.openColumns(value.columns);
    else if (value.kind === "part") this.part(value.traces);
    else if (value.kind === "failed") this.fail(value.columns);
    else if (value.kind === "done") this.end(value);
    else if (value.kind === "answers") this.scrub.adopt(value.system, value.texts, value.cost);
  }

  /** @param {string} text */
  say(text) {
    setText(this.alert, text);
    if (this.scrub.end()) return;
    this.#interrupt();
    if (this.head.kind === "waiting") this.head.back("");
  }

  /** @param {string} run */
  name(run) {
    this.run = run;
    this.root.dataset.run = run;
  }

  /** @param {Value} value @param {string} badge */
  open(value, badge) {
    setText(this.alert, "");
    if (!("branch" in value && value.branch)) this.asked = null;
    this.head.show(value, badge);
  }

  /** @param {Opened & { traces: Traces }} value @param {string} [badge] */
  showRecorded(value, badge = "recorded") {
    this.replay.cancel();
    this.tree.clear();
    this.unticked.clear();
    this.name(value.run);
    this.open(value, badge);
    this.setRunning(false);
    this.restart(value.traces);
    this.from(value.own || "", value.captions);
    this.replay.paced = "paced" in value && value.paced === true;
    this.complete(value.traces);
    for (const [system, { texts, cost }] of Object.entries(("scrubs" in value && value.scrubs) || {})) {
      this.scrub.adopt(system, texts, cost);
    }
  }

  /** Shows a saved run as it was on screen. @param {ValueOf<"opened">} value */
  #opened(value) {
    page.bar?.set(value.lmbda);
    this.showRecorded(value, "from a file");
  }

  /** Opens a permalink: runs it, shows its recording, or waits for the model.
   * @param {ValueOf<"linked">} value */
  #linked(value) {
    document.body.removeAttribute("data-linked");
    page.bar?.set(value.lmbda);
    if (value.traces && !value.ready) {
      this.showRecorded({ ...value, traces: value.traces });
      return;
    }
    this.replay.cancel();
    this.finished = null;
    this.replay.offer();
    this.tree.clear();
    this.open(value, value.ready ? "from a link" : "from a link · runs once the model is ready");
    this.run = null;
    this.restart({});
    const waits = () => this.head.kind === "linked";
    if (value.ready) this.invite();
    else page.on("status", (status) => { if (status.ready && waits()) this.invite(); });
  }

  /** @param {ValueOf<"begin">} value */
  begin(value) {
    if (!value.branch) {
      this.unticked.clear();
      this.finished = null;
      this.tree.clear();
    }
    this.growing = value.branch ? this.tree.plan : null;
    this.replay.cancel();
    this.replay.paced = false; // a live step's time is the batch's
    this.name(value.run);
    this.seq = 0;
    this.open(value, "live");
    this.restart(value.traces, value.columns);
    if (!value.branch) this.#announce(value);
    this.from(value.own || "", value.captions);
    this.setRunning(true);
  }

  /** Shows in every separate column that it runs later. @param {ValueOf<"begin">} value */
  #announce(value) {
    for (const name of value.columns || []) {
      const later = kindOf(name) && !(name in value.traces);
      if (later) this.hold({ [name]: "Runs after the other columns …" }, "waiting");
    }
  }

  /** Shows in empty columns why they are empty.
   * @param {{ [system: string]: string }} texts @param {string} state */
  hold(texts, state) {
    if (this.growing) return;
    for (const [name, text] of Object.entries(texts)) this.panes.get(name)?.hold(text, state);
  }

  /** Opens separate columns that begin. @param {{ [system: string]: Opening }} columns */
  openColumns(columns) {
    for (const [name, trace] of Object.entries(columns)) {
      if (this.growing) this.tree.grow(name, { ...trace, steps: [] }, this.growing);
      this.panes.get(name)?.reset(trace, this.head.answers);
    }
  }

  /** Shows the finished columns of a run in progress. @param {Traces} traces */
  part(traces) {
    const scale = costScale(traces);
    for (const [name, trace] of Object.entries(traces)) this.panes.get(name)?.finish(trace, scale);
    this.repaint();
  }

  /** Shows columns' errors; a failed branch keeps the text before it.
   * @param {{ [system: string]: string }} texts */
  fail(texts) {
    if (this.growing) setText(this.alert, Object.values(texts).join(" "));
    else this.hold(texts, "failed");
  }

  /** Runs the prompt of an example: by Generate, or in columns of its own, which later runs do not have.
   * @param {{ prompt?: string, systems?: string[] }} [example] */
  invite({ prompt, systems } = {}) {
    if (prompt && systems) {
      this.own = "";
      this.#repeat(prompt, systems, {});
    } else window.setTimeout(() => document.getElementById("generate")?.click(), 60);
  }

  /** Runs a prompt as it is typed. @param {string} typed @param {string[]} systems @param {Settings} settings */
  #repeat(typed, systems, settings) {
    this.request({ kind: "typed", run: this.run || "", system: systems[0], systems, typed,
      lmbda: page.auto ? "auto" : page.lambda, settings, forced: [] });
  }

  /** Generate was pressed: until the first value arrives, the run is in the queue. */
  pending() {
    setText(this.alert, "");
    this.halted = false;
    this.head.wait(() => this.#forgotten());
    this.setRunning(true);
    page.emit("pending", undefined);
  }

  /** @param {number | null | undefined} count */
  ahead(count) {
    this.head.ahead(count, () => this.#forgotten());
  }

  #forgotten() {
    this.say("No answer arrived. Try again.");
  }

  /** Clears the panes for new tokens of these traces; names are all columns of the run.
   * @param {{ [system: string]: Opening }} traces @param {string[]} [names] */
  restart(traces, names = Object.keys(traces)) {
    this.closeDrawer();
    introduceTraces(traces);
    if (!this.growing) this.place(names);
    this.chosen = null;
    if (this.cited) this.cite(this.cited);
    for (const [system, pane] of this.panes) {
      if (this.growing && !traces[system]) continue;
      if (this.growing) this.tree.grow(system, { ...traces[system], steps: [] }, this.growing);
      pane.reset(traces[system] ?? null, this.head.answers);
    }
    this.explain();
  }

  /** @param {{ [system: string]: Step[] }} steps */
  add(steps) {
    for (const [system, list] of Object.entries(steps)) this.panes.get(system)?.append(list);
    this.repaint();
  }

  /** @param {ValueOf<"done">} value */
  end(value) {
    const { growing } = this;
    if (value.failed) this.fail(value.failed);
    if (growing && !(growing.system in value.traces)) {
      this.#interrupt();
      return;
    }
    this.setRunning(false);
    this.growing = null;
    if (!growing) this.asked = value.truth ?? null;
    this.complete(value.traces, growing);
    const { answers, about } = this.head;
    if (!growing && answers.length && this.ask) tally().count(about.prompt ?? "", this.panes);
  }

  /** Sends a request unless a run is in progress; returns whether it was sent. @param {Request} data */
  request(data) {
    if (!this.ask || page.runningView()) return false;
    if (this.replay.playing) this.replay.stop();
    this.pending();
    this.ask({ ...data, prompt: this.head.about.prompt, chat: this.head.about.chat, own: this.own });
    return true;
  }

  /** Repeats the run on screen with the prompt as typed. @param {string} typed */
  askAsTyped(typed) {
    const traces = this.finished ?? {};
    const [first] = Object.values(traces);
    if (first) this.#repeat(typed, Object.keys(traces), first.settings);
  }

  /** Shows whole traces, judges the answers, and opens the drawer at a difference.
   * @param {{ [system: string]: Shown }} traces @param {import("./tree.js").Plan | null} [grown] */
  complete(traces, grown = null) {
    this.finished = grown ? { ...this.finished, ...traces } : traces;
    this.replay.offer();
    const scale = costScale(this.finished);
    for (const [system, trace] of Object.entries(traces)) this.panes.get(system)?.finish(trace, scale);
    for (const pane of this.panes.values()) pane.price(scale);
    this.tellAway(traces.knn);
    const text = grown && this.panes.get(grown.system)?.trace;
    if (grown && text) this.tree.fill(grown.system, text);
    this.repaint();
    const texts = Object.entries(traces).map(([s, t]) =>
      [`${nameOf(s).title}: ${t.text}`, this.panes.get(s)?.verdict.textContent?.slice(2)].filter(Boolean).join(", "));
    if (!Object.values(traces).some(isScored)) setText(this.live, texts.join(". "));
    if (hasSheet()) return;
    if (grown) this.select(grown.system, grown.index, "key");
    else if (!this.chosen) this.openAtDifference();
  }

  /** Stop was pressed: keeps the tokens so far; later values are ignored. */
  halt() {
    if (!this.running || this.scrub.end()) return;
    this.halted = this.head.kind === "waiting"; // the answers on screen are an earlier run's
    if (!this.halted) this.run = null;
    this.#interrupt();
    if (this.halted) this.head.back("Stopped before it began.");
    else this.head.mark("stopped", "stopped");
    page.emit("stopped", this);
  }

  /** Ends the run and keeps the tokens so far. */
  #interrupt() {
    this.setRunning(false);
    for (const pane of this.panes.values()) pane.interrupt();
    const { growing } = this;
    this.growing = null;
    if (!growing?.node) return;
    const pane = this.panes.get(growing.system);
    const before = pane?.trace?.steps.length ? undefined : this.tree.drop(growing);
    if (pane && before) this.#restore(pane, before);
    if (pane?.trace) this.tree.fill(growing.system, pane.trace);
    this.repaint();
  }

  /** Restores a column's text before a branch that failed.
   * @param {Pane} pane @param {Shown} trace */
  #restore(pane, trace) {
    pane.reset(trace, this.head.answers);
    if (trace.finish) pane.finish(trace, costScale(this.finished || {}));
    else pane.append(trace.steps);
    pane.interrupt();
    this.replay.offer();
  }

  /** Restarts the timer after which a silent run has lost its connection. */
  #listen() {
    window.clearTimeout(this.silence);
    if (page.local) return;
    this.silence = window.setTimeout(() => {
      if (!this.running || this.head.kind === "waiting") return; // in the queue, see RunHead
      this.halt();
      setText(this.alert, "The connection was lost. Try again.");
    }, SILENCE);
  }

  /** @param {boolean} on */
  setRunning(on) {
    this.running = on;
    this.replay.offer();
    if (on) this.#listen();
    else {
      this.head.reveal(true);
      page.emit("ended", this);
    }
    document.body.toggleAttribute("data-running", page.runningView() !== null);
  }
}

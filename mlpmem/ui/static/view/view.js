// @ts-check
/* The token view: columns of tokens filled by the values Python sends (Value in core/types.d.ts).
 *
 * "recorded" and "done" carry whole traces, "begin" opens a run, "steps" carries a delta with seq, "message" says what
 * went wrong, "invite" asks the page to generate for the prompt that was just filled in; "opened" is a saved run,
 * "linked" a followed link. A "begin" with branch fills one column anew and leaves the others; "scrub" and "scrubbed"
 * belong to scrub.js. Columns with a prompt or weights of their own come after the others: "wait" says what is made
 * first, "column" opens one, "part" carries the whole traces of some, "failed" says why one has none.
 */
/** @import { Opening, Own, Pane, Request, Shown, Step, Traces, Value, ValueOf } from "../core/types.js" */
import { isPhone, setText } from "../core/dom.js";
import { isScored } from "../core/mix.js";
import { OWN_CAPTIONS, introduceTraces, kindOf, nameOf, page } from "../core/state.js";
import { Columns } from "./columns.js";
import { costScale } from "./cost.js";
import { tally } from "./tally.js";

const SILENCE = 200000; // milliseconds without a word; the server ends a run before

/** @typedef {ValueOf<"recorded"> | ValueOf<"opened"> | ValueOf<"linked">} Opened */

export class TokenView extends Columns {
  /** @param {HTMLElement} host @param {import("./columns.js").Options} options */
  constructor(host, options) {
    super(host, options);
    this.seq = 0; // of the last delta that came
    this.running = false;
    /** The whole traces of the run on screen. @type {{ [system: string]: Shown } | null} */
    this.finished = null;
    /** The branch that grows. @type {import("./tree.js").Plan | null} */
    this.growing = null;
    this.silence = 0; // the timer of a run that says nothing
    page.views.push(this);
  }

  /** Takes one value from Python. @param {Value | null} value */
  receive(value) {
    if (!value?.kind) return;
    if (this.running) this.#listen();
    if (value.kind === "message") this.say(value.text);
    else if (value.kind === "recorded") this.showRecorded(value);
    else if (value.kind === "begin") this.begin(value);
    else if (value.kind === "invite") this.invite();
    else if (value.kind === "opened") this.#opened(value);
    else if (value.kind === "linked") this.#linked(value);
    else if (value.kind === "scrub" || value.kind === "scrubbed") this.scrub.receive(value);
    else if (value.run !== this.run) return; // a late word of a run that was stopped
    else if (value.kind === "steps" && value.seq === this.seq + 1) {
      this.seq = value.seq;
      this.add(value.steps);
    } else if (value.kind === "wait") this.hold(value.columns, "waiting");
    else if (value.kind === "column") this.openColumns(value.columns);
    else if (value.kind === "part") this.part(value.traces);
    else if (value.kind === "failed") this.fail(value.columns);
    else if (value.kind === "done") this.end(value);
  }

  /** @param {string} text */
  say(text) {
    setText(this.alert, text);
    if (this.scrub.end()) return;
    this.#interrupt();
    if (this.head.kind === "waiting") this.head.mark("", "message");
  }

  /** @param {string} run */
  name(run) {
    this.run = run;
    this.root.dataset.run = run;
  }

  /** @param {Value} value @param {string} badge */
  open(value, badge) {
    setText(this.alert, "");
    this.head.show(value, badge);
  }

  /** @param {Opened & { traces: Traces }} value @param {string} [badge] */
  showRecorded(value, badge = "recorded") {
    this.replay.cancel();
    this.tree.clear();
    this.name(value.run);
    this.open(value, badge);
    this.setRunning(false);
    this.restart(value.traces);
    this.from(value.own || "");
    this.complete(value.traces);
  }

  /** A saved run was read: as it was on its own screen. @param {ValueOf<"opened">} value */
  #opened(value) {
    page.bar?.set(value.lmbda);
    this.showRecorded(value, "from a file");
  }

  /** A link was followed: run it, or show its recording, or wait for the model.
   * @param {ValueOf<"linked">} value */
  #linked(value) {
    page.bar?.set(value.lmbda);
    if (value.traces && !value.ready) {
      this.showRecorded({ ...value, traces: value.traces });
      return;
    }
    this.replay.cancel();
    this.finished = null;
    this.replay.offer();
    this.tree.clear();
    this.open(value, value.ready ? "from a link" : "from a link · runs once the model is there");
    this.run = null;
    this.restart({});
    const waits = () => this.head.kind === "linked";
    if (value.ready) this.invite();
    else page.on("status", (status) => { if (status.ready && waits()) this.invite(); });
  }

  /** Whose text was searched. @param {Own} own */
  from(own) {
    this.own = own;
    for (const [name, caption] of Object.entries(OWN_CAPTIONS)) {
      this.panes.get(name)?.describe(own ? caption : "");
    }
  }

  /** @param {ValueOf<"begin">} value */
  begin(value) {
    if (!value.branch) {
      this.finished = null;
      this.tree.clear();
    }
    this.growing = value.branch ? this.tree.plan : null;
    this.replay.cancel();
    this.name(value.run);
    this.seq = 0;
    this.open(value, "live");
    this.restart(value.traces, value.columns);
    if (!value.branch) this.#announce(value);
    this.from(value.own || "");
    this.setRunning(true);
  }

  /** Says of every further column that comes later that it does. @param {ValueOf<"begin">} value */
  #announce(value) {
    for (const name of value.columns || []) {
      const later = kindOf(name) && !(name in value.traces);
      if (later) this.hold({ [name]: "Comes after the others …" }, "waiting");
    }
  }

  /** Columns that have nothing to show yet, and why.
   * @param {{ [system: string]: string }} texts @param {string} state */
  hold(texts, state) {
    if (this.growing) return;
    for (const [name, text] of Object.entries(texts)) this.panes.get(name)?.hold(text, state);
  }

  /** Columns begin that came after the others. @param {{ [system: string]: Opening }} columns */
  openColumns(columns) {
    for (const [name, trace] of Object.entries(columns)) {
      if (this.growing) this.tree.grow(name, { ...trace, steps: [] }, this.growing);
      this.panes.get(name)?.reset(trace, this.head.answers);
    }
  }

  /** Some columns have ended, others go on. @param {Traces} traces */
  part(traces) {
    const scale = costScale(Object.values(traces));
    for (const [name, trace] of Object.entries(traces)) this.panes.get(name)?.finish(trace, scale);
    this.repaint();
  }

  /** Columns that could not be made; of a branch the text before it stays.
   * @param {{ [system: string]: string }} texts */
  fail(texts) {
    if (this.growing) setText(this.alert, Object.values(texts).join(" "));
    else this.hold(texts, "failed");
  }

  /** An example filled in the prompt and the model is there: as if Generate had been pressed. */
  invite() {
    window.setTimeout(() => document.getElementById("generate")?.click(), 60);
  }

  /** Generate was pressed: until the first word comes back, this visitor is in the queue. */
  pending() {
    setText(this.alert, "");
    this.head.wait(() => this.#forgotten());
    this.setRunning(true);
    page.emit("pending", undefined);
  }

  /** @param {number | null | undefined} count */
  ahead(count) {
    this.head.ahead(count, () => this.#forgotten());
  }

  #forgotten() {
    this.say("No answer came. Try again.");
  }

  /** Empties the panes for new tokens of these traces; names are all columns of the run.
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
    this.complete(value.traces, growing);
    const { answers, about } = this.head;
    if (!growing && answers.length && this.ask) tally().count(about.prompt ?? "", this.panes);
  }

  /** Sends a request unless a run is under way; returns whether it was sent. @param {Request} data */
  request(data) {
    if (!this.ask || page.runningView()) return false;
    if (this.replay.playing) this.replay.stop();
    this.pending();
    this.ask({ ...data, prompt: this.head.about.prompt, own: this.own });
    return true;
  }

  /** Asks for the run on screen again, its prompt as it was typed. @param {string} typed */
  askAsTyped(typed) {
    const traces = this.finished ?? {};
    const [system] = Object.keys(traces);
    if (!system) return;
    this.request({ kind: "typed", run: this.run || "", system, systems: Object.keys(traces), typed,
      lmbda: page.auto ? "auto" : page.lambda, settings: traces[system].settings, forced: [] });
  }

  /** Shows whole traces: repairs gaps, judges, and opens the drawer where it is instructive.
   * @param {{ [system: string]: Shown }} traces @param {import("./tree.js").Plan | null} [grown] */
  complete(traces, grown = null) {
    this.finished = grown ? { ...this.finished, ...traces } : traces;
    this.replay.offer();
    const scale = costScale(Object.values(this.finished));
    for (const [system, trace] of Object.entries(traces)) this.panes.get(system)?.finish(trace, scale);
    const text = grown && this.panes.get(grown.system)?.trace;
    if (grown && text) this.tree.fill(grown.system, text);
    this.repaint();
    const said = Object.entries(traces).map(([s, t]) => `${nameOf(s).title}: ${t.text}`);
    if (!Object.values(traces).some(isScored)) setText(this.live, said.join(". "));
    if (isPhone()) return;
    if (grown) this.select(grown.system, grown.index, "key");
    else if (!this.chosen) this.openTelling();
  }

  /** Stop was pressed: keep what arrived and let it be inspected; what still comes is late. */
  halt() {
    if (!this.running || this.scrub.end()) return;
    this.run = null;
    this.#interrupt();
    this.head.mark("stopped", "stopped");
    page.emit("stopped", this);
  }

  /** Nothing more comes: what is there stays. */
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

  /** A branch came to nothing: its column has the text again that it had before.
   * @param {Pane} pane @param {Shown} trace */
  #restore(pane, trace) {
    pane.reset(trace, this.head.answers);
    if (trace.finish) pane.finish(trace, costScale(Object.values(this.finished || {})));
    else pane.append(trace.steps);
    pane.interrupt();
    this.replay.offer();
  }

  /** A run that has begun and says nothing any more has lost its connection. */
  #listen() {
    window.clearTimeout(this.silence);
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

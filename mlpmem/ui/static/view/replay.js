// @ts-check
/* Plays a finished comparison again, token by token, without the server: every system at its own
 * recorded pace, or all at one pace where the recording has the batch's times only. */
/** @import { Shown, Step, TokenView } from "../core/types.js" */
import { h, isCalm, setText, short } from "../core/dom.js";
import { costScale } from "./cost.js";

const PACE = 260; // milliseconds per token of a run without paces, slow enough to read
const SPAN = 4200; // milliseconds that the slowest system plays

/** When each of a trace's tokens appears, in milliseconds since its start.
 * @type {(trace: Shown, paced: boolean) => number[]} */
const timesOf = (trace, paced) => {
  let at = 0;
  return trace.steps.map((step) => (at += paced ? step.ms ?? 0 : PACE));
};

/** How many times slower than recorded a run plays. @type {(times: number[][]) => number} */
const slowness = (times) => SPAN / Math.max(1, ...times.map((list) => list.at(-1) ?? 0));

export class Replay {
  /** @param {TokenView} view */
  constructor(view) {
    this.view = view;
    /** @type {number | null} */
    this.timer = null;
    this.paced = false; // the run has each system's own times
    /** @type {Map<string, HTMLElement>} */
    this.clocks = new Map();
    this.button = h("button", { type: "button", class: "play", on: { click: () => this.toggle() } });
    this.offer();
  }

  get playing() {
    return this.timer !== null;
  }

  /** Updates the button, which is hidden without a finished run. */
  offer() {
    this.button.style.visibility = this.view.finished && !this.view.running ? "" : "hidden";
    setText(this.button, this.playing ? "❚❚ Skip" : "▶ Play"); // as long, so that nothing beside it moves
    this.button.title = this.playing ? "Skip to the end" : "";
  }

  toggle() {
    if (this.playing) this.stop();
    else this.start();
  }

  start() {
    const { view, paced } = this;
    const traces = view.finished;
    if (!traces || view.running) return;
    this.cancel();
    view.restart(traces, [...view.panes.keys()]);
    const times = Object.fromEntries(Object.entries(traces).map(([system, trace]) =>
      [system, timesOf(trace, paced)]));
    const slow = paced ? slowness(Object.values(times)) : 1;
    if (paced) this.#mount(slow);
    /** @type {{ [system: string]: number }} */
    const shown = Object.fromEntries(Object.keys(traces).map((system) => [system, 0]));
    const begin = performance.now();
    const tick = () => {
      const now = isCalm() ? Infinity : (performance.now() - begin) / slow;
      this.#advance(traces, times, shown, now);
      const over = Object.entries(times).every(([system, list]) => shown[system] === list.length);
      if (over) this.stop();
      else this.timer = window.setTimeout(tick, paced ? 30 : PACE / 4);
      this.offer();
    };
    this.timer = window.setTimeout(tick, paced ? 0 : PACE);
    this.offer();
  }

  /** Appends the tokens that are due at `now`, and finishes the columns that end.
   * @param {{ [system: string]: Shown }} traces @param {{ [system: string]: number[] }} times
   * @param {{ [system: string]: number }} shown @param {number} now */
  #advance(traces, times, shown, now) {
    /** @type {{ [system: string]: Step[] }} */
    const steps = {};
    const ended = [];
    for (const [system, list] of Object.entries(times)) {
      const due = list.findLastIndex((at) => at <= now) + 1;
      if (due > shown[system]) {
        steps[system] = traces[system].steps.slice(shown[system], due);
        shown[system] = due;
        if (due === list.length) ended.push(system);
      }
      this.#tell(system, list, shown[system], now);
    }
    if (!Object.keys(steps).length) return;
    this.view.add(steps);
    const scale = costScale(traces);
    for (const system of ended) this.view.panes.get(system)?.finish(traces[system], scale);
  }

  /** @param {number} slow */
  #mount(slow) {
    for (const [system, pane] of this.view.panes) {
      const clock = h("p", { class: "pane-clock", title: `Recorded with this system only, played ${short(slow)} times slower` });
      pane.strip.root.after(clock);
      this.clocks.set(system, clock);
    }
  }

  /** @param {string} system @param {number[]} list @param {number} shown @param {number} now */
  #tell(system, list, shown, now) {
    const clock = this.clocks.get(system);
    const total = list.at(-1) ?? 0;
    if (!clock) return;
    clock.toggleAttribute("data-over", shown === list.length);
    setText(clock, shown === list.length ? `answered in ${short(total)} ms` : `${Math.round(now)} ms`);
  }

  /** Ends the replay and shows the whole run. */
  stop() {
    if (!this.playing) return;
    this.#halt();
    const { finished } = this.view;
    if (!finished) return;
    for (const [system, trace] of Object.entries(finished)) {
      const list = timesOf(trace, this.paced);
      this.#tell(system, list, list.length, 0);
    }
    this.view.complete(finished);
  }

  #halt() {
    window.clearTimeout(this.timer ?? undefined);
    this.timer = null;
    this.offer();
  }

  /** Ends the replay without changing the panes. */
  cancel() {
    this.#halt();
    for (const clock of this.clocks.values()) clock.remove();
    this.clocks.clear();
  }
}

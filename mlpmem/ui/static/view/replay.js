// @ts-check
/* Plays a finished comparison again, token by token, without the server. */
/** @import { Step, TokenView } from "../core/types.js" */
import { h, isCalm, setText } from "../core/dom.js";

const PACE = 260; // milliseconds per token, slow enough to read

export class Replay {
  /** @param {TokenView} view */
  constructor(view) {
    this.view = view;
    /** @type {number | null} */
    this.timer = null;
    this.button = h("button", { type: "button", class: "play", on: { click: () => this.toggle() } });
    this.offer();
  }

  get playing() {
    return this.timer !== null;
  }

  /** Updates the button, which is hidden without a finished run. */
  offer() {
    this.button.style.visibility = this.view.finished && !this.view.running ? "" : "hidden";
    setText(this.button, this.playing ? "❚❚ Skip to the end" : "▶ Play");
  }

  toggle() {
    if (this.playing) this.stop();
    else this.start();
  }

  start() {
    const { view } = this;
    const traces = view.finished;
    if (!traces || view.running) return;
    view.restart(traces, [...view.panes.keys()]);
    const longest = Math.max(...Object.values(traces).map((t) => t.steps.length));
    let at = 0;
    const tick = () => {
      /** @type {{ [system: string]: Step[] }} */
      const steps = {};
      for (const [system, trace] of Object.entries(traces)) steps[system] = trace.steps.slice(at, at + 1);
      view.add(steps);
      at += 1;
      if (at >= longest) this.stop();
      else this.timer = window.setTimeout(tick, isCalm() ? 0 : PACE);
      this.offer();
    };
    this.timer = window.setTimeout(tick, PACE);
    this.offer();
  }

  /** Ends the replay and shows the whole run. */
  stop() {
    if (!this.playing) return;
    this.cancel();
    if (this.view.finished) this.view.complete(this.view.finished);
  }

  /** Ends the replay without changing the panes. */
  cancel() {
    window.clearTimeout(this.timer ?? undefined);
    this.timer = null;
    this.offer();
  }
}

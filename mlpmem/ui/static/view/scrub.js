// @ts-check
/* One column's text at eleven lambdas, made once: the slider then flips through whole texts. */
import { h, setText, short } from "../core/dom.js";
import { mix } from "../core/mix.js";
import { page } from "../core/state.js";

/** Fills in the steps that a text shares with an earlier one. */
function unfold(texts) {
  const whole = [];
  for (const text of texts) {
    const { like, kept, steps, ...trace } = text;
    const shared = kept ? whole[like].steps.slice(0, kept) : [];
    const own = (step) => ({ ...step,
      p: { ...step.p, fused: mix(step.p, trace.system, trace.lmbda) },
      rest: { ...step.rest, fused: mix(step.rest, trace.system, trace.lmbda) } });
    whole.push({ ...trace, steps: [...shared.map(own), ...steps], fixed: true });
  }
  return whole;
}

/** The indices of b's tokens that are in no longest common subsequence with a's. */
export const changedTokens = (a, b) => {
  const rows = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      rows[i][j] = a[i].id === b[j].id ? rows[i + 1][j + 1] + 1
        : Math.max(rows[i + 1][j], rows[i][j + 1]);
    }
  }
  const found = new Set(b.keys());
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i].id === b[j].id) {
      found.delete(j);
      i += 1;
      j += 1;
    } else if (rows[i + 1][j] >= rows[i][j + 1]) i += 1;
    else j += 1;
  }
  return found;
};

const key = (trace) => trace.steps.map((step) => step.id).join(" ");

export class Scrub {
  constructor(view) {
    this.view = view;
    this.asked = null; // the request under way
    this.rows = new Map();
  }

  /** A column's row: the button, then what it made. */
  row(system) {
    const button = h("button", { type: "button", class: "small-button", title:
      "Write this text at λ 0, 0.1 … 1, then move the slider through them",
    on: { click: () => this.start(system) } }, "Scrub λ");
    const line = h("p", { class: "scrub-line", role: "status" });
    const ticks = h("div", { class: "scrub-ticks", "aria-hidden": "true", hidden: true });
    const root = h("div", { class: "scrub" }, button, line, ticks);
    this.rows.set(system, { button, line, ticks });
    return root;
  }

  start(system) {
    if (this.view.replay.playing) this.view.replay.stop();
    const node = this.view.tree.node(system);
    if (!node?.trace.steps.length) return;
    const run = `${this.view.run}.${node.id}`;
    const { forced = [] } = node.trace.settings || {};
    const badge = [this.view.head.text, this.view.head.kind];
    const sent = this.view.request({ kind: "scrub", run, system, forced, lmbda: node.trace.lmbda,
      settings: node.trace.settings });
    if (sent) this.asked = { run, node, badge };
  }

  /** "scrub" says how far it is, "scrubbed" brings the texts. */
  receive(value) {
    if (value.run !== this.asked?.run) return;
    const { node } = this.asked;
    if (value.kind === "scrub") {
      this.view.head.mark(`scrubbing λ, token ${value.tokens}`, "scrub");
      return;
    }
    this.end();
    const texts = unfold(value.texts);
    const kinds = [...new Set(texts.map(key))];
    for (const text of texts) {
      text.changed = changedTokens(node.trace.steps, text.steps);
      text.kind = kinds.indexOf(key(text));
    }
    node.scrub = { texts, cost: value.cost, kinds: kinds.length };
    this.view.repaint();
  }

  /** Nothing is under way any more, whatever the reason. */
  end() {
    if (!this.asked) return false;
    this.view.head.mark(...this.asked.badge);
    this.asked = null;
    this.view.setRunning(false);
    return true;
  }

  /** The text a node shows at the page's lambda: its own, or the nearest of the eleven. */
  text(node) {
    const { lambda } = page;
    if (!node.scrub || lambda === null) return node.trace;
    return node.scrub.texts.reduce((best, text) =>
      (Math.abs(text.lmbda - lambda) < Math.abs(best.lmbda - lambda) - 1e-9 ? text : best));
  }

  /** Says what was made, what it cost, and which of the texts is on screen. */
  repaint() {
    let any = false;
    for (const [system, { button, line, ticks }] of this.rows) {
      const pane = this.view.panes.get(system);
      const made = this.view.tree.current.get(system)?.scrub;
      any ||= Boolean(made);
      button.hidden = Boolean(made) || !pane.trace?.steps.length || pane.root.dataset.state !== "done";
      ticks.hidden = !made;
      setText(line, made ? this.#said(made, pane.trace) : "");
      if (!made) continue;
      if (ticks.made !== made) this.#draw(ticks, made);
      made.texts.forEach((text, i) => ticks.children[i].toggleAttribute("data-now", text === pane.trace));
    }
    this.view.root.toggleAttribute("data-scrubbed", any);
  }

  #said(made, trace) {
    const { cost, kinds, texts } = made;
    if (!trace.fixed) {
      return `${texts.length} texts, ${kinds} different, in ` +
        `${(cost.seconds / cost.single).toFixed(1)}× the time of one (${short(cost.seconds)} s). ` +
        "Move the slider.";
    }
    const n = trace.changed.size;
    return `Written at λ ${trace.lmbda.toFixed(1)}, the nearest of ${texts.length} · ` +
      `text ${trace.kind + 1} of ${kinds} · ${n} token${n === 1 ? "" : "s"} changed`;
  }

  #draw(ticks, made) {
    ticks.made = made;
    ticks.replaceChildren(...made.texts.map((text, i) => h("i", {
      "data-part": i > 0 && text.kind !== made.texts[i - 1].kind })));
  }
}

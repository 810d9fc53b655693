// @ts-check
/* The right answer as a whole: its probability at every lambda, and what each of its tokens has at the present one. */
/** @import { Columns } from "../core/types.js" */
/** @import { Truth } from "../core/truth.js" */
import { h, percent, quote, setText, svg } from "../core/dom.js";
import { mix } from "../core/mix.js";
import { chanceOf, chancesOf, highest } from "../core/truth.js";
import { nameOf, page } from "../core/state.js";

const [W, H, LEFT, FOOT] = [440, 140, 46, 20]; // of the plot and of the space for its numbers
const POINTS = 100; // of a line
const SOURCES = ["memory", "knn"];

/** @type {(lambda: number) => number} */
const x = (lambda) => LEFT + lambda * (W - LEFT - 6);
/** @type {(p: number) => number} */
const y = (p) => 8 + (1 - p) * (H - FOOT - 8);

/** The lambda to mark: the slider's, or where a router chooses, none. */
const marked = () => (page.auto ? null : page.lambda);

export class Whole {
  /** button shows and hides it. @param {HTMLElement} button @param {Columns} view */
  constructor(button, view) {
    this.view = view;
    this.button = button;
    this.plot = svg("svg", { class: "whole-plot", viewBox: `0 0 ${W} ${H}`, role: "img" });
    this.title = h("p", { class: "whole-title" });
    this.best = h("p", { class: "whole-best" });
    this.rows = h("tbody");
    this.heads = h("tr");
    this.root = h("div", { class: "whole", role: "group", "aria-label": "The right answer against lambda", hidden: true },
      this.title, this.plot, this.best, h("div", { class: "whole-scroll", tabindex: "0" }, h("table", null, h("thead", null, this.heads), this.rows)));
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => this.toggle(this.root.hidden !== false));
    document.addEventListener("pointerdown", ({ target }) => {
      if (target instanceof Node && !this.root.contains(target) && !button.contains(target) && !document.querySelector(".dock")?.contains(target)) this.toggle(false);
    });
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || this.root.hidden) return;
      event.stopPropagation();
      this.toggle(false);
      button.focus();
    }, true);
    for (const name of /** @type {const} */ (["lambda", "view"])) page.on(name, () => this.repaint());
  }

  /** @param {boolean} on */
  toggle(on) {
    this.root.hidden = !on;
    this.button.setAttribute("aria-expanded", String(on));
    this.repaint();
  }

  repaint() {
    if (this.root.hidden) return;
    const truth = this.view.truth();
    if (truth && this.view.shown) this.#draw(truth);
    else this.toggle(false);
  }

  /** @param {Truth} truth */
  #draw({ answer, tokens }) {
    const sources = SOURCES.filter((source) => tokens.every(({ p }) => Number.isFinite(p[source])));
    const curves = sources.map((source) => chancesOf(tokens, source, POINTS));
    const tops = curves.map(highest);
    const now = marked();
    const many = tokens.length === 1 ? "its only token" : `all its ${tokens.length} tokens`;
    setText(this.title, `Probability of the right answer, ${quote(answer)}: ${many}, at every λ`);
    this.plot.replaceChildren(...this.#axes(), ...(now === null ? [] : [svg("line", { class: "curve-marker", x1: x(now), x2: x(now), y1: y(1), y2: y(0) })]),
      ...sources.flatMap((source, i) => [
        svg("path", { class: "curve-line", "data-source": source, d: curves[i].map(([at, p], n) => `${n ? "L" : "M"}${x(at).toFixed(1)} ${y(p).toFixed(1)}`).join("") }),
        svg("circle", { class: "curve-dot", "data-source": source, r: 4, cx: x(tops[i][0]), cy: y(tops[i][1]) })]));
    const text = sources.map((source, i) => `${nameOf(source).source}: most at λ ${tops[i][0].toFixed(2)}, ${percent(tops[i][1])} %` +
      (now === null ? "" : `; now ${percent(chanceOf(tokens, source, now))} %`));
    setText(this.best, [`decoder only: ${percent(chanceOf(tokens, "lm", 0))} %`, ...text].join(" · "));
    this.plot.setAttribute("aria-label", `${this.title.textContent}. ${this.best.textContent}`);
    this.#table(tokens, sources, now);
  }

  #axes() {
    /** @type {(at: { [name: string]: any }, text: string) => SVGElement} */
    const word = (at, text) => svg("text", { class: "whole-number", ...at }, text);
    return [0, 0.5, 1].flatMap((p) => [
      svg("line", { class: "whole-grid", x1: LEFT, x2: W - 6, y1: y(p), y2: y(p) }),
      word({ x: LEFT - 6, y: y(p) + 4, "text-anchor": "end" }, `${100 * p} %`),
      word({ x: x(p), y: H - 4, "text-anchor": p === 1 ? "end" : "middle" }, p === 1 ? "λ 1" : String(p))]);
  }

  /** @param {Truth["tokens"]} tokens @param {string[]} sources @param {number | null} now */
  #table(tokens, sources, now) {
    const steps = /** @type {{ s?: string }[]} */ (tokens);
    this.heads.replaceChildren(...["token, %", "decoder", ...sources.map((source) => nameOf(source).source),
      ...(now === null ? [] : sources.map((source) => `mix with ${nameOf(source).source}`))].map((text) => h("th", { scope: "col" }, text)));
    this.rows.replaceChildren(...tokens.map(({ p }, i) => h("tr", null,
      h("th", { scope: "row", dir: "auto" }, steps[i].s?.trim() || String(i + 1)),
      [p.lm, ...sources.map((source) => p[source]), ...(now === null ? [] : sources.map((source) => mix(p, source, now)))]
        .map((value) => h("td", null, percent(value))))));
  }
}

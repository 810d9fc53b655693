// @ts-check
/* A small plot against lambda, for memory and datastore: the right answer's probability, or a text's perplexity. */
/** @import { Lambda, Shown, Step } from "../core/types.js" */
/** @import { Truth } from "../core/truth.js" */
import { h, percent, quote, setText, short, svg } from "../core/dom.js";
import { curveOf, perplexity } from "../core/mix.js";
import { BOUND, chanceOf, chancesOf, highest, routedOf } from "../core/truth.js";
import { nameOf } from "../core/state.js";

const W = 240;
const H = 52;
const PAD = 6;

export class Curve {
  constructor() {
    /** @type {{ [source: string]: SVGPathElement }} */
    this.paths = {};
    /** @type {{ [source: string]: SVGCircleElement }} */
    this.dots = {};
    this.svg = svg("svg", {
      class: "curve", viewBox: `0 0 ${W} ${H}`, role: "img",
    });
    this.marker = svg("line", { class: "curve-marker", y1: 0, y2: H });
    this.svg.append(this.marker);
    for (const source of ["knn", "memory"]) {
      this.paths[source] = svg("path", { class: "curve-line", "data-source": source });
      this.dots[source] = svg("circle", { class: "curve-dot", "data-source": source, r: 3.5 });
      this.svg.append(this.paths[source], this.dots[source]);
    }
    this.value = h("span", { class: "curve-value" });
    this.best = h("span", { class: "curve-best" });
    this.root = h("div", { class: "curve-box" }, this.svg,
      h("div", { class: "curve-text" }, this.value, this.best));
    /** @type {Step[] | null} */
    this.steps = null;
    this.drawn = ""; // the key of what is drawn
    /** @type {Truth | null} */
    this.truth = null;
    this.whose = "";
  }

  /** Draws the right answer's probability, or without one the perplexity of a text, unless drawn already.
   * @param {Step[]} steps @param {Truth | null} truth @param {string} whose the text's description */
  draw(steps, truth, whose) {
    const drawn = `${steps.length} ${truth?.tokens.length} ${truth?.answer} ${whose}`;
    if (this.steps === steps && this.drawn === drawn && this.truth?.tokens[0] === truth?.tokens[0]) return;
    this.root.toggleAttribute("data-empty", !steps.length && !truth);
    this.steps = steps;
    this.drawn = drawn;
    this.truth = truth;
    this.whose = whose;
    /** @type {{ [source: string]: [number, number][] }} */
    const curves = {};
    for (const source of ["memory", "knn"]) {
      const list = truth?.tokens ?? steps;
      if (!list.some(({ p }) => p[source] !== null && p[source] !== undefined)) continue;
      curves[source] = truth ? chancesOf(truth.tokens, source) : curveOf(steps, source);
    }
    this.#place(curves);
  }

  /** @param {{ [source: string]: [number, number][] }} curves */
  #place(curves) {
    const { truth } = this;
    const values = Object.values(curves).flat().map((point) => Math.log(point[1]));
    const low = Math.min(...values);
    const span = Math.max(Math.max(...values) - low, 0.05);
    /** @type {(lambda: number) => string} */
    const x = (lambda) => (lambda * W).toFixed(1);
    /** @type {(value: number) => string} a probability from 0 to 1, or a perplexity on a log scale */
    const y = (value) => (H - PAD - (truth ? value : (Math.log(value) - low) / span) * (H - 2 * PAD)).toFixed(1);
    const best = [];
    for (const source of ["memory", "knn"]) {
      const curve = curves[source];
      const path = curve ? curve.map((p, i) => `${i ? "L" : "M"}${x(p[0])} ${y(p[1])}`) : [];
      this.paths[source].setAttribute("d", path.join(""));
      this.dots[source].style.display = curve && truth ? "" : "none";
      if (!curve || !truth) continue; // a text's own perplexity favours the lambda that it was written with
      const [lambda, most] = highest(curve);
      this.dots[source].setAttribute("cx", x(lambda));
      this.dots[source].setAttribute("cy", y(most));
      best.push(`${nameOf(source).short}: most at λ ${lambda.toFixed(2)}`);
    }
    setText(this.best, truth ? best.join("\n") : this.whose);
  }

  /** Moves the marker to lambda and shows the value there, mixed as the text `along`.
   * @param {Lambda} lambda @param {Shown | null} along */
  mark(lambda, along) {
    this.marker.style.display = lambda === "auto" ? "none" : "";
    if (lambda !== "auto") {
      for (const end of ["x1", "x2"]) this.marker.setAttribute(end, (lambda * W).toFixed(1));
    }
    setText(this.value, this.truth ? this.#chance(this.truth, lambda, along) : this.#perplexity(lambda, along?.system));
    this.root.title = this.truth ? `Probability of the right answer, ${quote(this.truth.answer)}, at each λ. ${BOUND}` : "";
    this.svg.setAttribute("aria-label", (this.truth ? `Probability of the right answer, ${quote(this.truth.answer)}`
      : `Perplexity of the text on screen, ${this.whose},`) +
      ` against lambda. ${this.value.textContent}. ${this.truth ? this.best.textContent : ""}`);
  }

  /** @param {Truth} truth @param {Lambda} lambda @param {Shown | null} along */
  #chance({ tokens }, lambda, along) {
    if (lambda !== "auto") return `right answer ${percent(chanceOf(tokens, along?.system ?? "memory", lambda))} %`;
    if (!along) return "right answer";
    const { p, bound } = routedOf(tokens, along);
    return `right answer ${bound ? "≤ " : ""}${percent(p)} %`;
  }

  /** @param {Lambda} lambda @param {string} [system] */
  #perplexity(lambda, system) {
    const source = system === "knn" || system === "mixed" ? system : "memory";
    const value = this.steps ? perplexity(this.steps, source, lambda) : NaN;
    return Number.isFinite(value) ? `perplexity ${short(value)}` : "perplexity –";
  }
}

// @ts-check
/* A small plot: perplexity of the text on screen against lambda, for memory and datastore. */
/** @import { Lambda, Step } from "../core/types.js" */
import { h, setText, short, svg } from "../core/dom.js";
import { curveOf, hasSource, optimum, perplexity } from "../core/mix.js";
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
    this.count = 0;
  }

  /** Draws the curves of a list of steps, unless they are drawn already.
   * @param {Step[]} steps @param {number} count */
  draw(steps, count) {
    if (this.steps === steps && this.count === count) return;
    this.steps = steps;
    this.count = count;
    /** @type {{ [source: string]: [number, number][] }} */
    const curves = {};
    for (const source of ["memory", "knn"]) {
      if (steps.length && hasSource(steps, source)) curves[source] = curveOf(steps, source);
    }
    this.#place(curves);
  }

  /** @param {{ [source: string]: [number, number][] }} curves */
  #place(curves) {
    const values = Object.values(curves).flat().map((point) => Math.log(point[1]));
    const low = Math.min(...values);
    const span = Math.max(Math.max(...values) - low, 0.05);
    /** @type {(lambda: number) => string} */
    const x = (lambda) => (lambda * W).toFixed(1);
    /** @type {(ppl: number) => string} */
    const y = (ppl) => (H - PAD - ((Math.log(ppl) - low) / span) * (H - 2 * PAD)).toFixed(1);
    const best = [];
    for (const source of ["memory", "knn"]) {
      const curve = curves[source];
      const path = curve ? curve.map((p, i) => `${i ? "L" : "M"}${x(p[0])} ${y(p[1])}`) : [];
      this.paths[source].setAttribute("d", path.join(""));
      this.dots[source].style.display = curve ? "" : "none";
      if (!curve) continue;
      const [lambda, ppl] = optimum(curve);
      this.dots[source].setAttribute("cx", x(lambda));
      this.dots[source].setAttribute("cy", y(ppl));
      best.push(`${nameOf(source).short}: lowest at λ ${lambda.toFixed(2)}`);
    }
    setText(this.best, best.join("\n"));
  }

  /** Moves the marker to lambda and shows the perplexity there. @param {Lambda} lambda @param {string} [system] */
  mark(lambda, system) {
    this.marker.style.display = lambda === "auto" ? "none" : "";
    if (lambda !== "auto") {
      for (const end of ["x1", "x2"]) this.marker.setAttribute(end, (lambda * W).toFixed(1));
    }
    const source = system === "knn" || system === "mixed" ? system : "memory";
    const ppl = this.steps ? perplexity(this.steps, source, lambda) : NaN;
    setText(this.value, Number.isFinite(ppl) ? `perplexity ${short(ppl)}` : "perplexity –");
    this.svg.setAttribute("aria-label",
      `Perplexity of the text on screen against lambda. ${this.value.textContent}. ` +
      this.best.textContent);
  }
}

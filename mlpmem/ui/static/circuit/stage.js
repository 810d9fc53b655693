// @ts-check
/* The pipes between the circuit's boxes, as SVG. Boxes are measured when the layout changes only. */
/** @import { Source } from "../core/types.js" */
/** @import { Flow } from "./flow.js" */
/** @import { Box, End } from "./pipes.js" */
import { svg } from "../core/dom.js";
import { SOURCES } from "../core/mix.js";
import { band, into, line, outOf, stacked } from "./pipes.js";

const WIDEST = 34; // pixels of a pipe with probability 1
const THIN = 5; // pixels of the neutral pipes before the sources
const LEAST = 1.5; // pixels of a pipe with a probability near 0
const GATE = 7; // pixels from the valve's middle line to its edges

/** @type {(p: number) => number} */
const width = (p) => Math.max(LEAST, p * WIDEST);

export class Stage {
  /** open(source) is called for a click on a pipe.
   * @param {{ [name: string]: HTMLElement }} boxes @param {(source: Source) => void} open */
  constructor(boxes, open) {
    this.boxes = boxes;
    /** @type {{ [name: string]: Box }} */
    this.at = {};
    this.down = false; // a narrow circuit runs downwards
    /** @type {{ [name: string]: SVGPathElement }} */
    this.paths = {};
    this.root = svg("svg", { class: "circuit-pipes", "aria-hidden": "true", focusable: "false" });
    this.#add("feed", "pipe-thin");
    this.#add("context", "pipe-context");
    for (const source of SOURCES) this.#add(`state-${source}`, "pipe-thin");
    for (const source of SOURCES) {
      this.#add(`out-${source}`, "pipe-out", source);
      this.#add(source, "pipe", source).addEventListener("click", () => open(source));
    }
    for (const name of ["feed", ...SOURCES.map((s) => `state-${s}`)]) this.#add(`pulse-${name}`, "pulse early");
    for (const source of SOURCES) {
      this.#add(`pulse-${source}`, "pulse late", source);
      this.#add(`pulse-out-${source}`, "pulse last", source);
    }
  }

  /** @param {string} name @param {string} kind @param {string} [source] */
  #add(name, kind, source) {
    const pulse = kind.startsWith("pulse");
    const needs = SOURCES.find((one) => name.endsWith(one));
    const path = svg("path", { class: kind, "data-source": source, "data-needs": needs, pathLength: pulse ? 1 : null });
    this.paths[name] = path;
    this.root.append(path);
    return path;
  }

  /** Measures the boxes. Returns whether there are any on screen. */
  measure() {
    const frame = this.root.getBoundingClientRect();
    if (!frame.width) return false;
    for (const [name, node] of Object.entries(this.boxes)) {
      const box = node.getBoundingClientRect();
      this.at[name] = { x: box.x - frame.x, y: box.y - frame.y, w: box.width, h: box.height };
    }
    this.down = this.at.decoder.y > this.at.words.y + this.at.words.h - 1;
    this.root.setAttribute("viewBox", `0 0 ${frame.width} ${frame.height}`);
    return true;
  }

  /** @param {string} name @param {End} from @param {End} to */
  #lay(name, from, to) {
    this.paths[name].setAttribute("d", band(from, to, this.down));
    this.paths[`pulse-${name}`]?.setAttribute("d", line(from, to, this.down));
  }

  /** Draws what is before the sources, which no probability changes. @param {boolean} context */
  before(context) {
    const { at, down } = this;
    this.#lay("feed", outOf(at.words, down, THIN), into(at.decoder, down, THIN));
    const shifts = stacked(SOURCES.map(() => THIN + 1));
    for (const [i, source] of SOURCES.entries()) {
      this.#lay(`state-${source}`, outOf(at.decoder, down, THIN, shifts[i]), into(at[source], down, THIN));
    }
    this.paths.context.style.display = context ? "" : "none";
    if (context) this.#third();
  }

  /** The words so far, past the decoder into the memory. */
  #third() {
    const { at, down } = this;
    const { words, memory, decoder } = at;
    const end = into(memory, down, 3, down ? -memory.w / 4 : -memory.h / 4);
    if (down) {
      const x = decoder.x - 9;
      this.paths.context.setAttribute("d", `M${x} ${words.y + words.h}V${decoder.y + decoder.h}` +
        `C${x} ${end.along - 4} ${end.across} ${decoder.y + decoder.h + 4} ${end.across} ${end.along}`);
      return;
    }
    const y = decoder.y - 10;
    this.paths.context.setAttribute("d", `M${words.x + words.w} ${y}H${decoder.x + decoder.w}` +
      `C${end.along - 8} ${y} ${decoder.x + decoder.w + 8} ${end.across} ${end.along} ${end.across}`);
  }

  /** Draws the pipes of a flow to the valve and behind it. @param {Flow} flow */
  paint({ pipes }) {
    const { at, down } = this;
    const gate = down ? at.valve.y + at.valve.h / 2 : at.valve.x + at.valve.w / 2;
    const through = pipes.map((pipe) => (pipe.weight > 0 && pipe.p !== null ? width(pipe.share) : 0));
    const shifts = stacked(through);
    for (const [i, { source, p, weight }] of pipes.entries()) {
      const path = this.paths[source];
      const full = p === null ? LEAST : width(p);
      const from = outOf(at[source], down, full);
      const shut = { along: gate - GATE, across: from.across, width: full };
      this.#lay(source, from, shut);
      path.setAttribute("data-p", p === null ? "" : String(p));
      path.setAttribute("data-weight", String(weight));
      path.toggleAttribute("data-shut", !(weight > 0));
      path.toggleAttribute("data-absent", p === null);
      const out = `out-${source}`;
      this.paths[out].style.display = through[i] ? "" : "none";
      this.paths[`pulse-${out}`].style.display = through[i] ? "" : "none";
      this.#lay(out, { along: gate + GATE, across: from.across, width: through[i] },
        into(at.output, down, through[i], shifts[i]));
    }
  }

  /** Sends a pulse from the words to the output, unless motion is unwanted (circuit.css). */
  pulse() {
    this.root.removeAttribute("data-pulse");
    void this.root.clientWidth; // restarts the animation
    this.root.setAttribute("data-pulse", "");
  }
}

// @ts-check
/* What decoders and memories of all families are made of: norms, linear layers and FFNs, read and computed.
 *
 * Arrays have R rows, one after the other. Letters: D hidden size, R rows. */
/** @import { Family } from "./families.js" */
/** @import { Arena, Matrix } from "./products/products.js" */
/** @import { Blocks } from "./weights/gguf.js" */
/** @import { Weights } from "./weights/weights.js" */
import { room, rowsOf } from "./products/products.js";

/** @typedef {{ weight: Float32Array, bias: Float32Array | null }} Norm
 * @typedef {{ weight: Matrix, bias: Float32Array | null, depth: number, width: number }} Linear
 * @typedef {{ gate: Linear | null, up: Linear, down: Linear }} Ffn */

/** The numbers that layers of a family take in an arena. @param {Family} family */
export const roomsOf = ({ biased, gate }) => {
  const norm = (/** @type {number} */ D) => (biased ? 2 : 1) * room(D);
  const linear = (/** @type {number} */ width, /** @type {number} */ depth) => room(width * depth) + (biased ? room(width) : 0);
  const ffn = (/** @type {number} */ D, /** @type {number} */ inner) => (gate ? 2 : 1) * linear(inner, D) + linear(D, inner);
  return { norm, linear, ffn };
};

/** Reads layers of a family from its weights into an arena. */
export class Reader {
  /** @param {Family} family @param {Weights | Blocks} weights @param {Arena} arena */
  constructor(family, weights, arena) {
    this.family = family;
    this.weights = weights;
    this.arena = arena;
  }

  /** @param {string} name @param {number} size */
  vector(name, size) {
    return this.weights.copy(name, [size], this.arena.take(size));
  }

  /** A matrix that every family stores (width, depth). @param {string} name @param {number} width @param {number} depth */
  matrix(name, width, depth) {
    return this.weights.matrix(`${name}.weight`, [width, depth], this.arena);
  }

  /** @param {string} name @param {number} D @returns {Norm} */
  norm(name, D) {
    return { weight: this.vector(`${name}.weight`, D), bias: this.family.biased ? this.vector(`${name}.bias`, D) : null };
  }

  /** @param {string} name @param {number} width @param {number} depth @returns {Linear} */
  linear(name, width, depth) {
    const weight = this.weights.matrix(`${name}.weight`, [width, depth], this.arena, this.family.transposed);
    return { weight, bias: this.family.biased ? this.vector(`${name}.bias`, width) : null, depth, width };
  }

  /** Layers of one input, each by its name, or all of them stored as one. @param {string[]} names @param {number[]} widths @param {number} depth */
  linears(names, widths, depth) {
    if (names.length === widths.length) return names.map((name, i) => this.linear(name, widths[i], depth));
    const { weight, bias } = this.linear(names[0], widths.reduce((sum, width) => sum + width), depth);
    let end = 0;
    return widths.map((width) => {
      end += width;
      return { weight: rowsOf(weight, end - width, end, depth), bias: bias?.subarray(end - width, end) ?? null, depth, width };
    });
  }

  /** @param {string} at the layer's name @param {number} D @param {number} inner @returns {Ffn} */
  ffn(at, D, inner) {
    const { gate, up, down } = this.family;
    return { gate: gate ? this.linear(`${at}.${gate}`, inner, D) : null, up: this.linear(`${at}.${up}`, inner, D),
      down: this.linear(`${at}.${down}`, D, inner) };
  }
}

/** Adds y to x. @param {Float32Array} x @param {Float32Array} y @param {number} count */
export function add(x, y, count) {
  for (let i = 0; i < count; i += 1) x[i] += y[i];
}

/** Adds a bias to every row. @param {Float32Array} x (R, width) @param {Float32Array | null} bias (width,) @param {number} R */
function addBias(x, bias, R) {
  if (!bias) return;
  const width = bias.length;
  for (let at = 0; at < R * width; at += width) for (let i = 0; i < width; i += 1) x[at + i] += bias[i];
}

/** The norm of rows: (x - mean) / deviation * weight + bias with a bias, x / root mean square * weight without.
 * @param {Float32Array} x (R, D) @param {Norm} norm @param {Float32Array} out @param {number} R @param {number} eps */
export function normalise(x, { weight, bias }, out, R, eps) {
  const D = weight.length;
  for (let at = 0; at < R * D; at += D) {
    let mean = 0;
    if (bias) for (let i = at; i < at + D; i += 1) mean += x[i] / D;
    let sum = 0;
    for (let i = at; i < at + D; i += 1) sum += (x[i] - mean) * (x[i] - mean);
    const scale = 1 / Math.sqrt(sum / D + eps);
    for (let i = 0; i < D; i += 1) out[at + i] = (x[at + i] - mean) * scale * weight[i];
  }
  addBias(out, bias, R);
}

/** out = x @ weight.T + bias; all are arrays of the arena.
 * @param {Arena} arena @param {Float32Array} x (R, depth) @param {Linear} layer @param {Float32Array} out (R, width) @param {number} R */
export function project(arena, x, { weight, bias, depth, width }, out, R) {
  arena.product(x, weight, out, R, depth, width);
  addBias(out, bias, R);
}

/** x += FFN(n). @param {Arena} arena @param {Ffn} ffn @param {Float32Array} x (R, D) @param {Float32Array} n (R, D), overwritten
 * @param {[Float32Array, Float32Array]} inner two arrays (R, inner) to write to @param {number} R */
export function feedForward(arena, { gate, up, down }, x, n, [first, second], R) {
  project(arena, n, gate ?? up, first, R);
  if (gate) {
    project(arena, n, up, second, R);
    swiglu(first, second, R * up.width);
  } else gelu(first, R * up.width);
  project(arena, first, down, n, R);
  add(x, n, R * down.width);
}

/** gate = silu(gate) * up. @param {Float32Array} gate @param {Float32Array} up @param {number} count */
function swiglu(gate, up, count) {
  for (let i = 0; i < count; i += 1) gate[i] = (gate[i] / (1 + Math.exp(-gate[i]))) * up[i];
}

const SLOPE = 2 * Math.sqrt(2 / Math.PI);

/** x = gelu(x), the tanh form: 0.5 x (1 + tanh u) = x / (1 + exp(-2 u)). @param {Float32Array} x @param {number} count */
function gelu(x, count) {
  for (let i = 0; i < count; i += 1) x[i] = x[i] / (1 + Math.exp(-SLOPE * (x[i] + 0.044715 * x[i] * x[i] * x[i])));
}

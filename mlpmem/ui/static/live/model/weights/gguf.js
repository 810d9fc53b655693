// @ts-check
/* A decoder's weights in a GGUF file; mlpmem/space/named.py lists where each lies. */
/** @import { Arena, Matrix } from "../products/products.js" */
import { BLOCK, KINDS, blockBytes } from "../products/blocks.js";
import { must } from "../errors.js";
import { room } from "../products/products.js";

/** Where a tensor lies; with heads, the file has each head's numbers in pairs to turn, (size / 2, 2), instead of in halves.
 * @typedef {{ kind: string, shape: number[], start: number, heads?: number }} Place */

/** The same interface as Weights. */
export class Blocks {
  /** Throws a LiveError for a file that is too short, or a kind that is unknown. @param {Uint8Array} bytes @param {string} name
   * @param {{ [tensor: string]: Place }} places */
  constructor(bytes, name, places) {
    this.bytes = bytes;
    this.name = name;
    this.places = places;
    for (const [tensor, { kind, shape, start }] of Object.entries(places)) {
      must(kind in KINDS || kind === "F32", `${name} has blocks of the kind ${kind}, which the page cannot read.`);
      const count = shape.reduce((all, one) => all * one, 1);
      const end = start + (kind === "F32" ? 4 * count : (count / BLOCK) * KINDS[kind].bytes);
      must(end <= bytes.length, `${name} is truncated: ${tensor} does not lie within it.`);
    }
  }

  /** The numbers that all of it takes in an arena. */
  get packed() {
    return Object.values(this.places).reduce((sum, { kind, shape }) => {
      const count = shape.reduce((all, one) => all * one, 1);
      return sum + room(kind === "F32" ? count : ((count / BLOCK) * blockBytes(KINDS[kind].bits)) / 4);
    }, 0);
  }

  /** Gives the memory back; nothing can be read any more. */
  free() {
    const { buffer } = this.bytes;
    this.bytes = new Uint8Array();
    if (buffer instanceof ArrayBuffer) buffer.transfer?.(0);
  }

  /** @param {string} name @param {number[]} shape @returns {Place} */
  #place(name, shape) {
    const place = this.places[name];
    must(place !== undefined, `${this.name} has no ${name}. It belongs to a model of another kind.`);
    must(place.shape.join() === shape.join(),
      `${name} in ${this.name} must be ${shape.join(" x ")} by its config; got ${place.shape.join(" x ")}.`);
    return place;
  }

  /** Copies a tensor of floats into an array. @param {string} name @param {number[]} shape @param {Float32Array} target */
  copy(name, shape, target) {
    const { kind, start } = this.#place(name, shape);
    must(kind === "F32", `${name} in ${this.name} must be of floats; got ${kind}.`);
    target.set(new Float32Array(this.bytes.slice(start, start + 4 * target.length).buffer));
    must(target.every(Number.isFinite), `${name} in ${this.name} has numbers that are infinite or nan. Reload the page.`);
    return target;
  }

  /** A matrix in an arena, in blocks or as floats. @param {string} name @param {number[]} shape (width, depth) @param {Arena} arena
   * @returns {Matrix} */
  matrix(name, shape, arena) {
    const { kind, start, heads } = this.#place(name, shape);
    const [width, depth] = shape;
    const order = heads ? turned(width / heads) : null;
    if (kind === "F32") {
      const rows = this.copy(name, shape, arena.take(width * depth));
      if (order) ordered(rows, depth, order);
      return rows;
    }
    const source = this.bytes.subarray(start, start + ((width * depth) / BLOCK) * KINDS[kind].bytes);
    const matrix = arena.takeBlocks(KINDS[kind].bits, width, depth).fill(kind, source, order);
    must(matrix.isFinite(), `${name} in ${this.name} has numbers that are infinite or nan. Reload the page.`);
    return matrix;
  }
}

/** Puts rows into another order, in place. @param {Float32Array} rows @param {number} depth @param {(row: number) => number} order */
function ordered(rows, depth, order) {
  const file = rows.slice();
  for (let row = 0; row * depth < rows.length; row += 1) {
    const from = order(row) * depth;
    rows.set(file.subarray(from, from + depth), row * depth);
  }
}

/** The file's row of each row of heads of a size: the two halves of a head stand in pairs there. @param {number} size */
const turned = (size) => (/** @type {number} */ row) => {
  const at = row % size;
  return row - at + 2 * (at % (size / 2)) + Math.floor((2 * at) / size);
};

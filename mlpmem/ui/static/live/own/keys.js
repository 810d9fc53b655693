// @ts-check
/* The keys of a text: half-precision states in blocks of memory that the kernel multiplies. */
/** @import { Model } from "../engine/fused.js" */
import { Arena, room } from "../model/products/products.js";
import { roundToHalf } from "../model/products/halves.js";

const [SMALLEST, LARGEST] = [1024, 16384]; // keys of one block; each is twice as large as the one before
export const QUERIES = 8; // rows that are multiplied at once

/** Keys of consecutive entries from `start` on, with room for `size`.
 * @typedef {{ start: number, size: number, arena: Arena, queries: Float32Array, keys: Float32Array, products: Float32Array }} Block */

export class Keys {
  /** @param {Model} model */
  constructor({ kernel, decoder }) {
    this.kernel = kernel;
    this.width = decoder.shape.D;
    this.count = 0;
    /** @type {Block[]} */
    this.blocks = [];
  }

  get bytes() {
    return this.blocks.reduce((sum, block) => sum + block.arena.bytes, 0);
  }

  /** The bytes that a next block would take if there is no room for `count` more keys, else 0. @param {number} count */
  more(count) {
    return this.count + count > this.#room ? 4 * this.#numbers(this.#next) : 0;
  }

  /** The numbers that a block takes. @param {number} size */
  #numbers(size) {
    return room(size * this.width) + room(QUERIES * this.width) + room(QUERIES * size);
  }

  get #room() {
    return this.blocks.reduce((sum, { size }) => sum + size, 0);
  }

  get #next() {
    return Math.min(LARGEST, SMALLEST * 2 ** this.blocks.length);
  }

  /** Adds a key, rounded to half precision. @param {Float32Array} key (D,) */
  add(key) {
    if (this.count === this.#room) this.blocks.push(this.#block());
    const target = this.at(this.count);
    target.set(key);
    roundToHalf(target);
    this.count += 1;
  }

  /** @returns {Block} */
  #block() {
    const size = this.#next;
    const arena = new Arena(this.kernel, this.#numbers(size));
    return { start: this.count, size, arena, queries: arena.take(QUERIES * this.width), products: arena.take(QUERIES * size),
      keys: arena.take(size * this.width) };
  }

  /** The key of an entry. @param {number} entry */
  at(entry) {
    const { start, keys } = /** @type {Block} */ (this.blocks.findLast((block) => block.start <= entry));
    return keys.subarray((entry - start) * this.width, (entry - start + 1) * this.width);
  }

  /** The products of rows with all keys. @param {Float32Array} queries (R, D), R at most QUERIES @returns {Float32Array} (R, N) */
  products(queries) {
    const { count: N, width: D } = this;
    const R = queries.length / D;
    const products = new Float32Array(R * N);
    for (const block of this.blocks) {
      const some = Math.min(block.size, N - block.start);
      block.queries.set(queries);
      block.arena.product(block.queries, block.keys, block.products, R, D, some);
      for (let r = 0; r < R; r += 1) products.set(block.products.subarray(r * some, (r + 1) * some), r * N + block.start);
    }
    return products;
  }
}

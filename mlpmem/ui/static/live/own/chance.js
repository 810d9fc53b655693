// @ts-check
/* Python's random.Random and torch's uniform_, as a gate draws its questions and its first weights. */
import { Twister } from "../engine/twister.js";

export class Chance {
  /** @param {number} seed */
  constructor(seed) {
    this.twister = Twister.asPython(seed);
  }

  /** A whole number from 0 to n - 1. @param {number} n at least 1 */
  below(n) {
    const shift = Math.clz32(n);
    let drawn = n;
    while (drawn >= n) drawn = this.twister.draw() >>> shift;
    return drawn;
  }

  /** @template T @param {readonly T[]} items @returns {T} */
  choice(items) {
    return items[this.below(items.length)];
  }

  /** Some items without repeats, in the order drawn. @template T @param {readonly T[]} items @param {number} count */
  sample(items, count) {
    const n = items.length;
    const pooled = n <= 21 + (count > 5 ? 4 ** Math.ceil(Math.log(3 * count) / Math.log(4)) : 0);
    if (pooled) {
      const pool = [...items];
      return Array.from({ length: count }, (_, i) => {
        const at = this.below(n - i);
        const item = pool[at];
        pool[at] = pool[n - i - 1];
        return item;
      });
    }
    /** @type {Set<number>} */
    const drawn = new Set();
    while (drawn.size < count) drawn.add(this.below(n));
    return Array.from(drawn, (at) => items[at]);
  }
}

/** torch's uniform_(-most, most) of float32 numbers, in their order. @param {Twister} twister @param {number} count @param {number} most */
export const uniform = (twister, count, most) => Array.from({ length: count }, () =>
  Math.fround(Math.fround((twister.draw() & 0xffffff) / 2 ** 24) * Math.fround(2 * most) - Math.fround(most)));

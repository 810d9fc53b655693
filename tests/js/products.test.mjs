/* Products of rows with halves: the kernel's two ways, each against plain loops. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { expand, scaleHalves } from "../../mlpmem/ui/static/live/model/products/halves.js";
import { Arena, compiled } from "../../mlpmem/ui/static/live/model/products/products.js";

/** Numbers from -1 to 1 that are the same every time. */
function numbers(count) {
  let state = 7;
  return Float32Array.from({ length: count }, () => {
    state = (state * 1103515245 + 12345) % 2147483648;
    return state / 1073741824 - 1;
  });
}

for (const paired of [true, false]) {
  for (const rows of [1, 2, 5]) {
    test(`${rows} rows times halves, ${paired ? "in pairs" : "one by one"}`, () => {
      const [depth, width] = [40, 7];
      const arena = new Arena(compiled(), 4000);
      const x = arena.take(rows * depth);
      const out = arena.take(rows * width);
      const weights = arena.takeHalves(width * depth);
      x.set(numbers(rows * depth));
      const random = Uint16Array.from(numbers(width * depth), (value) => (value + 1) * 32767 & 0xbfff); // both signs, below 2
      assert(scaleHalves(random, weights));
      arena.takeSpread(rows * depth);
      assert(arena.kernel.negative(Infinity) === Number(arena.spread !== null));
      arena.spread = paired ? arena.take(rows * depth) : null;
      arena.product(x, weights, out, rows, depth, width);
      const wide = new Float32Array(width * depth);
      expand(weights, wide);
      for (let r = 0; r < rows; r += 1) {
        for (let j = 0; j < width; j += 1) {
          let sum = 0;
          for (let k = 0; k < depth; k += 1) sum += x[r * depth + k] * wide[j * depth + k];
          assert(Math.abs(sum - out[r * width + j]) < 1e-5, `row ${r}, column ${j}: ${sum}, got ${out[r * width + j]}`);
        }
      }
    });
  }
}

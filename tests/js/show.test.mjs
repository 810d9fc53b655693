/* Numbers and tokens as the page writes them. */
import assert from "node:assert/strict";
import test from "node:test";
import { digits, glyph, isEnd, percent } from "../../mlpmem/ui/static/core/dom.js";
import { costOf, costScale, rate } from "../../mlpmem/ui/static/view/cost.js";

test("small numbers keep significant digits", () => {
  assert.deepEqual([0.784, 0.0231, 0.000452, 0.0000031, 0].map(digits), ["0.784", "0.0231", "0.000452", "3.10e-6", "0.000"]);
  assert.deepEqual([0.5, 0.0123, 0.00032, 0.00002, 4e-8, 0].map(percent), ["50.0", "1.2", "0.03", "0.002", "4e-6", "0"]);
  assert.ok([1, 0.99951, 0.5, 0.0123, 0.00032, 0.00002, 4e-8].every((p) => percent(p).length <= 5));
});

test("a slow column has a speed above 0", () => {
  assert.deepEqual([4.33, 90, 400, 2300, 51000].map(rate), ["231", "11", "2.5", "0.43", "0.02"]);
});

test("one decoder has one time on one screen, and another decoder its own", () => {
  const traces = {
    lm: { system: "lm", cost: { decoder_ms: 51 } },
    memory: { system: "memory", cost: { decoder_ms: 36, memory_ms: 4 } },
  };
  const scale = costScale(traces);
  const times = Object.values(traces).map((trace) => costOf(trace, scale.decoder).time[0].value);
  assert.deepEqual(times, [36, 36]);
  assert.equal(scale.time, 40);
  assert.equal(costOf(traces.lm).time[0].value, 51);
});

test("a token that ends a text has no raw name, and other markup stays as it is", () => {
  for (const name of ["</s>", "<|im_end|>", "<|endoftext|>", "<eos>"]) assert.equal(glyph(name), "end");
  for (const name of ["<b>", "</script>", "<|im_start|>", "s>"]) assert.ok(!isEnd(name) && glyph(name) === name);
});

/* The right answer's probability against lambda. */
import assert from "node:assert/strict";
import test from "node:test";
import { isAway } from "../../mlpmem/ui/static/core/mix.js";
import { chanceOf, chancesOf, highest, routedOf, truthOf } from "../../mlpmem/ui/static/core/truth.js";

const step = (s, lm, memory, more = {}) => ({ s, p: { lm, memory, knn: 0.5 }, ...more });
const trace = (system, steps, finish = "eos") => ({ system, steps, finish, lmbda: 0.5 });
const WRONG = trace("lm", [step(" 1752", 0.9, 0.1), step("</s>", 1, 1)]);
const RIGHT = trace("memory", [step(" North", 0.1, 0.8), step(" America", 0.5, 1), step("</s>", 1, 1)]);

test("a right column's tokens are the answer's, however wrong the others are", () => {
  const truth = truthOf([WRONG, RIGHT], ["North America"], null);
  assert.equal(truth.tokens.length, 2);
  assert.ok(Math.abs(chanceOf(truth.tokens, "memory", 0) - 0.1 * 0.5) < 1e-12);
  assert.ok(Math.abs(chanceOf(truth.tokens, "memory", 1) - 0.8) < 1e-12);
  assert.ok(Math.abs(chanceOf(truth.tokens, "memory", 0.5) - 0.45 * 0.75) < 1e-12);
  assert.deepEqual(highest(chancesOf(truth.tokens, "memory", 10))[0], 1);
});

test("without a right column the server's numbers stand, and without those there is none", () => {
  assert.equal(truthOf([WRONG], ["1911"], null), null);
  assert.equal(chanceOf(truthOf([WRONG], ["1911"], [{ lm: 0.25, memory: 0.75 }]).tokens, "memory", 0.5), 0.5);
  assert.equal(truthOf([RIGHT], [], [{ lm: 1 }]), null);
});

test("a longer word does not begin with the answer", () => {
  const longer = trace("knn", [step(" Lima", 0.5, 0.5), step("ssol", 0.5, 0.5)], "length");
  assert.equal(truthOf([longer], ["Lima"], null), null);
});

test("an answer of several tokens is found, in a long text only at its beginning", () => {
  const tokens = [" U", ".", "S", ".", " north", "ern"].map((s) => step(s, 0.5, 0.5));
  assert.equal(truthOf([trace("knn", tokens, "length")], ["U.S. northern"], null).tokens.length, 6);
  const late = trace("knn", [step(" It is", 0.5, 0.5), step(" Lima", 0.5, 0.5)]);
  assert.equal(truthOf([late], ["Lima"], null), null);
});

test("at auto each token has its own lambda along the text, and at most so much where that goes another way", () => {
  const routed = trace("memory", [step(" W", 0.2, 0.6, { lmbda: 1 }), step("est", 0.5, 0.5, { lmbda: 0 })]);
  assert.deepEqual(routedOf(truthOf([routed], ["West"], null).tokens, routed), { p: 0.3, bound: false });
  const other = [step(" W", 0.2, 0.6), step("ild", 0.5, 1), step("e", 0.5, 1)];
  assert.deepEqual(routedOf(other, routed), { p: 0.3, bound: true }, "its second lambda is known, the third is not");
  const scored = [{ p: { lm: 0.2, memory: 0.6 } }, { p: { lm: 0.5, memory: 1 } }];
  assert.deepEqual(routedOf(scored, routed), { p: 0.6, bound: true }, "only the first word is read by both");
});

test("a gate that was shut at every token found no passage near; one open token is enough", () => {
  const said = (lmbda, ...lambdas) => isAway({ lmbda, steps: lambdas.map((lambda) => ({ lmbda: lambda })) });
  assert.deepEqual([said("auto", 0.01, 0.09), said("auto", 0.01, 0.5), said(0.05, 0.05), said("auto"), said("auto", undefined)],
    [true, false, false, false, false]);
});

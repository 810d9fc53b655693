/* What is said of a token's choice: only what the kept candidates prove. */
import assert from "node:assert/strict";
import test from "node:test";
import { choiceText, entropyOf, rankOf, shortText, topOf } from "../../mlpmem/ui/static/drawer/choice.js";

/** A step of candidates [decoder, memory]; the first was written. */
const stepOf = (rows) => ({
  i: 0, id: 0, s: " a", cand: rows.map(([lm, memory], id) => [id, ` ${id}`, lm, memory, null]), p: { lm: rows[0][0], memory: rows[0][1] },
  rest: { lm: Math.max(0, 1 - rows.reduce((sum, [lm]) => sum + lm, 0)), memory: Math.max(0, 1 - rows.reduce((sum, [, m]) => sum + m, 0)) },
});
const [LM, MEMORY] = ["lm", "memory"].map((system) => ({ system, lmbda: 0.5, settings: {} }));
const TWELVE = Array.from({ length: 12 }, (_, i) => [0.2 / (i + 1), i === 11 ? 0.6 : 0.01]);

test("the list has at most ten tokens, in the mix's order, and none that an unlisted token may come before", () => {
  assert.deepEqual(topOf(stepOf(TWELVE), LM, 0).map(({ id }) => id), [0, 1, 2, 3, 4, 5, 6, 7], "eight of a source are sure");
  const mixed = topOf(stepOf(TWELVE), MEMORY, 1);
  assert.ok(mixed.length <= 10 && mixed[0].id === 11 && mixed[0].p === 0.6);
  assert.deepEqual(topOf(stepOf([["", 0]].map(() => [1, 1])), MEMORY, 0.5).map(({ p }) => p), [1]);
});

test("the entropy is that of the listed tokens and one for all others", () => {
  const even = entropyOf(stepOf([[0.25, 1], [0.25, 0], [0.25, 0], [0.25, 0]]), LM, 0);
  assert.ok(Math.abs(even.nats - Math.log(4)) < 1e-12 && even.rest === 0);
  assert.equal(entropyOf(stepOf([[0.25, 1], [0.75, 0]]), MEMORY, 1).nats, 0);
  const part = entropyOf(stepOf([[0.5, 1]]), LM, 0);
  assert.ok(Math.abs(part.nats - Math.log(2)) < 1e-12 && part.rest === 0.5);
});

test("a rank beyond the kept candidates is not claimed", () => {
  const step = stepOf(TWELVE);
  assert.equal(rankOf(step, LM, "lm"), 1);
  assert.equal(rankOf(step, LM, "knn"), null);
  assert.equal(rankOf({ ...step, p: { lm: 0.2 / 12 } }, LM, "lm"), null);
  assert.equal(rankOf({ ...step, p: { lm: 0.2 / 8 } }, LM, "lm"), 8);
});

test("a step says how many candidates of a source it keeps; older recordings keep eight, scored texts five", () => {
  const step = stepOf(TWELVE);
  assert.deepEqual(topOf({ ...step, top: 10 }, LM, 0).map(({ id }) => id), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  assert.equal(rankOf({ ...step, top: 10, p: { lm: 0.2 / 10 } }, LM, "lm"), 10);
  assert.equal(topOf(step, { ...LM, settings: { scored: true } }, 0).length, 5);
  assert.match(choiceText({ ...step, p: { lm: 0.2 / 12 } }, LM, 0), /^Entropy at least [\d.]+ nats, as open as [\d.]+ equal choices or more\. .* decoder beyond 8\.$/);
});

test("a list that is short of ten says what its trace keeps, and a whole one says nothing", () => {
  const step = stepOf(TWELVE);
  assert.equal(shortText(step, LM, 8), "This recording keeps 8 candidates of each source. ");
  assert.equal(shortText(step, { ...LM, settings: { scored: true } }, 5), "A scored text keeps 5 candidates of each source. ");
  assert.equal(shortText({ ...step, top: 10 }, LM, 9), "");
  assert.equal(shortText(step, MEMORY, 10), "");
});

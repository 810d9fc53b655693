/* What is said of passages that were found after an answer: how many, where, and that they were not used. */
import assert from "node:assert/strict";
import test from "node:test";
import { originText } from "../../mlpmem/ui/static/circuit/origin.js";

/** Steps whose datastore gives a document so much weight. */
const steps = (title, weight) => [{ i: 0, id: 7, s: " Lima", nn: [[1, title, "B", "", " Lima", 7, "", 1, weight]] }];

test("no passage: it says so, and that nothing was read", () => {
  const text = originText([], "Lima", []);
  assert.match(text, /^Searched later, nothing found: no passage .* with “Lima”\. The memory wrote it from its weights and read no passage\./);
  assert.match(text, /made up\.$/);
  assert.match(originText([], "Lima", steps("Peru", 0.9)), /points to “Peru”: 90\.0 % of its weight\.$/);
});

test("one or several passages: their number, their documents, and that they were found later", () => {
  assert.match(originText(["Peru"], "Lima", []), /^Found later, not used: one passage of the corpus says “Lima”, in “Peru”\. [^.]*\.$/);
  assert.match(originText(["Peru", "Peru"], "Lima", []), /2 passages of the corpus say “Lima”, all in “Peru”\. [^.]*\.$/);
  assert.match(originText(["Peru", "Lima", "Andes"], "Lima", []), /in “Peru”, “Lima” and “Andes”\. .* cannot tell which of them taught it\.$/);
});

test("a datastore that points nowhere, there too, or elsewhere", () => {
  assert.match(originText(["Peru"], "Lima", steps("Andes", 0.1)), /points to no single document: “Andes” has the most, 10\.0 % of its weight\.$/);
  assert.match(originText(["Peru"], "Lima", steps("Peru", 0.8)), /points there too: “Peru” has 80\.0 %/);
  assert.match(originText(["Peru"], "Lima", steps("Andes", 0.8)), /points to another document, “Andes”: 80\.0 %/);
});

test("a long answer is cut, and a hostile one stays text", () => {
  const text = originText([], `<img src=x onerror=alert(1)> ${"word ".repeat(40)}`, []);
  assert.ok(text.includes("<img") && text.includes("…”"));
});

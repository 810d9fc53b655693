/* Tokens as text. */
import assert from "node:assert/strict";
import test from "node:test";
import { characterAt, named, pieces } from "../../mlpmem/ui/static/core/pieces.js";

const PART = "\uFFFD";
const shown = (text) => pieces(text).map((piece) => piece.sign ?? piece).join("");

test("an indent belongs to the next line, and blank lines count", () => {
  assert.equal(shown("\n    "), "↵\n    ");
  assert.equal(shown("\n\n"), "↵\n↵\n");
  assert.equal(shown(" {\n\n  x"), " {↵\n↵\n  x");
  assert.equal(shown("    "), "    ");
  assert.equal(shown("\t\t"), "⇥⇥");
});

test("nothing turns the text around it", () => {
  assert.equal(shown("a\u202eb"), "a▫b");
});

test("all tokens of a character are one, and each says which part it is", () => {
  const texts = ["a", PART, PART, PART, "😀", "b"];
  for (const i of [1, 2, 3, 4]) assert.deepEqual(characterAt(texts, i), [1, 4]);
  assert.deepEqual([0, 5].map((i) => characterAt(texts, i)), [[0, 0], [5, 5]]);
  assert.equal(named(texts, 2), "part 2 of 4 of “😀”");
  assert.equal(named(texts, 0), "“a”");
  assert.equal(named(["a", PART], 1), "“▫”");
});

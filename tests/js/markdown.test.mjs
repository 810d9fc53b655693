/* Answers as Markdown: a structure over the text, in which every character keeps its place. */
import assert from "node:assert/strict";
import test from "node:test";
import { blocksOf } from "../../mlpmem/ui/static/chat/text/markdown.js";
import { slicesOf, textOf } from "../../mlpmem/ui/static/chat/text/slices.js";

/** A structure as one line: marks in braces. */
const shown = (text) => {
  const one = (node) => (node.tag ? `<${node.tag}>${node.kids.map(one).join("")}</${node.tag}>`
    : node.mark ? `{${text.slice(node.from, node.to).replaceAll("\n", "↵")}}` : text.slice(node.from, node.to));
  return blocksOf(text).map(one).join("");
};
const leaves = (node) => (node.tag ? node.kids.flatMap(leaves) : [node]);

test("emphasis, code and links are structure, and their signs are marks", () => {
  assert.equal(shown("a **b** *c* `d`"), "<p>a <strong>{**}b{**}</strong> <em>{*}c{*}</em> <code>{`}d{`}</code></p>");
  assert.equal(shown("***b***"), "<p><strong>{**}<em>{*}b{*}</em>{**}</strong></p>");
  assert.equal(shown("2 * 3 * 4, snake_case_name, \\*no\\*"), "<p>2 * 3 * 4, snake_case_name, {\\}*no{\\}*</p>");
  assert.equal(shown("[a](https://b.c)"), "<p><a>{[}a{](https://b.c)}</a></p>");
});

test("blocks are lists, code, quotations, headings, tables and rules", () => {
  assert.equal(shown("# T\ntext\nmore"), "<h3>{# }T{↵}</h3><p>text\nmore</p>");
  assert.equal(shown("- a\n  - b"), "<ul><li><p>{- }a{↵}</p><ul><li><p>{  - }b</p></li></ul></li></ul>");
  assert.equal(shown("```py\n  x\n```\n"), "<pre>{```py↵}  x{↵}{```↵}</pre>");
  assert.equal(shown("> a\n> b"), "<blockquote><p>{> }a\n{> }b</p></blockquote>");
  assert.equal(shown("|a|b|\n|-|-|\n|c|d|"), "<table><thead><tr><th>{|}a{|}</th><th>b{|↵}</th></tr></thead><gap>{|-|-|↵}</gap><tbody><tr><td>{|}c{|}</td><td>d{|}</td></tr></tbody></table>");
  assert.equal(shown("a\n\n---\n"), "<p>a{↵}</p><gap>{↵}</gap><hr>{---↵}</hr>");
});

test("code that is still being written is code already", () => {
  assert.equal(shown("```js\nconst a"), "<pre>{```js↵}const a</pre>");
});

test("no markup of a text becomes more than text, and no unsafe address a link", () => {
  for (const text of ["<img src=x onerror=1>", "[a](javascript:alert(1))", "![a](data:text/html,x)"]) {
    assert.equal(shown(text), `<p>${text}</p>`);
  }
  assert.equal(shown("[a](http://b\" onclick=1)"), '<p>[a](<a>http://b</a>" onclick=1)</p>');
});

test("every character is in exactly one leaf, in order, whatever the text", () => {
  const pieces = ["a", " ", "\n", "*", "_", "`", "#", "-", "|", ">", "1.", "  ", "[x](http://a)", "~~", "\\", "!", "```", "\t", "😀", "ب"];
  let seed = 7;
  const random = (most) => {
    seed = (seed * 48271) % 2147483647;
    return seed % most;
  };
  for (let n = 0; n < 20000; n += 1) {
    const text = Array.from({ length: random(14) }, () => pieces[random(pieces.length)]).join("");
    let at = 0;
    for (const { from, to } of blocksOf(text).flatMap(leaves)) {
      assert.equal(from, at, JSON.stringify(text));
      assert.ok(to >= from);
      at = to;
    }
    assert.equal(at, text.length, JSON.stringify(text));
  }
});

const trace = (...texts) => ({ system: "lm", lmbda: 0, settings: {}, finish: "", steps: texts.map((s, i) => ({ i, id: i, s })) });

test("a character of several tokens is whole, and belongs to one of them", () => {
  assert.deepEqual(slicesOf(trace("a", "\uFFFD", "\uFFFD", "😀", "b"), false), { text: "a😀b", starts: [0, 1, 1, 1, 3] });
  assert.deepEqual(slicesOf(trace("e", "\u0301", "x"), false), { text: "e\u0301x", starts: [0, 2, 2] });
  assert.deepEqual(slicesOf(trace(" مر", "حبا"), false).starts, [0, 3]);
});

test("a last character that the next token may complete is held back while the answer grows", () => {
  const woman = trace("hi ", "👩", "\u200D", "💻");
  const at = (count) => slicesOf({ ...woman, steps: woman.steps.slice(0, count) }, true).text;
  assert.deepEqual([1, 2, 3, 4].map(at), ["hi ", "hi 👩", "hi ", "hi 👩‍💻"]);
  assert.equal(slicesOf(trace("🇵"), true).text, "");
  assert.equal(slicesOf(trace("🇵", "🇪"), true).text, "🇵🇪");
  assert.equal(slicesOf(trace("🇵"), false).text, "🇵");
});

test("an answer's text is the engine's, or that of the tokens if it was stopped", () => {
  assert.equal(textOf({ ...trace(" a", "</s>"), finish: "eos", text: " a" }), " a");
  assert.equal(textOf({ ...trace(" a", "\uFFFD"), finish: "stop", text: "other" }), " a");
});

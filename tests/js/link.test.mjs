/* A conversation as a link and as a file: whole, bounded, and safe to read from anybody. */
import assert from "node:assert/strict";
import test from "node:test";
import { fragmentOf, readFragment, recordOf } from "../../mlpmem/ui/static/chat/kept/link.js";
import { Talk, newAnswer } from "../../mlpmem/ui/static/chat/kept/talk.js";

const ASKED = { system: "Be brief.", temperature: 0.5, top_p: 1, min_p: 0, repetition_penalty: 1, longest: 9, stop: ["\n"], seed: 4 };

/** A conversation of questions, each answered by two systems. */
function talkOf(...questions) {
  const talk = new Talk();
  for (const question of questions) {
    const turn = talk.add(question);
    for (const system of ["lm", "memory"]) {
      const answer = newAnswer(system, ASKED, { steps: [{ i: 0, id: 1, s: ` ${system}` }] });
      talk.answer(turn, { ...answer, state: "done" });
    }
  }
  return talk;
}
const encoded = (value) => `#chat=${encodeURIComponent(JSON.stringify(value))}`;

test("a link has every question, who answers, the settings and lambda", () => {
  const talk = talkOf("one <b>", "and\ntwo?", "three #&%");
  const linked = readFragment(fragmentOf(talk.path(), 0.3));
  assert.deepEqual(linked.turns.map(({ question }) => question), ["one <b>", "and\ntwo?", "three #&%"]);
  assert.deepEqual(linked.turns[0].systems, ["lm", "memory"]);
  assert.deepEqual([linked.settings, linked.lmbda], [ASKED, 0.3]);
});

test("a conversation that is too long for a link has none", () => {
  assert.equal(fragmentOf(talkOf("x".repeat(9000)).path(), null), null);
  assert.equal(fragmentOf(talkOf(...Array(21).fill("x")).path(), null), null);
});

test("a link from anybody is read as known fields only, or not at all", () => {
  for (const hash of ["", "#chat", "#chat=%", "#chat=null", encoded({ v: 2, turns: [["a"]] }), encoded({ v: 1, turns: [[7], "x", [""]] }),
    encoded({ v: 1, turns: {} })]) assert.equal(readFragment(hash), null, hash);
  const read = readFragment(encoded({ v: 1, turns: [["a".repeat(5000), "memory", "__proto__", 3]], settings: { temperature: "1", seed: 3, stop: [1, "x"], own: 1 }, lmbda: 7 }));
  assert.deepEqual(read, { turns: [{ question: "a".repeat(2000), systems: ["memory"] }], settings: { seed: 3, stop: ["x"] }, lmbda: null });
  assert.deepEqual(readFragment(encoded({ v: 1, turns: [["a"]], settings: null })), { turns: [{ question: "a", systems: [] }], settings: {}, lmbda: null });
});

test("a file has the answers on screen with their tokens, and the last turns that fit", () => {
  const talk = talkOf("one", "two");
  talk.answer(talk.path()[1], newAnswer("lm", ASKED)); // without a token
  const whole = recordOf(talk.path(), null);
  assert.deepEqual(whole.turns.map(({ question, traces }) => [question, Object.keys(traces)]), [["one", ["lm", "memory"]], ["two", ["memory"]]]);
  assert.equal(whole.left, 0);
  const size = JSON.stringify(whole.turns[1]).length;
  const bounded = recordOf(talk.path(), null, size + 5);
  assert.deepEqual([bounded.left, bounded.turns.map(({ question }) => question)], [1, ["two"]]);
});

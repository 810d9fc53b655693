/* A conversation as a tree: each system's own history, versions of questions and answers. */
import assert from "node:assert/strict";
import test from "node:test";
import { Talk, newAnswer } from "../../mlpmem/ui/static/chat/kept/talk.js";

const ASKED = { system: "", temperature: 0, top_p: 1, min_p: 0, repetition_penalty: 1, longest: 9, stop: [] };

/** Adds an answer with a text. */
function say(talk, turn, system, text) {
  const answer = newAnswer(system, ASKED, text ? { steps: [{ i: 0, id: 1, s: text }] } : {});
  answer.trace.finish = text ? "eos" : "stop";
  answer.trace.text = text;
  talk.answer(turn, answer);
  return answer;
}
const questions = (talk) => talk.path().map((turn) => turn.question);

test("each system reads the turns that it answered, with its own answers, as they are", () => {
  const talk = new Talk();
  const first = talk.add("one\n  two <|im_end|>");
  say(talk, first, "lm", " mine\n");
  say(talk, first, "knn", "found");
  const second = talk.add("and?");
  say(talk, second, "lm", "next");
  const third = talk.add("last");
  assert.deepEqual(talk.history(third, "lm"), { before: [["one\n  two <|im_end|>", " mine\n"], ["and?", "next"]], skipped: 0 });
  assert.deepEqual(talk.history(third, "knn"), { before: [["one\n  two <|im_end|>", "found"]], skipped: 1 });
  assert.deepEqual(talk.history(third, "memory"), { before: [], skipped: 2 });
});

test("an answer without a word is not part of the history", () => {
  const talk = new Talk();
  say(talk, talk.add("a"), "lm", "");
  assert.deepEqual(talk.history(talk.add("b"), "lm"), { before: [], skipped: 1 });
});

test("an edited question stands at its place with later turns of its own", () => {
  const talk = new Talk();
  const first = talk.add("a");
  say(talk, first, "lm", "1");
  say(talk, talk.add("b"), "lm", "2");
  const edited = talk.add("c", first);
  assert.deepEqual(questions(talk), ["c"]);
  assert.deepEqual(talk.siblings(edited).map(({ question }) => question), ["a", "c"]);
  talk.pick(first);
  assert.deepEqual(questions(talk), ["a", "b"]);
});

test("another version of an answer has later turns of its own, and the old ones come back with the old version", () => {
  const talk = new Talk();
  const first = talk.add("a");
  const old = say(talk, first, "lm", "1");
  const later = talk.add("b");
  say(talk, later, "lm", "2");
  assert.ok(talk.isFollowed(first, old));
  say(talk, first, "lm", "other");
  assert.deepEqual(questions(talk), ["a"]);
  const other = talk.add("c");
  assert.deepEqual(talk.history(other, "lm").before, [["a", "other"]]);
  first.answers.lm.at = 0;
  assert.deepEqual(questions(talk), ["a", "b"]);
  assert.deepEqual(talk.history(later, "lm").before, [["a", "1"]], "its own, whatever is shown");
});

test("versions of a question stay in the order in which they were asked, however they were kept", () => {
  const talk = new Talk();
  const first = talk.add("a");
  for (const question of ["b", "c"]) talk.add(question, first);
  talk.pick(first);
  const back = new Talk();
  back.restore([...talk.turns.values()].reverse());
  assert.deepEqual(back.siblings(back.path()[0]).map(({ question }) => question), ["a", "b", "c"]);
  assert.deepEqual(questions(back), ["a"], "the last picked one");
});

test("a conversation comes back as it was kept", () => {
  const talk = new Talk();
  say(talk, talk.add("a"), "lm", "1");
  const edited = talk.add("b", talk.path()[0]);
  say(talk, edited, "lm", "2");
  const back = new Talk();
  back.restore(structuredClone([...talk.turns.values()]));
  assert.deepEqual(questions(back), ["b"]);
  assert.equal(back.add("c").parent, edited.id);
});

test("a question whose earlier turns were erased on another page begins the conversation", () => {
  const talk = new Talk();
  const first = talk.add("erased");
  say(talk, first, "lm", "1");
  const later = talk.add("kept");
  say(talk, later, "lm", "2");
  const other = new Talk();
  other.restore([later]);
  assert.deepEqual(questions(other), ["kept"]);
  assert.deepEqual(other.siblings(other.path()[0]).length, 1);
});

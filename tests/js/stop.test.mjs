/* Stop, pressed before a token came: only the answer that was to come is concerned. */
import assert from "node:assert/strict";
import test from "node:test";
import { ChatRun } from "../../mlpmem/ui/static/chat/run.js";
import { Talk, newAnswer } from "../../mlpmem/ui/static/chat/kept/talk.js";

const ASKED = { system: "", temperature: 0, top_p: 1, min_p: 0, repetition_penalty: 1, longest: 9, stop: [] };
const WORD = { i: 0, id: 7, s: " word", cand: [], p: { lm: 1 } };

/** A turn with one answer that was cut at its length. */
function cut() {
  const talk = new Talk();
  const turn = talk.add("a");
  const answer = newAnswer("lm", ASKED, { steps: [WORD] });
  answer.trace.finish = "length";
  answer.state = "done";
  talk.answer(turn, answer);
  return { talk, turn, answer };
}

test("an answer that was to be continued is as it was", () => {
  const { turn, answer } = cut();
  const run = new ChatRun(turn, [{ answer, forced: [7], kept: 1 }]);
  assert.equal(answer.state, "waiting");
  assert.deepEqual(run.stop(), []);
  assert.deepEqual([answer.state, answer.trace.finish], ["done", "length"]);
});

test("a continued answer with a new token is stopped", () => {
  const { turn, answer } = cut();
  const run = new ChatRun(turn, [{ answer, forced: [7], kept: 1 }]);
  run.receive({ kind: "steps", run: run.id, seq: 1, steps: { lm: [WORD] } });
  assert.deepEqual(run.stop(), []);
  assert.deepEqual([answer.state, answer.trace.finish], ["stopped", "stop"]);
});

test("a new version without a token goes, and the one on screen before is shown", () => {
  const { talk, turn, answer } = cut();
  talk.answer(turn, newAnswer("lm", ASKED, { steps: [WORD] }));
  turn.answers.lm.at = 0;
  const fresh = newAnswer("lm", ASKED);
  talk.answer(turn, fresh);
  for (const plan of new ChatRun(turn, [{ answer: fresh, forced: [], kept: 0, at: 0 }]).stop()) talk.withdraw(turn, plan.answer, plan.at);
  assert.deepEqual([turn.answers.lm.at, turn.answers.lm.list.length, answer.state], [0, 2, "done"]);
});

test("the only answer of a question stays, and says that it was stopped", () => {
  const talk = new Talk();
  const turn = talk.add("a");
  const answer = newAnswer("lm", ASKED);
  talk.answer(turn, answer);
  for (const plan of new ChatRun(turn, [{ answer, forced: [], kept: 0, at: 0 }]).stop()) talk.withdraw(turn, plan.answer, plan.at);
  assert.deepEqual([turn.answers.lm.list.length, answer.state], [1, "stopped"]);
});

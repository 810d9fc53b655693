/* Opening a saved conversation: what was saved comes back, and a file from anybody is read as known fields or not at all. */
import assert from "node:assert/strict";
import test from "node:test";
import { recordOf } from "../../mlpmem/ui/static/chat/kept/link.js";
import { readConversation } from "../../mlpmem/ui/static/chat/kept/opened.js";
import { Talk, newAnswer } from "../../mlpmem/ui/static/chat/kept/talk.js";

const step = (i, s) => ({
  i, id: 7 + i, s, p: { lm: 0.25, memory: 0.5, fused: 0.375 }, rest: { lm: 0.1, memory: 0, fused: 0.05 }, js: null, ms: 2,
  cand: [[7 + i, s, 0.25, 0.5, null], [3, "<b>", 0.65, 0.5, null]], nn: [[4, "A title", "B", "left ", s, 7 + i, " right", 1.5, 0.75]],
  far: [[-1, 0.25]], top: 10,
});
const TRACE = { system: "memory", lmbda: 0.5, settings: { temperature: 0.7, forced: [7] }, model: { tokenizer_hash: "ab" }, finish: "eos", text: " Li ma",
  steps: [step(0, " Li"), step(1, " ma")] };

/** The text of a file with one question. */
const fileOf = (change = (value) => value) => {
  const talk = new Talk();
  const turn = talk.add("Where? <img src=x>");
  turn.about = { answer: "Lima", aliases: ["Ciudad <b>"] };
  talk.answer(turn, { ...newAnswer("memory", {}), trace: structuredClone(TRACE), state: "done" });
  return JSON.stringify(change(recordOf(talk.path(), 0.3)));
};

test("what was saved comes back, to the last number", () => {
  const { turns, lmbda } = readConversation(fileOf());
  assert.deepEqual(turns, [{ question: "Where? <img src=x>", own: false, right: ["Lima", "Ciudad <b>"], traces: { memory: TRACE } }]);
  assert.equal(lmbda, 0.3);
});

test("a file of another kind or with a wrong value is refused with a sentence", () => {
  const at = (...path) => (value) => (file) => {
    let place = file;
    for (const name of path.slice(0, -1)) place = place[name];
    place[path.at(-1)] = value;
    return file;
  };
  const trace = ["turns", 0, "traces", "memory"];
  const wrong = [at("v")(2), at("kind")("run"), at("lmbda")(7), at("turns")({}), at("turns")([]), at(...trace, "system")("lm"), at(...trace, "lmbda")("x"),
    at(...trace, "lmbda")("auto"), at(...trace, "finish")("<b>"), at(...trace, "steps")(null), at(...trace, "steps", 1, "i")(5), at(...trace, "steps", 0, "id")("7"),
    at(...trace, "steps", 0, "s")({}), at(...trace, "steps", 0, "p")({ lm: 2 }), at(...trace, "steps", 0, "p")(null), at(...trace, "steps", 0, "cand")("x"),
    at(...trace, "steps", 0, "cand", 0)([1, 2, 0.5]), at(...trace, "steps", 0, "cand")(Array(65).fill([1, "a", 0, 0, 0])), at(...trace, "steps", 0, "nn", 0, 1)(9),
    at(...trace, "steps", 0, "nn", 0, 8)(2), at(...trace, "steps", 0, "far")([[1, 5]]), at(...trace, "settings", "forced")([99]), at("turns", 0, "question")(3),
    at("turns", 0, "question")("x".repeat(20_001)), at("turns", 0, "right")("Lima"), at("turns", 0, "right")([7]), at("turns", 0, "traces")({ __proto__: {}, other: {} })];
  for (const change of wrong) {
    assert.throws(() => readConversation(fileOf(change)), { message: /^The file is not a saved conversation: .+\. Save the conversation again/ }, String(change));
  }
  for (const text of ["", "{", "null", "[]", "7", '"x"']) assert.throws(() => readConversation(text), /not a saved conversation/);
});

test("unknown fields are left out, also of a trace", () => {
  const file = JSON.parse(fileOf());
  Object.assign(file.turns[0].traces.memory, { fixed: true, changed: 1, recorded: true });
  file.turns[0].traces.memory.settings.scored = true;
  file.turns[0].about = { answer: "x" };
  assert.deepEqual(readConversation(JSON.stringify(file)).turns[0].traces.memory, TRACE);
});

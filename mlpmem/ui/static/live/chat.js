// @ts-check
/* The worker's chat: one question to several systems, each with its own history, as mlpmem/ui/panels/chat.py answers. */
/** @import { Asked, Begun, Facts } from "../chat/types.js" */
/** @import { Trace } from "../core/types.js" */
/** @import { Answer, Lambda, PlanOf, Step } from "./types.js" */
/** @import { Model } from "./engine/fused.js" */
import { Run } from "./engine/generation.js";
import { MOST_CHARACTERS, asPrompt, checkedOptions, checkedText, fitting, fittedChat } from "./engine/prompts.js";
import { must } from "./model/errors.js";

const PERIOD = 60; // milliseconds between deltas
const LONGEST = 256; // tokens of an answer by default
const MOST = 512; // tokens of an answer with those it continues
const USUAL = { temperature: 0, top_p: 1, min_p: 0, repetition_penalty: 1 };

/** What the page must know of a model to offer a chat. @param {Model} model @returns {Facts} */
export const chatFacts = (model) => ({ systems: model.systems(null), template: Boolean(model.live.turns?.system), room: model.positions, tokenizer: "",
  usual: USUAL, longest: Math.max(1, Math.min(LONGEST, Math.floor(model.positions / 4))), most: MOST,
  question: MOST_CHARACTERS });

/** Yields a question's values: "begin", "steps" at most every PERIOD, "done" with the traces without the kept steps.
 * @param {import("./answers.js").Answers} answers @param {PlanOf<"chat">} plan @param {() => boolean} stopped
 * @returns {AsyncGenerator<Answer, void>} */
export const chatValues = async function* (answers, plan, stopped) {
  const { model } = answers;
  const store = answers.searched(plan.own);
  const question = checkedText(plan.question, "question");
  for (const { system } of plan.columns) answers.check(system, store);
  const runs = plan.columns.map((column) => runOf(model, plan, column, question, store, stopped));
  /** @type {{ [system: string]: number }} */
  const kept = Object.fromEntries(plan.columns.map((column) => [column.system, column.kept]));
  const prompt = plan.typed ? question : asPrompt(question, model.live.questions);
  yield { kind: "begin", run: plan.run, prompt, form: prompt !== question, own: "",
    columns: Object.fromEntries(runs.map(({ begun }) => [begun.system, begun])) };
  let seq = 0;
  let last = performance.now();
  /** @type {{ [system: string]: Step[] }} */
  let pending = {};
  for await (const steps of inTurn(runs.map(({ run }) => run.steps()))) {
    for (const [system, step] of Object.entries(steps)) {
      if (step.i < kept[system]) continue;
      pending[system] ??= [];
      pending[system].push(step);
    }
    if (performance.now() - last < PERIOD) continue;
    seq += 1;
    last = performance.now();
    yield { kind: "steps", run: plan.run, seq, steps: pending };
    pending = {};
  }
  if (stopped()) return;
  /** @type {{ [system: string]: Trace }} */
  const traces = Object.assign({}, ...runs.map(({ run }) => run.traces));
  for (const [system, trace] of Object.entries(traces)) traces[system] = { ...trace, steps: trace.steps.slice(kept[system]) };
  yield { kind: "done", run: plan.run, seq: seq + 1, traces };
};

/** @param {Model} model @param {PlanOf<"chat">} plan @param {Asked} column @param {string} question
 * @param {import("./own/store.js").Store | null} store @param {() => boolean} stopped @returns {{ run: Run, begun: Begun }} */
function runOf(model, { settings, typed, lmbda }, { system, before, forced, kept }, question, store, stopped) {
  const longest = settings.longest ?? LONGEST;
  must(Number.isInteger(longest) && longest >= 1 && longest <= MOST, `longest answer must be a whole number between 1 and ${MOST}; got ${longest}. Correct it.`);
  must(forced.length < MOST, `An answer has at most ${MOST} tokens here. Ask for the rest with a new question.`);
  const given = Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== null));
  const options = checkedOptions({ ...given, max_new_tokens: 1 });
  const { positions } = model;
  const wanted = Math.min(Math.max(kept + longest, forced.length), MOST);
  /** @type {[string, string][]} */
  const turns = [...before, [question, ""]];
  const instructions = settings.system ? checkedText(settings.system, "system prompt") : "";
  const { ids, dropped } = fittedChat(model, turns, Math.min(wanted, Math.max(1, Math.floor(positions / 2))), typed, instructions);
  options.max_new_tokens = Math.max(1, Math.min(wanted, positions - ids.length));
  fitting(model, ids, options.max_new_tokens);
  /** @type {Lambda} */
  const own = model.lambda(system, lmbda, store);
  const run = new Run(model, { prompt: model.live.turns ? model.tokenizer.spelled(ids) : question, ids, systems: [[system, system, own]], options, forced, store, stopped });
  return { run, begun: { system, lmbda: own, settings: forced.length ? { forced } : {}, kept, read: ids.length, room: positions, dropped } };
}

/** Yields the values of several generators in turn. @template T @param {AsyncGenerator<T, void>[]} all @returns {AsyncGenerator<T, void>} */
async function* inTurn(all) {
  for (let live = all; live.length;) {
    const next = [];
    for (const one of live) {
      const { value, done } = await one.next();
      if (done) continue;
      yield value;
      next.push(one);
    }
    live = next;
  }
}

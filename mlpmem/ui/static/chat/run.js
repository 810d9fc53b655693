// @ts-check
/* One question under way: its request, and the answers that grow from the values that come back. */
/** @import { About, Lambda } from "../core/types.js" */
/** @import { Answer, ChatRequest, ChatValue, Sampling, Turn } from "./types.js" */

import { candidateOf, lambdaAt, mix } from "../core/mix.js";
import { newAnswer, shownOf } from "./kept/talk.js";

/** One column of a run: its answer, the tokens that it begins with, and how many of them are on the page.
 * `at` is the version that was on screen.
 * @typedef {{ answer: Answer, forced: number[], kept: number, at?: number }} Plan */

let runs = 0;

/** What a run changes of an answer at its start; a new answer waits.
 * @typedef {{ tokens: number, finish: string } & Pick<Answer, "state" | "error">} Had
 * @type {(answer: Answer) => Had} */
const hadOf = ({ state, error, trace }) => ({ state, error, tokens: trace.steps.length, finish: trace.finish ?? "" });

export class ChatRun {
  /** @param {Turn} turn @param {Plan[]} plans */
  constructor(turn, plans) {
    runs += 1;
    this.id = `chat-${Date.now().toString(36)}-${runs}`;
    this.turn = turn;
    this.seq = 0;
    /** `had` are the tokens and the state of each answer before it. @type {Map<string, Plan & { given: number[], had: Had }>} */
    this.plans = new Map(plans.map((plan) => [plan.answer.system, { ...plan, given: plan.answer.trace.settings?.forced ?? [],
      had: hadOf(plan.answer) }]));
    for (const { answer } of plans) {
      Object.assign(answer, { state: "waiting", error: "" });
      answer.trace.finish = "";
    }
  }

  /** @param {import("./kept/talk.js").Talk} talk @param {ChatRequest["lmbda"]} lmbda @returns {ChatRequest} */
  request(talk, lmbda) {
    const plans = [...this.plans.values()];
    return { run: this.id, question: this.turn.question, typed: this.turn.typed, lmbda, settings: plans[0].answer.asked,
      columns: plans.map(({ answer, forced, kept }) => talk.asked(this.turn, answer.system, forced, kept)) };
  }

  get answers() {
    return [...this.plans.values()].map(({ answer }) => answer);
  }

  /** Takes a value of this run; returns whether it is the last. @param {ChatValue} value */
  receive(value) {
    if (value.kind === "begin") this.#begin(value);
    else if (value.kind === "steps" && value.seq === this.seq + 1) this.#add(value);
    else if (value.kind === "failed") this.fail(value.columns);
    else if (value.kind === "done") this.#end(value);
    return value.kind === "done";
  }

  /** @param {Extract<ChatValue, { kind: "begin" }>} value */
  #begin({ form, own, columns, prompt, answer: right = "", aliases = [], part = "" }) {
    /** @type {About} */
    const about = { prompt, answer: right, aliases, part };
    Object.assign(this.turn, { form, own, about });
    for (const [system, { lmbda, read, room, dropped }] of Object.entries(columns)) {
      const answer = this.plans.get(system)?.answer;
      if (!answer) continue;
      Object.assign(answer, { read, room, dropped });
      answer.trace.lmbda = lmbda;
    }
  }

  /** @param {Extract<ChatValue, { kind: "steps" }>} value */
  #add({ seq, steps }) {
    this.seq = seq;
    for (const [system, list] of Object.entries(steps)) {
      const answer = this.plans.get(system)?.answer;
      if (!answer || !list.length) continue;
      answer.trace.steps.push(...list);
      answer.state = "running";
    }
  }

  /** @param {Extract<ChatValue, { kind: "done" }>} value */
  #end({ traces }) {
    for (const [system, trace] of Object.entries(traces)) {
      const plan = this.plans.get(system);
      if (!plan) continue;
      const { answer, kept, given } = plan;
      const settings = { ...trace.settings, forced: given };
      answer.trace = { ...trace, settings, steps: [...answer.trace.steps.slice(0, kept), ...trace.steps] };
      answer.state = "done";
    }
    this.settle("The answer did not come. Ask again.");
  }

  /** Answers that did not end are failures. @param {string} text */
  settle(text) {
    for (const answer of this.answers) {
      if (answer.state === "waiting" || answer.state === "running") Object.assign(answer, { state: "failed", error: text });
    }
  }

  /** @param {{ [system: string]: string }} texts */
  fail(texts) {
    for (const [system, error] of Object.entries(texts)) {
      const answer = this.plans.get(system)?.answer;
      if (answer) Object.assign(answer, { state: "failed", error });
    }
  }

  /** The visitor stopped it: the tokens so far stay. An answer that was to be continued, and got no token, is as it was;
   * returns the plans of new answers without a token. */
  stop() {
    const empty = [];
    for (const plan of this.plans.values()) {
      const { answer, had } = plan;
      if (answer.state !== "waiting" && answer.state !== "running") continue;
      const grew = answer.trace.steps.length > had.tokens;
      if (!grew && had.state !== "waiting") {
        const { finish, tokens: _, ...rest } = had;
        Object.assign(answer, rest);
        answer.trace.finish = finish;
        continue;
      }
      answer.state = "stopped";
      answer.trace.finish = "stop";
      if (!grew) empty.push(plan);
    }
    return empty;
  }
}

/** The plan of another answer: with a new seed, or where the likeliest token is always taken, begun with the likeliest that
 * began none yet. @param {Turn} turn @param {string} system @param {Sampling} asked @param {Lambda | null} lmbda @returns {Plan} */
export const anotherPlan = (turn, system, asked, lmbda) => {
  const shown = shownOf(turn.answers[system]);
  const plain = { answer: newAnswer(system, asked), forced: [], kept: 0 };
  const [first] = shown?.trace.steps ?? [];
  if (!shown || !first || asked.temperature || shown.state === "failed") return plain;
  const isSame = (lmbda === null || lmbda === shown.trace.lmbda) && JSON.stringify(shown.asked) === JSON.stringify(asked);
  if (!isSame) return plain;
  const used = new Set(turn.answers[system].list.map(({ trace }) => trace.steps[0]?.id));
  const end = shown.trace.finish === "eos" ? shown.trace.steps[shown.trace.steps.length - 1].id : -1;
  /** @type {(candidate: import("../core/types.js").Candidate) => number} */
  const chance = ({ p }) => mix(p, shown.trace.system, lambdaAt(first, shown.trace.lmbda));
  const [other] = first.cand.map(candidateOf).filter(({ id, text }) => !used.has(id) && id !== end && text.trim())
    .sort((a, b) => chance(b) - chance(a));
  if (!other) return plain;
  const answer = newAnswer(system, asked, { settings: { forced: [other.id] } });
  answer.how = "again";
  return { answer, forced: [other.id], kept: 0 };
};

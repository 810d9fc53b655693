// @ts-check
/* The worker's side of the door: a plan becomes the values that the page paints, as mlpmem/ui/panels does on a server. */
/** @import { Answer, Lambda, Plan, PlanOf, Step } from "./types.js" */
/** @typedef {AsyncGenerator<Answer, void>} Values */
/** @import { ScrubText, Trace } from "../core/types.js" */
/** @import { Model } from "./engine/fused.js" */
import { breathe } from "./engine/breath.js";
import { LiveError, must } from "./model/errors.js";
import { chatValues } from "./chat.js";
import { Run } from "./engine/generation.js";
import { asked, checkedOptions, checkedText } from "./engine/prompts.js";
import { inspected, probed } from "./engine/scoring.js";
import { Store } from "./own/store.js";

const PERIOD = 60; // milliseconds between deltas
const LAMBDAS = Array.from({ length: 11 }, (_, i) => i / 10);
const MOST_INSPECTED = 8000; // characters
const MOST_TEXT = 2e6; // bytes of an own text
const FAILED = "The run failed in this browser. Reload the page and try again.";

export class Answers {
  /** @param {Model} model */
  constructor(model) {
    this.model = model;
    /** The visitor's own text. @type {Store | null} */
    this.store = null;
  }

  /** Yields a plan's values; an error becomes a message. @param {Plan} plan @param {() => boolean} stopped @returns {Values} */
  async *values(plan, stopped) {
    try {
      if (plan.kind === "compare") yield* this.#compare(plan, stopped);
      else if (plan.kind === "scrub") yield* this.#scrub(plan, stopped);
      else if (plan.kind === "chat") yield* chatValues(this, plan, stopped);
      else if (plan.kind === "inspect") yield* this.#inspect(plan, stopped);
      else if (plan.kind === "probe") yield await this.#probe(plan);
      else if (plan.kind === "own") yield* this.#own(plan, stopped);
      else {
        this.store = null;
        yield { kind: "gone" };
      }
    } catch (error) {
      const text = error instanceof LiveError ? error.message : FAILED;
      if (!(error instanceof LiveError)) console.error(error);
      yield { kind: "message", run: plan.run, text, ...(plan.kind === "probe" ? { number: plan.number, error: text } : {}) };
    }
  }

  /** The datastore to search. @param {boolean} own */
  searched(own) {
    must(!own || this.store !== null, "The run searched a text that is gone. Paste it again.");
    return own ? this.store : null;
  }

  /** @param {string} system @param {Store | null} store */
  check(system, store) {
    must(this.model.systems(store).includes(system) || (system === "mixed" && store !== null && this.model.memory !== null),
      system === "knn" ? "The datastore is not part of this page; paste a text of your own, and this column searches it."
        : "This column has no answer here. Choose another.");
  }

  /** @param {PlanOf<"compare">} plan @param {() => boolean} stopped @returns {Values} */
  async *#compare(plan, stopped) {
    const options = checkedOptions(plan.options);
    const store = this.searched(plan.own);
    const text = checkedText(plan.prompt);
    const { prompt, ids } = asked(this.model, text, options, plan.chat);
    for (const system of plan.systems) this.check(system, store);
    must(plan.forced.length <= options.max_new_tokens, "This column does not support that. Generate again and retry.");
    const systems = plan.systems.map((system) => /** @type {[string, string, Lambda]} */ ([system, system, this.model.lambda(system, plan.lmbda, store)]));
    const job = new Run(this.model, { prompt, ids, systems, options, forced: plan.forced, store, stopped });
    yield* this.#written(plan.run, text, job, stopped);
  }

  /** Yields a run's values: "begin", "steps" at most every PERIOD, "done" with the traces.
   * @param {string} run @param {string} prompt as it was typed @param {Run} job @param {() => boolean} stopped @returns {Values} */
  async *#written(run, prompt, job, stopped) {
    const { options, forced } = job.call;
    const settings = { temperature: options.temperature, ...(forced.length ? { forced } : {}) };
    yield { kind: "begin", run, prompt, traces: Object.fromEntries(job.writers.map(({ name, system, lmbda }) => [name, { system, lmbda, settings }])) };
    /** @type {{ [system: string]: Step[] }} */
    let pending = {};
    let seq = 0;
    let last = performance.now();
    for await (const steps of job.steps()) {
      for (const [name, step] of Object.entries(steps)) {
        pending[name] ??= [];
        pending[name].push(step);
      }
      if (performance.now() - last < PERIOD) continue;
      seq += 1;
      last = performance.now();
      yield { kind: "steps", run, seq, steps: pending };
      pending = {};
    }
    if (!stopped()) yield { kind: "done", run, traces: job.traces };
  }

  /** @param {PlanOf<"scrub">} plan @param {() => boolean} stopped @returns {Values} */
  async *#scrub({ run, prompt, system, lmbda, options: values, forced, own, chat }, stopped) {
    const store = this.searched(own);
    this.check(system, store);
    const options = checkedOptions(values);
    const call = { ...asked(this.model, prompt, options, chat), options, forced, store, stopped };
    yield { kind: "scrub", run, tokens: 0 };
    let begin = performance.now();
    const single = new Run(this.model, { ...call, systems: [[system, system, this.model.lambda(system, lmbda, store)]] });
    for await (const _ of single.steps()) if (stopped()) return;
    const alone = performance.now() - begin;
    begin = performance.now();
    let [tokens, last] = [0, begin];
    const job = new Run(this.model, { ...call, systems: LAMBDAS.map((value) => [`λ${value}`, system, value]) });
    for await (const _ of job.steps()) {
      tokens += 1;
      if (performance.now() - last < PERIOD) continue;
      last = performance.now();
      yield { kind: "scrub", run, tokens };
    }
    if (stopped()) return;
    const seconds = (performance.now() - begin) / 1000;
    yield { kind: "scrubbed", run, cost: { seconds, single: alone / 1000 }, texts: sharedSteps(Object.values(job.traces)) };
  }

  /** @param {PlanOf<"inspect">} plan @param {() => boolean} stopped @returns {Values} */
  async *#inspect({ run, text, ids = [], lmbda, own, special = false }, stopped) {
    const store = this.searched(own);
    const sources = this.model.systems(store).slice(1);
    const lambdas = Object.fromEntries(sources.map((source) => [source, lmbda ?? this.model.live.settings.lmbda[source] ?? 0.5]));
    const system = sources[0] ?? "lm";
    const job = inspected(this.model, { text: checkedText(text, "text", MOST_INSPECTED), ids, special, system, lmbda: lambdas[system] ?? 0, store, stopped });
    yield { kind: "begin", run, traces: {} };
    for await (const event of job) {
      if (event.trace) yield { kind: "done", run, traces: { [system]: event.trace }, lmbdas: sources.length ? lambdas : { lm: 0 } };
      else yield { kind: "progress", run, done: event.done, total: event.total };
    }
  }

  /** @param {PlanOf<"probe">} plan */
  async #probe({ number, ids, text, own }) {
    must(text.trim() !== "" && text.length <= 40, "Type a token: a word of 1 to 40 characters.");
    return { number, rows: await probed(this.model, ids, text, this.searched(own)) };
  }

  /** Keys a visitor's text; the one before stays if this is stopped. @param {PlanOf<"own">} plan @param {() => boolean} stopped @returns {Values} */
  async *#own({ run, text }, stopped) {
    const title = "your text";
    const bytes = new Blob([text]).size;
    must(bytes <= MOST_TEXT, `The text must have at most ${MOST_TEXT / 1e6} MB; it has ${(bytes / 1e6).toFixed(1)} MB. Cut it.`);
    yield { kind: "begin", run, title };
    await breathe();
    const store = new Store(this.model, title);
    let last = 0;
    for await (const progress of store.build(text)) {
      await breathe();
      if (stopped()) return;
      if (performance.now() - last < PERIOD) continue;
      last = performance.now();
      yield { kind: "progress", run, ...progress };
    }
    this.store = store;
    yield { kind: "ready", run, title, documents: 1, tokens: store.tokens, bytes: store.bytes, seconds: 0, note: store.note };
  }
}

/** The traces without the first steps that they share with an earlier one (see ScrubText). @param {Trace[]} traces @returns {ScrubText[]} */
function sharedSteps(traces) {
  return traces.map((trace, i) => {
    let [like, kept] = [0, 0];
    for (const [j, other] of traces.slice(0, i).entries()) {
      const first = trace.steps.findIndex((step, at) => step.id !== other.steps[at]?.id);
      const common = first < 0 ? trace.steps.length : first;
      if (common > kept) [like, kept] = [j, common];
    }
    return { ...trace, like, kept, steps: trace.steps.slice(kept) };
  });
}

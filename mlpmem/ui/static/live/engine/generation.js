// @ts-check
/* Generation: several writers over one prefill, decoded together, as mlpmem/engine/generation.py does.
 *
 * A writer is a system at one lambda. Writers that have written the same tokens share one row. */
/** @import { Lambda, Options, Position, Writer } from "../types.js" */
/** @import { Trace } from "../../core/types.js" */
/** @import { Model } from "./fused.js" */
/** @import { Store } from "../own/store.js" */
/** @import { Cache } from "../model/decoder.js" */
import { partsOf } from "../../core/mix.js";
import { breathe } from "./breath.js";
import { Random, interpolate, mixedArgmax, penalised, sample } from "./distributions.js";
import { otherLogs, reached } from "./fused.js";
import { gap, heard } from "./router.js";
import { stepOf, tableOf } from "./steps.js";
import { TextStream } from "../model/tokenizer.js";
import { REACH, prefixes } from "../own/words.js";

/** What a call writes: `systems` are [name, system, lambda] of its writers.
 * @typedef {{ prompt: string, ids: number[], systems: [string, string, Lambda][], options: Options, forced: number[],
 *   store: Store | null, stopped: () => boolean }} Call */
/** @typedef {{ cache: Cache, position: Position }} Row */

export class Run {
  /** @param {Model} model @param {Call} call */
  constructor(model, call) {
    this.model = model;
    this.call = call;
    this.random = new Random(call.options.seed);
    /** @type {{ [part: string]: number[] }} */
    this.times = {}; // ms per token and row; "head" is the decoder's
    this.prefill = 0; // ms of the decoder for the prompt
    /** Milliseconds per other source for the prompt. @type {{ [part: string]: number }} */
    this.read = {};
    /** @type {Writer[]} */
    this.writers = call.systems.map(([name, system, lmbda]) => {
      const text = new TextStream();
      return { name, system, lmbda, evidence: 0, steps: [], finish: "", row: 0, ids: [], push: (bytes) => text.push(bytes) };
    });
  }

  /** Yields the steps of each token by writer's name; `traces` has the result. */
  async *steps() {
    const { call } = this;
    let begin = performance.now();
    const prefilled = await this.#prefill();
    if (!prefilled) return;
    const { cache, positions } = prefilled;
    /** @type {Row[]} */
    let rows = [];
    for (let count = 0; this.#live.length; count += 1) {
      if (call.stopped()) {
        for (const writer of this.#live) writer.finish = "stop";
        return;
      }
      if (count) begin = performance.now();
      if (count < positions.length) rows = [{ cache, position: positions[count] }];
      else rows = this.#decode(rows);
      const live = this.#live;
      this.#choose(rows, live, begin);
      yield Object.fromEntries(live.map((writer) => [writer.name, writer.steps[writer.steps.length - 1]]));
      await breathe();
    }
  }

  get #live() {
    return this.writers.filter((writer) => !writer.finish);
  }

  /** Reads the prompt and the forced tokens together; returns the positions whose next tokens are written, null if stopped.
   * @returns {Promise<{ cache: Cache, positions: Position[] } | null>} */
  async #prefill() {
    const { model, call: { ids, forced, stopped } } = this;
    const { shape: { D }, width } = model.decoder;
    const routed = this.writers.filter((writer) => writer.lmbda === "auto" && model.readsEvidence(writer.system, this.call.store));
    const count = routed.length ? reached(ids.length) : 0; // rows whose next token is evidence
    const cache = model.decoder.cache();
    /** @type {Position[]} */
    const positions = [];
    let row = ids.length - 1 - count; // the first row that anything is asked of
    let read = 0; // rows
    let begin = performance.now();
    for (const { hidden, features } of model.read([...ids, ...forced], cache)) {
      this.prefill += performance.now() - begin;
      const first = Math.max(0, row - read);
      read += features.length / D;
      const asked = row < read ? this.#sourced({ hidden: hidden.subarray(first * width), features: features.subarray(first * D) }, row) : [];
      for (const position of asked) {
        row += 1; // the place of the token after it
        if (row >= ids.length) positions.push(copied(position));
        else for (const writer of routed) this.#hear(writer, position, ids[row]);
      }
      await breathe();
      if (stopped()) return null;
      begin = performance.now();
    }
    return { cache, positions };
  }

  /** Adds a token to a writer's evidence. @param {Writer} writer @param {Position} position before it @param {number} token */
  #hear(writer, { logs }, token) {
    writer.evidence = heard(writer.evidence, gap(logs.lm, otherLogs(logs, writer.system), token));
  }

  /** Every source at some rows of the prompt, with its time. @param {import("../types.js").States} states @param {number} row the first one's place */
  #sourced(states, row) {
    const { model, call: { ids, forced, store } } = this;
    const rows = states.features.length / model.decoder.shape.D;
    return model.positionsOf(states, store, prefixes([...ids, ...forced], row + 1, rows), (part, ms) => {
      if (part === "head") this.prefill += ms * rows;
      else this.read[part] = (this.read[part] ?? 0) + ms * rows;
    });
  }

  /** @param {string} part @param {number} ms */
  #record(part, ms) {
    this.times[part] ??= [];
    this.times[part].push(ms);
  }

  /** The rows after each live writer's last token, one per distinct history. @param {Row[]} rows @returns {Row[]} */
  #decode(rows) {
    const begin = performance.now();
    /** @type {Map<string, { parent: number, token: number }>} */
    const histories = new Map();
    for (const writer of this.#live) {
      const token = writer.ids[writer.ids.length - 1];
      const key = `${writer.row} ${token}`;
      if (!histories.has(key)) histories.set(key, { parent: writer.row, token });
      writer.row = [...histories.keys()].indexOf(key);
    }
    const used = new Set();
    const caches = [...histories.values()].map(({ parent }) => {
      const { cache } = rows[parent];
      const own = used.has(parent) ? cache.fork() : cache;
      used.add(parent);
      return own;
    });
    const tokens = [...histories.values()].map(({ token }) => token);
    const states = this.model.decoder.forward(tokens, caches);
    this.#record("decoder", (performance.now() - begin) / tokens.length);
    /** @type {number[][]} */
    const read = [];
    for (const writer of this.#live) read[writer.row] = [...this.call.ids, ...writer.ids].slice(-REACH);
    const positions = this.model.positionsOf(states, this.call.store, read, (part, ms) => this.#record(part, ms));
    return positions.map((position, r) => ({ cache: caches[r], position }));
  }

  /** Adds a step to every live writer. @param {Row[]} rows @param {Writer[]} live @param {number} begin */
  #choose(rows, live, begin) {
    const { call: { forced, store } } = this;
    const uniform = this.random.uniform();
    const chosen = live.map((writer) => {
      const { position } = rows[writer.row];
      const { logs } = position;
      const other = otherLogs(logs, writer.system);
      const weight = writer.lmbda === "auto" ? this.model.routed(writer.system, position, writer.evidence, store) : writer.lmbda;
      const token = forced[writer.steps.length] ?? this.#next(logs.lm, other, weight, writer, uniform);
      this.#hear(writer, position, token);
      return { token, weight };
    });
    const tables = rows.map(({ position }, r) => tableOf(position, chosen.flatMap(({ token }, w) => (live[w].row === r ? [token] : [])), store));
    const ms = performance.now() - begin;
    for (const [w, writer] of live.entries()) this.#write(writer, chosen[w], tables[writer.row], ms);
  }

  /** The next token of a mix. @param {Float32Array} lm @param {Float32Array} other @param {number} weight @param {Writer} writer
   * @param {number} uniform */
  #next(lm, other, weight, writer, uniform) {
    const { options, ids } = this.call;
    if (options.temperature === 0 && options.repetition_penalty === 1) return mixedArgmax(lm, other, weight);
    const fused = interpolate(lm, other, weight);
    return sample(options.repetition_penalty === 1 ? fused
      : penalised(fused, [...ids, ...writer.ids], options.repetition_penalty), options, uniform);
  }

  /** @param {Writer} writer @param {{ token: number, weight: number }} choice @param {import("./steps.js").Table} table @param {number} ms */
  #write(writer, { token, weight }, table, ms) {
    const { model: { tokenizer, eos }, call: { options } } = this;
    const text = tokenizer.special.has(token) ? tokenizer.pieces[token] : writer.push(tokenizer.bytes[token]);
    writer.ids.push(token);
    writer.steps.push(stepOf(table, tokenizer.pieces, writer.system, weight, { index: writer.steps.length, id: token, text, ms,
      routed: writer.lmbda === "auto" }));
    if (eos.has(token)) writer.finish = "eos";
    else if (options.stop.some((stop) => tokenizer.decode(writer.ids).includes(stop))) writer.finish = "stop_string";
    else if (writer.steps.length === options.max_new_tokens) writer.finish = "length";
  }

  /** The traces by writer's name. @returns {{ [name: string]: Trace }} */
  get traces() {
    return Object.fromEntries(this.writers.map((writer) => [writer.name, this.#trace(writer)]));
  }

  /** @param {Writer} writer @returns {Trace} */
  #trace(writer) {
    const { model: { live, tokenizer }, call: { prompt, ids, options, forced } } = this;
    const { lmbda: _, auto: __, ...settings } = live.settings;
    const { special, stop, min_p: minP, repetition_penalty: penalty, ...plain } = options;
    let text = tokenizer.written(writer.ids);
    if (writer.finish === "stop_string") text = text.slice(0, Math.min(...stop.map((one) => text.indexOf(one)).filter((at) => at >= 0)));
    return { v: 1, system: writer.system, prompt, prompt_ids: ids, lmbda: writer.lmbda, model: { bundle: live.name },
      settings: { ...settings, ...plain, ...(minP ? { min_p: minP } : {}), ...(penalty !== 1 ? { repetition_penalty: penalty } : {}),
        ...(stop.length ? { stop } : {}), ...(forced.length ? { forced } : {}), ...(special ? { special } : {}) },
      steps: writer.steps, finish: writer.finish, text, cost: this.#cost(writer) };
  }

  /** Medians in milliseconds per token, and bytes, by part. @param {Writer} writer */
  #cost({ system, lmbda }) {
    const { model, times, prefill, read, call: { store } } = this;
    const decoder = times.decoder ? median(times.decoder) + median(times.head) : prefill;
    const parts = partsOf(system);
    /** @type {{ [part: string]: number }} */
    const evidence = lmbda === "auto" ? { evidence_ms: parts.reduce((sum, part) => sum + (read[part === "knn" ? "search" : part] ?? 0), 0) } : {};
    return { prefill_ms: prefill, decoder_ms: decoder, decoder_bytes: model.decoder.bytes,
      ...(model.memory ? { memory_bytes: model.memory.bytes } : {}), ...(times.memory ? { memory_ms: median(times.memory) } : {}),
      ...(store ? { datastore_bytes: store.bytes } : {}), ...(times.search ? { search_ms: median(times.search) } : {}), ...evidence };
  }
}

/** A position that the next one does not overwrite. @param {Position} position @returns {Position} */
const copied = ({ logs, ...rest }) =>
  ({ logs: Object.fromEntries(Object.entries(logs).map(([source, log]) => [source, log.slice()])), ...rest });

/** @param {number[]} values */
function median(values) {
  const sorted = values.toSorted((a, b) => a - b);
  return (sorted[Math.floor((sorted.length - 1) / 2)] + sorted[Math.ceil((sorted.length - 1) / 2)]) / 2;
}

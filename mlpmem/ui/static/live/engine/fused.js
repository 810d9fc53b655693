// @ts-check
/* A model in the browser: decoder, memory and routers of a bundle, and every source's log-probs at its rows. */
/** @import { Found, Lambda, Live, Position, States } from "../types.js" */
/** @import { Store } from "../own/store.js" */
import { partsOf } from "../../core/mix.js";
import { Decoder, ROWS } from "../model/decoder.js";
import { LiveError, must } from "../model/errors.js";
import { decoderOf } from "../model/families.js";
import { interpolate, logSoftmax } from "./distributions.js";
import { Blocks } from "../model/weights/gguf.js";
import { Memory, checkMemory } from "../model/memory.js";
import { Arena, compiled } from "../model/products/products.js";
import { REACH, Router } from "./router.js";
import { Tokenizer } from "../model/tokenizer.js";
import { Weights } from "../model/weights/weights.js";

const WARM = 150; // milliseconds
const [WHOLE, BLOCKS, GENERAL] = ["decoder/model.safetensors", "decoder/blocks.gguf", "general.safetensors"];

/** @param {Map<string, Uint8Array>} files @param {string} name */
function json(files, name) {
  try {
    return JSON.parse(new TextDecoder().decode(files.get(name)));
  } catch {
    throw new LiveError(`${name} is not JSON. Build the folder again.`);
  }
}

export class Model {
  /** Reads a bundle's files; throws a LiveError for a kind that does not run here.
   * @param {Live} live @param {Map<string, Uint8Array>} files by name, emptied while they are read @param {boolean} [plain] without the kernel */
  static async of(live, files, plain = false) {
    const { family, shape } = decoderOf(json(files, "decoder/config.json"));
    const tokenizer = new Tokenizer(json(files, "decoder/tokenizer.json"), json(files, "decoder/tokenizer_config.json"));
    const memoryConfig = files.has("memory/config.json") ? json(files, "memory/config.json") : null;
    if (memoryConfig) checkMemory(memoryConfig, shape, await tokenizer.hash());
    /** @template T @param {string} name @param {(weights: Weights) => T} make @returns {T} */
    const made = (name, make) => {
      const weights = new Weights(files.get(name) ?? new Uint8Array(), name);
      files.delete(name);
      const part = make(weights);
      weights.free();
      return part;
    };
    const kernel = plain ? null : compiled();
    const blocks = files.get(BLOCKS);
    const weights = blocks ? new Blocks(blocks, BLOCKS, json(files, "decoder/places.json")) : new Weights(files.get(WHOLE) ?? new Uint8Array(), WHOLE);
    for (const name of [WHOLE, BLOCKS]) files.delete(name);
    const arena = new Arena(kernel, Decoder.room(family, shape, weights.packed) + (memoryConfig ? Memory.room(memoryConfig) : 0),
      blocks && kernel && compiled(true));
    const decoder = new Decoder(family, shape, weights, arena, memoryConfig?.depth ?? -1);
    weights.free();
    const memory = memoryConfig ? made("memory/model.safetensors", (weights) => new Memory(memoryConfig, weights, decoder)) : null;
    decoder.context = memory?.context ?? null;
    const routers = [...files.keys()].filter((name) => /^router\/.+\/config\.json$/.test(name)).map((name) =>
      made(name.replace("config.json", "model.safetensors"), (weights) => Router.of(json(files, name), weights)));
    const model = new Model(live, decoder, memory, routers, tokenizer, kernel);
    const general = files.get(GENERAL);
    model.general = general ? new Weights(general, GENERAL) : null;
    model.#warm();
    return model;
  }

  /** @param {Live} live @param {Decoder} decoder @param {Memory | null} memory @param {Router[]} routers @param {Tokenizer} tokenizer @param {WebAssembly.Module | null} kernel */
  constructor(live, decoder, memory, routers, tokenizer, kernel) {
    this.live = live;
    this.decoder = decoder;
    this.memory = memory;
    this.routers = new Map(routers.map((router) => [router.system, router]));
    this.tokenizer = tokenizer;
    this.kernel = kernel;
    this.eos = new Set(live.eos);
    /** States of general requests, which a gate is fitted to. @type {Weights | null} */
    this.general = null;
  }

  /** Answers a while to nobody, so that the browser has compiled the passes before the first question. */
  #warm() {
    const cache = this.decoder.cache();
    for (const begin = performance.now(); performance.now() - begin < WARM && cache.length + 4 < this.positions;) {
      for (const states of this.read([0, 0, 0, 0], cache)) this.positionsOf(states, null, []);
    }
  }

  get positions() {
    return this.decoder.shape.positions;
  }

  /** The systems that answer, with the visitor's own datastore if there is one. @param {Store | null} store */
  systems(store) {
    return ["lm", ...(this.memory ? ["memory"] : []), ...(store ? ["knn"] : [])];
  }

  /** A system's lambda: the requested one, its router's, or its own. A visitor's text has a gate, which chooses by default.
   * @param {string} system @param {Lambda | null} requested @param {Store | null} store @returns {Lambda} */
  lambda(system, requested, store) {
    if (system === "lm") return 0;
    if (requested !== null && requested !== "auto") return requested;
    const { lmbda, auto } = this.live.settings;
    if (system === "knn" && store) return "auto";
    const routed = this.routers.has(system) && !partsOf(system).includes("knn");
    return routed && (requested === "auto" || auto) ? "auto" : lmbda[system] ?? 0.5;
  }

  /** Lambda of a system with a router or gate, at a position. @param {string} system @param {Position} position @param {number} evidence
   * @param {Store | null} store */
  routed(system, { logs, state, found }, evidence, store) {
    const other = otherLogs(logs, system);
    if (system === "knn" && store?.gate && found) return store.gate.lambda(logs.lm, other, evidence, found.near, nearest(found));
    return this.routers.get(system)?.lambda(logs.lm, other, evidence, state) ?? 0;
  }

  /** Whether a system's router or gate reads evidence, so a prompt must be scored for it. @param {string} system @param {Store | null} store */
  readsEvidence(system, store) {
    return system === "knn" && store?.gate ? store.gate.evidence : this.routers.get(system)?.evidence ?? false;
  }

  /** Every source's log-probs at R rows, in arrays that the next call overwrites. @param {States} states @param {Store | null} store
   * @param {number[][]} read the token ids that each row has read, which a store needs
   * @param {(part: string, ms: number) => void} [clock] takes the milliseconds of a part, per row @returns {Position[]} */
  positionsOf({ hidden, features }, store, read, clock = () => {}) {
    const { shape: { D, V }, width } = this.decoder;
    const rows = features.length / D;
    /** @type {Position[]} */
    const positions = Array.from({ length: rows }, (_, r) => ({ logs: {}, found: null, state: hidden.subarray(r * width, (r + 1) * width) }));
    /** @param {string} part @param {() => void} work */
    const timed = (part, work) => {
      const begin = performance.now();
      work();
      clock(part, (performance.now() - begin) / rows);
    };
    timed("head", () => {
      const logits = this.decoder.logits(features);
      for (const [r, { logs }] of positions.entries()) logs.lm = logSoftmax(logits.subarray(r * V, (r + 1) * V));
    });
    const { memory } = this;
    if (memory) timed("memory", () => {
      const logits = memory.logits(hidden);
      const { memory_temperature: temperature } = this.live.settings;
      for (const [r, { logs }] of positions.entries()) logs.memory = logSoftmax(logits.subarray(r * V, (r + 1) * V), temperature);
    });
    if (store) timed("search", () => {
      for (const [r, position] of positions.entries()) {
        position.found = store.find(position.state.subarray(0, D), read[r]);
        position.logs.knn = store.logProbs(position.found, position.logs.lm);
      }
    });
    for (const [source, log] of Object.entries(positions[0]?.logs ?? {})) {
      must(!Number.isNaN(log[0]), `The ${source === "lm" ? "decoder" : source} gives values that are not numbers. Reload the page.`);
    }
    return positions;
  }

  /** Reads token ids into a cache, in passes of at most ROWS; gives each pass's states.
   * @param {number[]} ids @param {import("../model/decoder.js").Cache} cache @param {boolean} [headless] */
  *read(ids, cache, headless = false) {
    for (let at = 0; at < ids.length; at += ROWS) {
      const some = ids.slice(at, at + ROWS);
      yield this.decoder.forward(some, some.map(() => cache), headless);
    }
  }
}

/** log(1 + the least distance of a search), as a gate reads it. @param {Found} found */
export const nearest = ({ distances }) => (distances.length ? Math.log1p(distances[0]) : Infinity);

/** How many of a prompt's last tokens are evidence; the first never is. @param {number} length */
export const reached = (length) => Math.min(REACH, length - 1);

/** The log-probs that a system mixes into the decoder's. @param {{ [source: string]: Float32Array }} logs @param {string} system */
export function otherLogs(logs, system) {
  const [first, second] = partsOf(system).map((part) => logs[part]);
  return second ? interpolate(first, second, 0.5) : first ?? logs.lm;
}

// @ts-check
/* The memory: blocks of norm and SwiGLU, from one hidden state to a distribution over the vocabulary.
 *
 * It reads rows that do not know of one another. One with a context has a door before its blocks, which reads the hidden
 * state and the context vectors that follow it. Letters: K numbers of a state. */
/** @import { Matrix } from "./products/products.js" */
/** @import { Weights } from "./weights.js" */
/** @import { Decoder, Shape } from "./decoder.js" */
import { Context } from "./context.js";
import { ROWS, norm, swiglu } from "./decoder.js";
import { must } from "./errors.js";
import { room } from "./products/products.js";

/** @typedef {{ [name: string]: any }} Config of config.json
 * @typedef {{ input: Float32Array, gate: Matrix, up: Matrix, down: Matrix }} Block
 * @typedef {{ mean: Float32Array, scale: Float32Array, weight: Matrix, read: Float32Array }} Door */

/** Throws a LiveError for a memory of another decoder or of another family.
 * @param {Config} config @param {Shape} shape @param {string} hash of the decoder's tokenizer */
export function checkMemory(config, shape, hash) {
  must(config.family === "llama", `This bundle's memory is of the family ${config.family}, which does not run in the browser; llama does.`);
  const same = config.hidden_size === shape.D && config.vocab_size === shape.V && (!config.tokenizer_hash || config.tokenizer_hash === hash);
  must(same, "This bundle's memory belongs to another decoder. Build the folder again from a whole bundle.");
}

export class Memory {
  /** The numbers that a memory takes in an arena. @param {Config} config */
  static room({ num_layers: layers, hidden_size: D, intermediate_size: inner, vocab_size: V, tied_head: tied, context = [] }) {
    const K = D * (1 + context.length);
    const door = context.length ? 2 * room(K) + room(D * K) + room(ROWS * K) : 0;
    return door + layers * (room(D) + 3 * room(D * inner)) + room(D) + (tied ? 0 : room(V * D)) +
      2 * room(ROWS * inner) + room(ROWS * V) + 2 * room(ROWS * D) + room(ROWS * Math.max(K, inner));
  }

  /** @param {Config} config @param {Weights} weights @param {Decoder} decoder in whose arena it lies */
  constructor(config, weights, decoder) {
    const { num_layers: layers, hidden_size: D, intermediate_size: inner, vocab_size: V } = config;
    const { arena } = decoder;
    const begin = arena.taken;
    /** @type {(name: string, width: number, depth: number) => Matrix} */
    const read = (name, ...sizes) => weights.matrix(`${name}.weight`, sizes, arena);
    /** @type {(name: string) => Float32Array} */
    const vector = (name) => weights.copy(`${name}.weight`, [D], arena.take(D));
    this.config = config;
    this.arena = arena;
    const lives = config.context ?? [];
    const K = D * (1 + lives.length);
    this.context = lives.length ? new Context(lives, D, weights.copy("token_weights", [V], new Float32Array(V)), config.turn) : null;
    /** @type {Door | null} */
    this.door = this.context && { mean: weights.copy("door.mean", [K], arena.take(K)), scale: weights.copy("door.scale", [K], arena.take(K)),
      weight: read("door.linear", D, K), read: arena.take(ROWS * K) };
    /** @type {Block[]} */
    this.blocks = Array.from({ length: layers }, (_, l) => ({ input: vector(`layers.${l}.input_layernorm`),
      gate: read(`layers.${l}.mlp.gate_proj`, inner, D), up: read(`layers.${l}.mlp.up_proj`, inner, D),
      down: read(`layers.${l}.mlp.down_proj`, D, inner) }));
    this.last = vector("norm");
    this.head = config.tied_head ? decoder.head : read("lm_head", V, D);
    this.bytes = arena.taken - begin;
    this.x = arena.take(ROWS * D);
    this.n = arena.take(ROWS * D);
    this.gate = arena.take(ROWS * inner);
    this.up = arena.take(ROWS * inner);
    this.scores = arena.take(ROWS * V);
    arena.takeSpread(ROWS * Math.max(K, inner));
  }

  /** The logits of states, in an array that the next call overwrites.
   * @param {Float32Array} states (R, K), R at most ROWS @returns {Float32Array} (R, V) */
  logits(states) {
    const { arena, x, n, gate, up, config: { hidden_size: D, intermediate_size: inner, vocab_size: V, norm_eps: eps } } = this;
    const R = states.length / (D + (this.context?.width ?? 0));
    this.#enter(states, R);
    for (const block of this.blocks) {
      norm(x, block.input, n, R, eps);
      arena.product(n, block.gate, gate, R, D, inner);
      arena.product(n, block.up, up, R, D, inner);
      swiglu(gate, up, R * inner);
      arena.product(gate, block.down, n, R, inner, D);
      for (let i = 0; i < R * D; i += 1) x[i] += n[i];
    }
    norm(x, this.last, n, R, eps);
    arena.product(n, this.head, this.scores, R, D, V);
    return this.scores;
  }

  /** Writes what the first block reads. @param {Float32Array} states (R, K) @param {number} R */
  #enter(states, R) {
    const { door, x, config: { hidden_size: D } } = this;
    if (!door) {
      x.set(states);
      return;
    }
    const { mean, scale, weight, read } = door;
    const K = mean.length;
    for (let at = 0; at < R * K; at += K) {
      for (let i = 0; i < K; i += 1) read[at + i] = (states[at + i] - mean[i]) / scale[i];
    }
    this.arena.product(read, weight, x, R, K, D);
  }
}

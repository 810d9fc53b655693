// @ts-check
/* The memory: blocks of norm and FFN, from one hidden state to a distribution over the vocabulary.
 *
 * It reads rows that do not know of one another, and its family need not be its decoder's. One with a context has a door
 * before its blocks, which reads the hidden state and the context vectors that follow it. Letters: K numbers of a state. */
/** @import { Config, Shape } from "./families.js" */
/** @import { Ffn, Norm } from "./layers.js" */
/** @import { Matrix } from "./products/products.js" */
/** @import { Weights } from "./weights/weights.js" */
/** @import { Decoder } from "./decoder.js" */
import { Context } from "./context.js";
import { ROWS } from "./decoder.js";
import { must } from "./errors.js";
import { familyOf } from "./families.js";
import { Reader, feedForward, normalise, roomsOf } from "./layers.js";
import { room } from "./products/products.js";

/** @typedef {{ norm: Norm, ffn: Ffn }} Block
 * @typedef {{ mean: Float32Array, scale: Float32Array, weight: Matrix, read: Float32Array }} Door */

/** Throws a LiveError for a memory of another decoder or of another family.
 * @param {Config} config @param {Shape} shape @param {string} hash of the decoder's tokenizer */
export function checkMemory(config, shape, hash) {
  familyOf(config.family, "memory");
  const same = config.hidden_size === shape.D && config.vocab_size === shape.V && (!config.tokenizer_hash || config.tokenizer_hash === hash);
  must(same, "This bundle's memory belongs to another decoder. Build the folder again from a whole bundle.");
}

export class Memory {
  /** The numbers that a memory takes in an arena. @param {Config} config */
  static room({ family, num_layers: layers, hidden_size: D, intermediate_size: inner, vocab_size: V, tied_head: tied, context = [], asked = false }) {
    const { norm, ffn } = roomsOf(familyOf(family, "memory"));
    const K = D * (1 + context.length + (asked ? 1 : 0));
    const door = context.length ? 2 * room(K) + room(D * K) + room(ROWS * K) : 0;
    return door + layers * (norm(D) + ffn(D, inner)) + norm(D) + (tied ? 0 : room(V * D)) +
      2 * room(ROWS * inner) + room(ROWS * V) + 2 * room(ROWS * D) + room(ROWS * Math.max(K, inner));
  }

  /** @param {Config} config @param {Weights} weights @param {Decoder} decoder in whose arena it lies */
  constructor(config, weights, decoder) {
    const { num_layers: layers, hidden_size: D, intermediate_size: inner, vocab_size: V } = config;
    const { arena } = decoder;
    const begin = arena.taken;
    const family = familyOf(config.family, "memory");
    const reader = new Reader(family, weights, arena);
    this.config = config;
    this.arena = arena;
    const lives = config.context ?? [];
    const named = (/** @type {string} */ name) => weights.copy(name, [V], new Float32Array(V));
    this.context = lives.length ? new Context(lives, D, named("token_weights"), config.turn, config.asked ? named("sentence_ends") : null) : null;
    const K = D + (this.context?.width ?? 0);
    /** @type {Door | null} */
    this.door = this.context && { mean: reader.vector("door.mean", K), scale: reader.vector("door.scale", K),
      weight: reader.matrix("door.linear", D, K), read: arena.take(ROWS * K) };
    /** @type {Block[]} */
    this.blocks = Array.from({ length: layers }, (_, l) => ({ norm: reader.norm(`${family.layers}.${l}.${family.norms[0]}`, D),
      ffn: reader.ffn(`${family.layers}.${l}`, D, inner) }));
    this.last = reader.norm(family.last, D);
    this.head = config.tied_head ? decoder.head : reader.matrix("lm_head", V, D);
    this.bytes = arena.taken - begin;
    this.x = arena.take(ROWS * D);
    this.n = arena.take(ROWS * D);
    /** @type {[Float32Array, Float32Array]} */
    this.inner = [arena.take(ROWS * inner), arena.take(ROWS * inner)];
    this.scores = arena.take(ROWS * V);
    arena.takeSpread(ROWS * Math.max(K, inner));
  }

  /** The logits of states, in an array that the next call overwrites.
   * @param {Float32Array} states (R, K), R at most ROWS @returns {Float32Array} (R, V) */
  logits(states) {
    const { arena, x, n, inner, config: { hidden_size: D, vocab_size: V, norm_eps: eps } } = this;
    const R = states.length / (D + (this.context?.width ?? 0));
    this.#enter(states, R);
    for (const block of this.blocks) {
      normalise(x, block.norm, n, R, eps);
      feedForward(arena, block.ffn, x, n, inner, R);
    }
    normalise(x, this.last, n, R, eps);
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

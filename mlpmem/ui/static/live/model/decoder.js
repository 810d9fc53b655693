// @ts-check
/* A decoder of Llama's shape: grouped heads, rotary positions, SwiGLU; the head is its own or the embeddings.
 *
 * Letters: R rows, D hidden size, H heads, G key-value heads, C numbers per head. */
/** @import { Arena, Matrix } from "./products/products.js" */
/** @import { Context } from "./context.js" */
/** @import { Blocks } from "./gguf.js" */
/** @import { Weights } from "./weights.js" */
import { preparedRoom } from "./products/blocks.js";
import { must } from "./errors.js";
import { copyRow, room } from "./products/products.js";

export const ROWS = 32; // rows of one pass; a longer prompt takes several

/** @typedef {{ [name: string]: any }} Config of config.json
 * @typedef {{ layers: number, D: number, H: number, G: number, C: number, inner: number, V: number, eps: number, theta: number,
 *   positions: number, tied: boolean }} Shape
 * @typedef {{ input: Float32Array, q: Matrix, k: Matrix, v: Matrix, o: Matrix, post: Float32Array, gate: Matrix, up: Matrix,
 *   down: Matrix }} Layer */

/** The sizes in a config; throws a LiveError for a decoder that this file cannot run. @param {Config} config @returns {Shape} */
export function shapeOf(config) {
  const rope = config.rope_parameters ?? { rope_type: config.rope_scaling?.rope_type, rope_theta: config.rope_theta };
  const other = [
    [config.model_type !== "llama", `of the family ${config.model_type}`],
    [config.hidden_act !== "silu", `with the activation ${config.hidden_act}`],
    [config.attention_bias || config.mlp_bias, "with biases"],
    [(config.head_dim ?? config.hidden_size / config.num_attention_heads) % 4, "with heads whose size is not a multiple of 4"],
    [!["default", undefined].includes(rope.rope_type), `with ${rope.rope_type} positions`],
  ].find(([wrong]) => wrong);
  must(!other, `This bundle's decoder is ${other?.[1]}, which does not run in the browser; Llama's does.`);
  const H = config.num_attention_heads;
  const D = config.hidden_size;
  return { layers: config.num_hidden_layers, D, H, G: config.num_key_value_heads ?? H, C: config.head_dim ?? D / H,
    inner: config.intermediate_size, V: config.vocab_size, eps: config.rms_norm_eps, theta: rope.rope_theta ?? 10000,
    positions: config.max_position_embeddings, tied: Boolean(config.tie_word_embeddings) };
}

/** Root-mean-square norm of rows: x / rms(x) * weight.
 * @param {Float32Array} x (rows, D) @param {Float32Array} weight (D,) @param {Float32Array} out @param {number} rows @param {number} eps */
export function norm(x, weight, out, rows, eps) {
  const D = weight.length;
  for (let at = 0; at < rows * D; at += D) {
    let sum = 0;
    for (let i = at; i < at + D; i += 1) sum += x[i] * x[i];
    const scale = 1 / Math.sqrt(sum / D + eps);
    for (let i = 0; i < D; i += 1) out[at + i] = x[at + i] * scale * weight[i];
  }
}

/** gate = silu(gate) * up. @param {Float32Array} gate @param {Float32Array} up @param {number} count */
export function swiglu(gate, up, count) {
  for (let i = 0; i < count; i += 1) gate[i] = (gate[i] / (1 + Math.exp(-gate[i]))) * up[i];
}

/** The keys and values of the tokens that a text has so far. */
export class Cache {
  /** @param {number} layers @param {number} width of a key: G * C @param {Float32Array} sums of the context, empty without one */
  constructor(layers, width, sums) {
    this.width = width;
    this.sums = sums;
    this.length = 0; // tokens
    this.keys = Array.from({ length: layers }, () => new Float32Array(64 * width));
    this.values = Array.from({ length: layers }, () => new Float32Array(64 * width));
  }

  /** Makes room for tokens up to a length. @param {number} length */
  grow(length) {
    if (length * this.width <= this.keys[0].length) return;
    for (const arrays of [this.keys, this.values]) {
      for (const [l, old] of arrays.entries()) {
        arrays[l] = new Float32Array(2 * length * this.width);
        arrays[l].set(old);
      }
    }
  }

  /** A copy that grows by itself. */
  fork() {
    const copy = new Cache(0, this.width, this.sums.slice());
    copy.length = this.length;
    copy.keys = this.keys.map((array) => array.slice());
    copy.values = this.values.map((array) => array.slice());
    return copy;
  }
}

export class Decoder {
  /** The numbers that a decoder takes in an arena. @param {Shape} shape @param {number} packed those of weights in blocks, 0 without */
  static room({ layers, D, H, G, C, inner, V, tied }, packed) {
    const layer = 2 * room(D) + 2 * room(H * C * D) + 2 * room(G * C * D) + 3 * room(inner * D);
    const scratch = room(ROWS * D) + 2 * room(ROWS * Math.max(D, H * C)) + 2 * room(ROWS * G * C) +
      2 * room(ROWS * inner) + room(ROWS * V);
    if (packed) return packed + scratch + room(preparedRoom(ROWS, Math.max(D, H * C, inner)));
    return (tied ? 1 : 2) * room(V * D) + room(D) + layers * layer + scratch + room(ROWS * Math.max(D, H * C, inner));
  }

  /** @param {Shape} shape @param {Weights | Blocks} weights @param {Arena} arena @param {number} depth of the layer whose FFN input is the hidden state */
  constructor(shape, weights, arena, depth = -1) {
    const { layers, D, H, G, C, inner, V } = shape;
    this.shape = shape;
    this.arena = arena;
    this.depth = (depth + layers) % layers;
    /** What of the text's words follows a hidden state, if the memory reads it. @type {Context | null} */
    this.context = null;
    /** @type {(name: string, width: number, depth: number) => Matrix} */
    const read = (name, ...sizes) => weights.matrix(`${name}.weight`, sizes, arena);
    /** @type {(name: string) => Float32Array} */
    const vector = (name) => weights.copy(`${name}.weight`, [D], arena.take(D));
    this.embeddings = read("model.embed_tokens", V, D);
    this.head = shape.tied ? this.embeddings : read("lm_head", V, D);
    this.last = vector("model.norm");
    /** @type {Layer[]} */
    this.layers = Array.from({ length: layers }, (_, l) => {
      const at = `model.layers.${l}`;
      return { input: vector(`${at}.input_layernorm`), post: vector(`${at}.post_attention_layernorm`),
        q: read(`${at}.self_attn.q_proj`, H * C, D), k: read(`${at}.self_attn.k_proj`, G * C, D),
        v: read(`${at}.self_attn.v_proj`, G * C, D), o: read(`${at}.self_attn.o_proj`, D, H * C),
        gate: read(`${at}.mlp.gate_proj`, inner, D), up: read(`${at}.mlp.up_proj`, inner, D),
        down: read(`${at}.mlp.down_proj`, D, inner) };
    });
    this.bytes = arena.taken;
    if (weights.packed) arena.takePrepared(ROWS, Math.max(D, H * C, inner));
    else arena.takeSpread(ROWS * Math.max(D, H * C, inner));
    this.x = arena.take(ROWS * D);
    this.n = arena.take(ROWS * Math.max(D, H * C));
    this.q = arena.take(ROWS * Math.max(D, H * C));
    this.k = arena.take(ROWS * G * C);
    this.v = arena.take(ROWS * G * C);
    this.gate = arena.take(ROWS * inner);
    this.up = arena.take(ROWS * inner);
    this.scores = arena.take(ROWS * V);
    this.scratch = new Float32Array(shape.positions + 1); // attention weights of one head
    this.rates = Array.from({ length: C / 2 }, (_, i) => Math.fround(shape.theta ** ((-2 * i) / C)));
  }

  /** The numbers of a state: the hidden state, and the context vectors behind it. */
  get width() {
    return this.shape.D + (this.context?.width ?? 0);
  }

  cache() {
    return new Cache(this.shape.layers, this.shape.G * this.shape.C, this.context?.sums() ?? new Float32Array());
  }

  /** Reads one more token per row; rows of one cache follow one another. Returns each row's hidden state and what enters
   * the head, or hidden states only. Context vectors follow a hidden state.
   * @param {number[]} tokens (R,), at most ROWS @param {Cache[]} caches (R,) @param {boolean} [headless]
   * @returns {{ hidden: Float32Array, features: Float32Array }} (R, width) and (R, D) */
  forward(tokens, caches, headless = false) {
    const { shape: { D, H, G, C, inner, eps }, arena, context, width, x, n, q, k, v, gate, up } = this;
    const R = tokens.length;
    const hidden = new Float32Array(R * width);
    const places = caches.map((cache, r) => cache.length + caches.slice(0, r).filter((other) => other === cache).length);
    for (const [r, token] of tokens.entries()) {
      const embedding = x.subarray(r * D, (r + 1) * D);
      copyRow(this.embeddings, token, embedding);
      context?.read(token, embedding, caches[r].sums, hidden.subarray(r * width + D, (r + 1) * width));
      caches[r].grow(places[r] + 1);
    }
    for (const [l, layer] of this.layers.entries()) {
      norm(x, layer.input, n, R, eps);
      arena.product(n, layer.q, q, R, D, H * C);
      arena.product(n, layer.k, k, R, D, G * C);
      arena.product(n, layer.v, v, R, D, G * C);
      for (let r = 0; r < R; r += 1) {
        this.#turn(q, r, H, places[r]);
        this.#turn(k, r, G, places[r]);
        caches[r].keys[l].set(k.subarray(r * G * C, (r + 1) * G * C), places[r] * G * C);
        caches[r].values[l].set(v.subarray(r * G * C, (r + 1) * G * C), places[r] * G * C);
      }
      for (let r = 0; r < R; r += 1) this.#attend(r, caches[r].keys[l], caches[r].values[l], places[r] + 1);
      arena.product(n, layer.o, q, R, H * C, D);
      for (let i = 0; i < R * D; i += 1) x[i] += q[i];
      norm(x, layer.post, n, R, eps);
      for (let r = 0; l === this.depth && r < R; r += 1) hidden.set(n.subarray(r * D, (r + 1) * D), r * width);
      if (l === this.depth && headless) break;
      arena.product(n, layer.gate, gate, R, D, inner);
      arena.product(n, layer.up, up, R, D, inner);
      swiglu(gate, up, R * inner);
      arena.product(gate, layer.down, n, R, inner, D);
      for (let i = 0; i < R * D; i += 1) x[i] += n[i];
    }
    for (const [r, cache] of caches.entries()) cache.length = Math.max(cache.length, places[r] + 1);
    norm(x, this.last, n, R, eps);
    return { hidden, features: headless ? hidden : n.slice(0, R * D) };
  }

  /** Turns each head of a row by its place. @param {Float32Array} rows @param {number} r @param {number} heads @param {number} place */
  #turn(rows, r, heads, place) {
    const half = this.shape.C / 2;
    for (let i = 0; i < half; i += 1) {
      const angle = Math.fround(place * this.rates[i]);
      const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
      for (let at = r * heads * 2 * half + i, h = 0; h < heads; h += 1, at += 2 * half) {
        const [a, b] = [rows[at], rows[at + half]];
        rows[at] = a * cos - b * sin;
        rows[at + half] = b * cos + a * sin;
      }
    }
  }

  /** Attention of one row over T tokens; writes into `n`. @param {number} r @param {Float32Array} keys @param {Float32Array} values @param {number} T */
  #attend(r, keys, values, T) {
    const { shape: { H, G, C }, q, n, scratch } = this;
    const scale = 1 / Math.sqrt(C);
    for (let h = 0; h < H; h += 1) {
      const from = (r * H + h) * C;
      const group = Math.floor(h / (H / G)) * C;
      let top = -Infinity;
      for (let t = 0, at = group; t < T; t += 1, at += G * C) {
        let [a, b, c, d] = [0, 0, 0, 0];
        for (let i = 0; i < C; i += 4) {
          a += q[from + i] * keys[at + i];
          b += q[from + i + 1] * keys[at + i + 1];
          c += q[from + i + 2] * keys[at + i + 2];
          d += q[from + i + 3] * keys[at + i + 3];
        }
        scratch[t] = (a + b + c + d) * scale;
        if (scratch[t] > top) top = scratch[t];
      }
      let sum = 0;
      for (let t = 0; t < T; t += 1) {
        scratch[t] = Math.exp(scratch[t] - top);
        sum += scratch[t];
      }
      for (let i = 0; i < C; i += 4) { // four sums that stay in registers
        let [a, b, c, d] = [0, 0, 0, 0];
        for (let t = 0, at = group + i; t < T; t += 1, at += G * C) {
          const weight = scratch[t];
          a += weight * values[at];
          b += weight * values[at + 1];
          c += weight * values[at + 2];
          d += weight * values[at + 3];
        }
        n[from + i] = a / sum;
        n[from + i + 1] = b / sum;
        n[from + i + 2] = c / sum;
        n[from + i + 3] = d / sum;
      }
    }
  }

  /** The logits of rows, in an array that the next call overwrites.
   * @param {Float32Array} features (R, D), R at most ROWS @returns {Float32Array} (R, V) */
  logits(features) {
    const { D, V } = this.shape;
    this.x.set(features);
    this.arena.product(this.x, this.head, this.scores, features.length / D, D, V);
    return this.scores;
  }
}

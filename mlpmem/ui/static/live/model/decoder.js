// @ts-check
/* A decoder of any family in families.js: attention over a cache, and FFNs; the head is its own or the embeddings.
 *
 * Positions are rotary, or rows of a table that are added to the embeddings. Letters: R rows, D hidden size, H heads,
 * G key-value heads, C numbers per head. */
/** @import { Arena } from "./products/products.js" */
/** @import { Context } from "./context.js" */
/** @import { Family, Shape } from "./families.js" */
/** @import { Ffn, Linear, Norm } from "./layers.js" */
/** @import { Blocks } from "./weights/gguf.js" */
/** @import { Weights } from "./weights/weights.js" */
import { preparedRoom } from "./products/blocks.js";
import { Reader, add, feedForward, normalise, project, roomsOf } from "./layers.js";
import { copyRow, room } from "./products/products.js";

export const ROWS = 32; // rows of one pass; a longer prompt takes several

/** @typedef {{ first: Norm, q: Linear, k: Linear, v: Linear, out: Linear, second: Norm, ffn: Ffn }} Layer */

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
  /** The numbers that a decoder takes in an arena. @param {Family} family @param {Shape} shape
   * @param {number} packed those of weights in blocks, 0 without */
  static room(family, { layers, D, H, G, C, inner, V, positions, tied }, packed) {
    const { norm, linear, ffn } = roomsOf(family);
    const layer = 2 * norm(D) + linear(H * C, D) + 2 * linear(G * C, D) + linear(D, H * C) + ffn(D, inner);
    const scratch = room(ROWS * D) + 2 * room(ROWS * Math.max(D, H * C)) + 2 * room(ROWS * G * C) +
      2 * room(ROWS * inner) + room(ROWS * V);
    if (packed) return packed + scratch + room(preparedRoom(ROWS, Math.max(D, H * C, inner)));
    const places = family.places ? room(positions * D) : 0;
    return (tied ? 1 : 2) * room(V * D) + places + norm(D) + layers * layer + scratch + room(ROWS * Math.max(D, H * C, inner));
  }

  /** @param {Family} family @param {Shape} shape @param {Weights | Blocks} weights @param {Arena} arena
   * @param {number} depth of the layer whose FFN input is the hidden state */
  constructor(family, shape, weights, arena, depth = -1) {
    const { layers, D, V, C, theta } = shape;
    this.shape = shape;
    this.arena = arena;
    this.depth = (depth + layers) % layers;
    /** What of the text's words follows a hidden state, if the memory reads it. @type {Context | null} */
    this.context = null;
    const reader = new Reader(family, weights, arena);
    const at = `${family.body}.${family.layers}`;
    this.embeddings = reader.matrix(`${family.body}.${family.table}`, V, D);
    this.places = family.places ? reader.matrix(`${family.body}.${family.places}`, shape.positions, D) : null;
    this.head = shape.tied ? this.embeddings : reader.matrix("lm_head", V, D);
    this.last = reader.norm(`${family.body}.${family.last}`, D);
    this.layers = Array.from({ length: layers }, (_, l) => layerOf(reader, `${at}.${l}`, shape));
    /** The angle of each pair of numbers per position, none without rotary positions. */
    this.rates = Array.from({ length: theta ? C / 2 : 0 }, (_, i) => Math.fround(theta ** ((-2 * i) / C)));
    this.bytes = arena.taken;
    const { H, G, inner } = shape;
    if (weights.packed) arena.takePrepared(ROWS, Math.max(D, H * C, inner));
    else arena.takeSpread(ROWS * Math.max(D, H * C, inner));
    this.x = arena.take(ROWS * D);
    this.n = arena.take(ROWS * Math.max(D, H * C));
    this.q = arena.take(ROWS * Math.max(D, H * C));
    this.k = arena.take(ROWS * G * C);
    this.v = arena.take(ROWS * G * C);
    /** @type {[Float32Array, Float32Array]} */
    this.inner = [arena.take(ROWS * inner), arena.take(ROWS * inner)];
    this.scores = arena.take(ROWS * V);
    this.place = new Float32Array(D); // a row of the table of positions
    this.scratch = new Float32Array(shape.positions + 1); // attention weights of one head
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
    const { shape: { D, eps }, arena, width, x, n, inner } = this;
    const R = tokens.length;
    const hidden = new Float32Array(R * width);
    const places = caches.map((cache, r) => cache.length + caches.slice(0, r).filter((other) => other === cache).length);
    this.#embed(tokens, caches, places, hidden);
    for (const [l, layer] of this.layers.entries()) {
      this.#mix(layer, l, caches, places);
      normalise(x, layer.second, n, R, eps);
      for (let r = 0; l === this.depth && r < R; r += 1) hidden.set(n.subarray(r * D, (r + 1) * D), r * width);
      if (l === this.depth && headless) break;
      feedForward(arena, layer.ffn, x, n, inner, R);
    }
    for (const [r, cache] of caches.entries()) cache.length = Math.max(cache.length, places[r] + 1);
    normalise(x, this.last, n, R, eps);
    return { hidden, features: headless ? hidden : n.slice(0, R * D) };
  }

  /** Writes the embeddings of tokens into `x`, and context vectors behind the hidden states.
   * @param {number[]} tokens @param {Cache[]} caches @param {number[]} places of the tokens in their texts @param {Float32Array} hidden */
  #embed(tokens, caches, places, hidden) {
    const { shape: { D }, context, width, x } = this;
    for (const [r, token] of tokens.entries()) {
      const embedding = x.subarray(r * D, (r + 1) * D);
      copyRow(this.embeddings, token, embedding);
      context?.read(token, embedding, caches[r].sums, hidden.subarray(r * width + D, (r + 1) * width));
      caches[r].grow(places[r] + 1);
      if (!this.places) continue;
      copyRow(this.places, places[r], this.place);
      add(embedding, this.place, D);
    }
  }

  /** x += attention of layer l over each row's cache. @param {Layer} layer @param {number} l @param {Cache[]} caches @param {number[]} places */
  #mix(layer, l, caches, places) {
    const { shape: { D, H, G, C, eps }, arena, x, n, q, k, v } = this;
    const R = caches.length;
    normalise(x, layer.first, n, R, eps);
    project(arena, n, layer.q, q, R);
    project(arena, n, layer.k, k, R);
    project(arena, n, layer.v, v, R);
    for (let r = 0; r < R; r += 1) {
      this.#turn(q, r, H, places[r]);
      this.#turn(k, r, G, places[r]);
      caches[r].keys[l].set(k.subarray(r * G * C, (r + 1) * G * C), places[r] * G * C);
      caches[r].values[l].set(v.subarray(r * G * C, (r + 1) * G * C), places[r] * G * C);
    }
    for (let r = 0; r < R; r += 1) this.#attend(r, caches[r].keys[l], caches[r].values[l], places[r] + 1);
    project(arena, n, layer.out, q, R);
    add(x, q, R * D);
  }

  /** Turns each head of a row by its place, where positions are rotary. @param {Float32Array} rows @param {number} r @param {number} heads @param {number} place */
  #turn(rows, r, heads, place) {
    const half = this.rates.length;
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

/** Reads a layer. @param {Reader} reader @param {string} at its name @param {Shape} shape @returns {Layer} */
function layerOf(reader, at, { D, H, G, C, inner }) {
  const { norms, qkv, out } = reader.family;
  const [q, k, v] = reader.linears(qkv.map((name) => `${at}.${name}`), [H * C, G * C, G * C], D);
  return { first: reader.norm(`${at}.${norms[0]}`, D), q, k, v, out: reader.linear(`${at}.${out}`, D, H * C),
    second: reader.norm(`${at}.${norms[1]}`, D), ffn: reader.ffn(at, D, inner) };
}

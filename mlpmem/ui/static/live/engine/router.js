// @ts-check
/* A router chooses lambda for every token from how sure both sources are and from the evidence so far, as
 * mlpmem/engine/router.py does. */
/** @import { Weights } from "../model/weights/weights.js" */
import { must } from "../model/errors.js";
import { argmax } from "./distributions.js";

const FLOOR = -20; // nats; anything less probable counts as impossible
const LEAST = -80; // nats
const DECAY = 0.9; // weight of a token relative to the next one
const LEAST_SURPRISE = -4; // nats; log-probs below it count as equal
export const REACH = 96; // tokens of a prompt that are evidence
export const FEATURES = ["lm_top", "other_top", "lm_entropy", "other_entropy", "lm_of_other", "other_of_lm", "agree", "nearest", "evidence"];

/** @param {Float32Array} logProbs */
function entropy(logProbs) {
  let sum = 0;
  for (let i = 0; i < logProbs.length; i += 1) {
    const p = Math.max(logProbs[i], LEAST);
    sum -= Math.exp(p) * p;
  }
  return sum;
}

/** The features of two sources' log-probs. @param {Float32Array} lm @param {Float32Array} other @param {number} evidence nats
 * @param {number} [nearest] log(1 + the nearest neighbour's distance), 0 without a search */
export function features(lm, other, evidence, nearest = 0) {
  const [a, b] = [argmax(lm), argmax(other)];
  return [Math.max(lm[a], LEAST), Math.max(other[b], LEAST), entropy(lm), entropy(other),
    Math.max(lm[b], FLOOR), Math.max(other[a], FLOOR), Number(a === b), Math.min(nearest, -LEAST), evidence];
}

/** The nats by which the other source was better on a token. @param {Float32Array} lm @param {Float32Array} other @param {number} token */
export const gap = (lm, other, token) => Math.max(other[token], LEAST_SURPRISE) - Math.max(lm[token], LEAST_SURPRISE);

/** The evidence after one more token. @param {number} before @param {number} gap */
export const heard = (before, gap) => DECAY * before + gap;

/** @typedef {{ weight: Float32Array, bias: Float32Array }} Layer
 * @typedef {{ system: string, state: number, evidence?: boolean, mean: Float32Array, scale: Float32Array, hidden: Layer | null, out: Layer }} Parts */

export class Router {
  /** `state` counts the numbers that it reads behind the features; without `evidence` it reads a 0. @param {Parts} parts */
  constructor({ system, state, evidence = true, mean, scale, hidden, out }) {
    this.system = system;
    this.evidence = evidence;
    this.state = state;
    this.mean = mean;
    this.scale = scale;
    this.hidden = hidden;
    this.out = out;
  }

  /** Throws a LiveError for a router of other features. @param {{ [name: string]: any }} config @param {Weights} weights */
  static of(config, weights) {
    must(config.features?.join() === FEATURES.join(), "This bundle's router reads other features than the page knows. Build the folder again.");
    const F = FEATURES.length + (config.state_size || 0);
    const units = config.units || 0;
    /** @type {(name: string, ...sizes: number[]) => Float32Array} */
    const read = (name, ...sizes) => weights.copy(name, sizes, new Float32Array(sizes.reduce((all, one) => all * one, 1)));
    return new Router({ system: config.system, state: config.state_size || 0, evidence: config.evidence ?? true, mean: read("mean", F), scale: read("scale", F),
      hidden: units ? { weight: read("hidden.weight", units, F), bias: read("hidden.bias", units) } : null,
      out: { weight: read("out.weight", 1, units || F), bias: read("out.bias", 1) } });
  }

  /** Lambda, 0 .. 1. @param {Float32Array} lm @param {Float32Array} other @param {number} evidence
   * @param {ArrayLike<number>} state (K,) of the decoder, or what a gate reads of a search @param {number} [nearest] as of `features` */
  lambda(lm, other, evidence, state, nearest = 0) {
    const read = Array.from(state).slice(0, this.state);
    return 1 / (1 + Math.exp(-this.logit([...features(lm, other, this.evidence ? evidence : 0, nearest), ...read])));
  }

  /** The logit of lambda. @param {number[]} read features, and the state behind them */
  logit(read) {
    let x = read.map((value, i) => (value - this.mean[i]) / this.scale[i]);
    if (this.hidden) x = linear(this.hidden, x).map(Math.tanh);
    return linear(this.out, x)[0];
  }
}

/** @param {Layer} layer @param {number[]} x */
function linear({ weight, bias }, x) {
  return Array.from(bias, (start, j) => {
    let sum = start;
    for (let k = 0, at = j * x.length; k < x.length; k += 1, at += 1) sum += x[k] * weight[at];
    return sum;
  });
}

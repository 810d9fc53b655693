// @ts-check
/* The gate of a visitor's text: a router that also reads how a search went, fitted to the text as mlpmem/engine/text_gate.py
 * fits it. R rows, F numbers of each, U units of the hidden layer. */
/** @import { Model } from "../engine/fused.js" */
/** @import { Store } from "./store.js" */
/** @import { Part } from "./rows.js" */
import { FEATURES, Router } from "../engine/router.js";
import { Twister } from "../engine/twister.js";
import { Chance, uniform } from "./chance.js";
import { minimise } from "./minimise.js";
import { GENERAL, OPEN, partsOf } from "./rows.js";

const SEED = 1;
const SHARES = [0.5, 0.4, 0.1]; // of the weight, by kind
const CERTAINTY = ["lm_top", "lm_entropy", "lm_of_other"].map((name) => FEATURES.indexOf(name));
const NEAR = 3; // numbers of a search: Found.near
const RISE = 0.009; // of general requests' perplexity, a share, at most
const [NARROWEST, WIDEST] = [40, 4]; // logits that a gate is shut and opened by, at most
const UNITS = 8;
const [DECAY, STEPS] = [1e-3, 200];

/** The gate of a text. Yields the tokens read. @param {Model} model @param {Store} store
 * @returns {Generator<{ done: number, total: number }, Router>} */
export const fittedGate = function* (model, store) {
  const parts = yield* partsOf(model, store, SEED);
  const rows = parts.flatMap((part) => part.rows);
  const kinds = parts.flatMap((part) => part.rows.map(() => part.kind));
  const { mean, scale } = momentsOf(rows);
  const doubted = doubtedRows(rows, new Chance(SEED));
  const read = [...rows, ...doubted].map((row) => row.map((value, i) => (value - mean[i]) / scale[i]));
  const weights = weightsOf(parts, kinds);
  const layers = fitted(read, kinds.concat(kinds).map((kind) => Number(kind === OPEN)), weights.concat(weights).map((weight) => weight / 2));
  const gate = new Router({ system: "knn", state: NEAR, mean, scale, ...layers });
  gate.out.bias[0] += opening(gate, rows.filter((_, r) => kinds[r] === GENERAL));
  return gate;
};

/** Each column's mean and deviation. @param {number[][]} rows */
function momentsOf(rows) {
  const R = rows.length;
  const mean = rows[0].map((_, i) => rows.reduce((sum, row) => sum + row[i], 0) / R);
  const scale = mean.map((middle, i) => Math.max(1e-2, Math.sqrt(rows.reduce((sum, row) => sum + (row[i] - middle) ** 2, 0) / (R - 1))));
  return { mean: Float32Array.from(mean), scale: Float32Array.from(scale) };
}

/** Rows with the decoder's certainty of other rows: it can be as sure of a wrong answer as of a right one.
 * @param {number[][]} rows @param {Chance} chance */
const doubtedRows = (rows, chance) => {
  const others = chance.sample([...rows.keys()], rows.length);
  return rows.map((row, r) => row.map((value, i) => (CERTAINTY.includes(i) ? rows[others[r]][i] : value)));
};

/** The weight of each row: an answer's is shared by its tokens, a kind's by its answers. @param {Part[]} parts @param {number[]} kinds */
function weightsOf(parts, kinds) {
  const sums = SHARES.map((_, kind) => parts.reduce((sum, part) => sum + Number(part.kind === kind && part.rows.length > 0), 0));
  return parts.flatMap(({ rows }) => rows.map(() => 1 / rows.length)).map((weight, r) => (weight * SHARES[kinds[r]]) / sums[kinds[r]]);
}

/** The layers that give rows (R, F) their labels. @param {number[][]} rows @param {number[]} labels @param {number[]} weights */
function fitted(rows, labels, weights) {
  const F = rows[0].length;
  const twister = new Twister(SEED);
  const first = uniform(twister, UNITS * F + UNITS, 1 / Math.sqrt(F));
  const start = Float64Array.from([...first, ...new Array(UNITS + 1).fill(0)]);
  const x = minimise((at) => lossOf(at, rows, labels, weights), start, STEPS);
  const biases = UNITS * F;
  const out = biases + UNITS;
  return { hidden: { weight: Float32Array.from(x.subarray(0, biases)), bias: Float32Array.from(x.subarray(biases, out)) },
    out: { weight: Float32Array.from(x.subarray(out, out + UNITS)), bias: Float32Array.from(x.subarray(out + UNITS)) } };
}

/** The weighted cross-entropy of labels with its decay, and the gradient by x: hidden weights (U, F) and biases, then out's.
 * @param {Float64Array} x @param {number[][]} rows @param {number[]} labels @param {number[]} weights */
function lossOf(x, rows, labels, weights) {
  const F = rows[0].length;
  const biases = UNITS * F;
  const out = biases + UNITS;
  const last = out + UNITS;
  const gradient = x.map((value) => 2 * DECAY * value);
  let loss = DECAY * x.reduce((sum, value) => sum + value * value, 0);
  const units = new Float64Array(UNITS);
  for (const [r, row] of rows.entries()) {
    let logit = x[last];
    for (let u = 0; u < UNITS; u += 1) {
      let sum = x[biases + u];
      for (let i = 0; i < F; i += 1) sum += x[u * F + i] * row[i];
      units[u] = Math.tanh(sum);
      logit += x[out + u] * units[u];
    }
    loss += weights[r] * (softplus(logit) - labels[r] * logit);
    const slope = weights[r] * (1 / (1 + Math.exp(-logit)) - labels[r]);
    gradient[last] += slope;
    for (let u = 0; u < UNITS; u += 1) {
      gradient[out + u] += slope * units[u];
      const inner = slope * x[out + u] * (1 - units[u] ** 2);
      gradient[biases + u] += inner;
      for (let i = 0; i < F; i += 1) gradient[u * F + i] += inner * row[i];
    }
  }
  return { loss, gradient };
}

/** log(1 + e^x). @param {number} x */
const softplus = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));

/** How many logits a gate can be opened: if the text gave general requests' tokens no probability at all, their perplexity would
 * rise by RISE. @param {Router} gate @param {number[][]} rows of general requests */
function opening(gate, rows) {
  const logits = rows.map((row) => gate.logit(row));
  let [low, high] = [-NARROWEST, WIDEST];
  for (let i = 0; i < 30; i += 1) {
    const middle = (low + high) / 2;
    if (logits.reduce((sum, logit) => sum + softplus(logit + middle), 0) / logits.length <= Math.log1p(RISE)) low = middle;
    else high = middle;
  }
  return low;
}

// @ts-check
/* L-BFGS with a line search by the strong Wolfe conditions (Nocedal and Wright 2006, 7.2 and 3.5), with torch's choices:
 * from the same start it takes the same steps, so it ends in the same minimum. */

const HISTORY = 100; // steps that are remembered
const [DECREASE, CURVATURE] = [1e-4, 0.9]; // of the Wolfe conditions
const [FLAT, STILL] = [1e-7, 1e-9]; // of a gradient and of a change: small enough to end

/** A loss and its gradient. @typedef {{ loss: number, gradient: Float64Array }} Value
 * A point of a line search: its place, and the slope there. @typedef {Value & { at: number, slope: number }} Point */

/** @param {Float64Array} a @param {Float64Array} b */
function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i += 1) sum += a[i] * b[i];
  return sum;
}

/** a + factor b. @param {Float64Array} a @param {Float64Array} b @param {number} factor */
const plus = (a, b, factor) => a.map((value, i) => value + factor * b[i]);

/** @param {Float64Array} a */
const largestOf = (a) => a.reduce((most, value) => Math.max(most, Math.abs(value)), 0);

/** The parameters that minimise a loss, from `start` on. @param {(x: Float64Array) => Value} evaluate @param {Float64Array} start
 * @param {number} most steps */
export function minimise(evaluate, start, most) {
  let x = start;
  let { loss, gradient } = evaluate(x);
  /** @type {{ change: Float64Array, step: Float64Array, rho: number }[]} */
  const history = [];
  let scale = 1;
  let left = Math.floor((most * 5) / 4) - 1; // evaluations
  for (let n = 0; n < most && left > 0 && largestOf(gradient) > FLAT; n += 1) {
    const direction = descent(history, gradient, scale);
    const slope = dot(gradient, direction);
    if (slope > -STILL) break;
    const first = n ? 1 : Math.min(1, 1 / gradient.reduce((sum, value) => sum + Math.abs(value), 0));
    const from = { at: 0, loss, gradient, slope };
    const line = new Line((at) => {
      left -= 1;
      const value = evaluate(plus(x, direction, at));
      return { at, ...value, slope: dot(value.gradient, direction) };
    }, from, largestOf(direction));
    const point = line.search(first, left);
    x = plus(x, direction, point.at);
    const step = direction.map((value) => value * point.at);
    const change = plus(point.gradient, gradient, -1);
    const curvature = dot(change, step);
    if (curvature > 1e-10) {
      if (history.length === HISTORY) history.shift();
      history.push({ change, step, rho: 1 / curvature });
      scale = curvature / dot(change, change);
    }
    const before = loss;
    ({ loss, gradient } = point);
    if (largestOf(step) <= STILL || Math.abs(loss - before) < STILL) break;
  }
  return x;
}

/** The direction of the next step. @param {{ change: Float64Array, step: Float64Array, rho: number }[]} history
 * @param {Float64Array} gradient @param {number} scale */
function descent(history, gradient, scale) {
  let d = gradient.map((value) => -value);
  const shares = history.map(() => 0);
  for (const [i, { change, step, rho }] of [...history.entries()].reverse()) {
    shares[i] = dot(step, d) * rho;
    d = plus(d, change, -shares[i]);
  }
  d = d.map((value) => value * scale);
  for (const [i, { change, step, rho }] of history.entries()) d = plus(d, step, shares[i] - dot(change, d) * rho);
  return d;
}

class Line {
  /** @param {(at: number) => Point} evaluate @param {Point} from @param {number} width the direction's largest number */
  constructor(evaluate, from, width) {
    this.evaluate = evaluate;
    this.from = from;
    this.width = width;
  }

  /** Whether the loss at a point is not low enough. @param {Point} point */
  #isHigh({ at, loss }) {
    return loss > this.from.loss + DECREASE * at * this.from.slope;
  }

  /** Whether the slope at a point is flat enough. @param {Point} point */
  #isFlat({ slope }) {
    return Math.abs(slope) <= -CURVATURE * this.from.slope;
  }

  /** A point that meets both conditions, or the lowest of at most `most` points. @param {number} first @param {number} most */
  search(first, most) {
    let before = this.from;
    let point = this.evaluate(first);
    let tries = 0;
    for (; tries < most; tries += 1) {
      if (this.#isHigh(point) || (tries > 1 && point.loss >= before.loss)) return this.#zoom(before, point, most - tries);
      if (this.#isFlat(point)) return point;
      if (point.slope >= 0) return this.#zoom(before, point, most - tries);
      const [least, farthest] = [point.at + 0.01 * (point.at - before.at), point.at * 10];
      const next = cubic(before, point, least, farthest);
      before = point;
      point = this.evaluate(next);
    }
    return this.from.loss <= point.loss ? this.from : point;
  }

  /** Narrows an interval around a point that meets both conditions. @param {Point} a @param {Point} b @param {number} most */
  #zoom(a, b, most) {
    const ends = [a, b];
    let low = a.loss <= b.loss ? 0 : 1;
    let stuck = false;
    for (let tries = 0; tries < most; tries += 1) {
      const [left, right] = [Math.min(ends[0].at, ends[1].at), Math.max(ends[0].at, ends[1].at)];
      if ((right - left) * this.width < STILL) break;
      let at = cubic(ends[0], ends[1], left, right);
      const margin = 0.1 * (right - left);
      if (Math.min(right - at, at - left) < margin) {
        /** @type {boolean} */
        const moved = stuck || at >= right || at <= left;
        if (moved) at = Math.abs(at - right) < Math.abs(at - left) ? right - margin : left + margin;
        stuck = !moved;
      } else stuck = false;
      const point = this.evaluate(at);
      if (this.#isHigh(point) || point.loss >= ends[low].loss) {
        ends[1 - low] = point;
        low = ends[0].loss <= ends[1].loss ? 0 : 1;
        continue;
      }
      if (this.#isFlat(point)) return point;
      if (point.slope * (ends[1 - low].at - ends[low].at) >= 0) ends[1 - low] = ends[low];
      ends[low] = point;
    }
    return ends[low];
  }
}

/** The minimum of the cubic through two points, within bounds. @param {Point} a @param {Point} b @param {number} least @param {number} most */
function cubic(a, b, least, most) {
  const d = a.slope + b.slope - (3 * (a.loss - b.loss)) / (a.at - b.at);
  const square = d ** 2 - a.slope * b.slope;
  if (!(square >= 0)) return (least + most) / 2;
  const root = Math.sqrt(square);
  const [from, to] = a.at <= b.at ? [a, b] : [b, a];
  const at = to.at - (to.at - from.at) * ((to.slope + root - d) / (to.slope - from.slope + 2 * root));
  return Math.min(Math.max(at, least), most);
}

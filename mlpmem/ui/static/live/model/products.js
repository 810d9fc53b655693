// @ts-check
/* Matrix products: the kernel of kernel.wat, or plain loops in a browser without WebAssembly SIMD. */
import { LiveError } from "./errors.js";
import { expand } from "./halves.js";
import { FUSED, KERNEL } from "./kernel.js";

const PAGE = 65536; // bytes of a page of WebAssembly memory
const ALIGNED = 4; // numbers: every array begins at a multiple of 16 bytes

/** The fastest kernel that this browser compiles, null where WebAssembly or its SIMD is missing. @returns {WebAssembly.Module | null} */
export function compiled() {
  for (const bytes of [FUSED, KERNEL]) {
    try {
      return new WebAssembly.Module(Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0)));
    } catch { /* the next one */ }
  }
  return null;
}

/** The number of numbers that an array takes in an arena. @type {(count: number) => number} */
export const room = (count) => Math.ceil(count / ALIGNED) * ALIGNED;

/** The numbers of a matrix: float32, or halves as halves.js scales them. @typedef {Float32Array | Uint16Array} Matrix */

/** One block of memory with arrays that are never freed singly, and the product of two of them. */
export class Arena {
  /** @param {WebAssembly.Module | null} kernel @param {number} count of numbers, each array's by `room` */
  constructor(kernel, count) {
    this.taken = 0; // bytes
    this.bytes = 4 * count;
    /** @type {{ product: Function, halves: Function } | null} */
    this.kernel = null;
    try {
      if (kernel) {
        const memory = new WebAssembly.Memory({ initial: Math.ceil(this.bytes / PAGE) });
        this.buffer = memory.buffer;
        this.kernel = /** @type {any} */ (new WebAssembly.Instance(kernel, { live: { memory } }).exports);
      } else this.buffer = new ArrayBuffer(this.bytes);
    } catch {
      throw new LiveError(`This device has no ${Math.ceil(this.bytes / 1e6)} MB of memory left for the model.`);
    }
  }

  /** A new array of zeros. @param {number} count */
  take(count) {
    const array = new Float32Array(this.buffer, this.taken, count);
    this.taken += 4 * room(count);
    return array;
  }

  /** A new array of halves. @param {number} count */
  takeHalves(count) {
    const array = new Uint16Array(this.buffer, this.taken, count);
    this.taken += 4 * room(count / 2);
    return array;
  }

  /** Frees the array that was taken last. @param {Uint16Array} array */
  giveBack(array) {
    array.fill(0);
    this.taken = array.byteOffset;
  }

  /** out[r, j] = sum over k of x[r, k] * w[j, k]; all three are arrays of this arena.
   * @param {Float32Array} x (rows, depth) @param {Matrix} w (width, depth) @param {Float32Array} out (rows, width)
   * @param {number} rows @param {number} depth @param {number} width */
  product(x, w, out, rows, depth, width) {
    const swift = this.kernel !== null && depth % 8 === 0;
    if (swift) {
      const run = w instanceof Float32Array ? this.kernel?.product : this.kernel?.halves;
      run?.(x.byteOffset, w.byteOffset, out.byteOffset, rows, depth, width);
    }
    const first = swift ? width - (width % 4) : 0; // column without the kernel
    if (first === width) return;
    if (w instanceof Float32Array) plainProduct(x, w, out, rows, depth, width, first);
    else {
      const last = new Float32Array((width - first) * depth);
      expand(w.subarray(first * depth), last);
      plainProduct(x, last, out, rows, depth, width, first, first);
    }
  }
}

/** The same without the kernel, from the column `first` on; w begins with the column `begin`.
 * @param {Float32Array} x @param {Float32Array} w @param {Float32Array} out @param {number} rows @param {number} depth @param {number} width
 * @param {number} first @param {number} [begin] */
function plainProduct(x, w, out, rows, depth, width, first, begin = 0) {
  const whole = depth - (depth % 4);
  for (let j = first; j < width; j += 1) {
    const p = (j - begin) * depth;
    for (let r = 0; r < rows; r += 1) {
      const a = r * depth;
      let [s, t, u, v] = [0, 0, 0, 0];
      for (let k = 0; k < whole; k += 4) {
        s += x[a + k] * w[p + k];
        t += x[a + k + 1] * w[p + k + 1];
        u += x[a + k + 2] * w[p + k + 2];
        v += x[a + k + 3] * w[p + k + 3];
      }
      for (let k = whole; k < depth; k += 1) s += x[a + k] * w[p + k];
      out[r * width + j] = s + t + u + v;
    }
  }
}

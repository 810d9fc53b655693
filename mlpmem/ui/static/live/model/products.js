// @ts-check
/* Matrix products in float32: the kernel of kernel.wat, or plain loops in a browser without WebAssembly SIMD. */
import { LiveError } from "./errors.js";
import { KERNEL } from "./kernel.js";

const PAGE = 65536; // bytes of a page of WebAssembly memory
const ALIGNED = 4; // numbers: every array begins at a multiple of 16 bytes

/** The compiled kernel, null where WebAssembly or its SIMD is missing. @returns {WebAssembly.Module | null} */
export function compiled() {
  try {
    return new WebAssembly.Module(Uint8Array.from(atob(KERNEL), (c) => c.charCodeAt(0)));
  } catch {
    return null;
  }
}

/** The number of numbers that an array takes in an arena. @type {(count: number) => number} */
export const room = (count) => Math.ceil(count / ALIGNED) * ALIGNED;

/** One block of memory with float32 arrays that are never freed singly, and the product of two of them. */
export class Arena {
  /** @param {WebAssembly.Module | null} kernel @param {number} count of numbers, each array's by `room` */
  constructor(kernel, count) {
    this.taken = 0; // bytes
    this.bytes = 4 * count;
    /** @type {Function | null} */
    this.kernel = null;
    try {
      if (kernel) {
        const memory = new WebAssembly.Memory({ initial: Math.ceil(this.bytes / PAGE) });
        this.buffer = memory.buffer;
        this.kernel = /** @type {Function} */ (new WebAssembly.Instance(kernel, { live: { memory } }).exports.product);
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

  /** out[r, j] = sum over k of x[r, k] * w[j, k]; all three are arrays of this arena.
   * @param {Float32Array} x (rows, depth) @param {Float32Array} w (width, depth) @param {Float32Array} out (rows, width)
   * @param {number} rows @param {number} depth @param {number} width */
  product(x, w, out, rows, depth, width) {
    if (this.kernel && depth % 4 === 0) {
      this.kernel(x.byteOffset, w.byteOffset, out.byteOffset, rows, depth, width);
    } else plainProduct(x, w, out, rows, depth, width);
  }
}

/** The same without the kernel. @type {Arena["product"]} */
function plainProduct(x, w, out, rows, depth, width) {
  const whole = depth - (depth % 4);
  for (let j = 0; j < width; j += 1) {
    const p = j * depth;
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

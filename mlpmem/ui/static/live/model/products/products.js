// @ts-check
/* Matrix products: the kernels of kernel.wat and blocks.wat, or plain loops in a browser without WebAssembly SIMD. */
import { BLOCK, Packed, blockBytes, prepare, preparedRoom } from "./blocks.js";
import { BLOCKS, FUSED_BLOCKS } from "./blocks_kernel.js";
import { LiveError, must } from "../errors.js";
import { expand } from "./halves.js";
import { FUSED, KERNEL } from "./kernel.js";

const PAGE = 65536; // bytes of a page of WebAssembly memory
const ALIGNED = 4; // numbers: every array begins at a multiple of 16 bytes

/** The fastest kernel that this browser compiles, null where WebAssembly or its SIMD is missing. `blocks` names that of Packed matrices.
 * @param {boolean} [blocks] @returns {WebAssembly.Module | null} */
export function compiled(blocks = false) {
  for (const bytes of blocks ? [FUSED_BLOCKS, BLOCKS] : [FUSED, KERNEL]) {
    try {
      return new WebAssembly.Module(Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0)));
    } catch { /* the next one */ }
  }
  return null;
}

/** The number of numbers that an array takes in an arena. @type {(count: number) => number} */
export const room = (count) => Math.ceil(count / ALIGNED) * ALIGNED;

/** The numbers of a matrix: float32, halves as halves.js scales them, or blocks. @typedef {Float32Array | Uint16Array | Packed} Matrix */

/** Writes a row of a matrix as float32. @param {Matrix} matrix @param {number} row @param {Float32Array} target (depth,) */
export function copyRow(matrix, row, target) {
  const depth = target.length;
  if (matrix instanceof Packed) matrix.row(row, target);
  else expand(matrix.subarray(row * depth, (row + 1) * depth), target);
}

/** Rows of a matrix that is not in blocks, as a view. @param {Matrix} matrix @param {number} first @param {number} end @param {number} depth */
export function rowsOf(matrix, first, end, depth) {
  must(!(matrix instanceof Packed), "Matrices in blocks have no views. Build the folder again.");
  return matrix.subarray(first * depth, end * depth);
}

/** One block of memory with arrays that are never freed singly, and the product of two of them. */
export class Arena {
  /** @param {WebAssembly.Module | null} kernel @param {number} count of numbers, each array's by `room`
   * @param {WebAssembly.Module | null} [blocks] the kernel of Packed matrices */
  constructor(kernel, count, blocks = null) {
    this.taken = 0; // bytes
    this.bytes = 4 * count;
    /** @type {{ product: Function, halves: Function, pairs: Function, spread: Function, negative: Function } | null} */
    this.kernel = null;
    /** Rows spread for the kernel's `pairs`, which is faster on x86; null where `halves` is used. @type {Float32Array | null} */
    this.spread = null;
    /** @type {{ fours: Function, eights: Function } | null} */
    this.blocks = null;
    /** Rows prepared for `blocks`. @type {Float32Array | null} */
    this.prepared = null;
    try {
      if (kernel) {
        const memory = new WebAssembly.Memory({ initial: Math.ceil(this.bytes / PAGE) });
        this.buffer = memory.buffer;
        this.kernel = /** @type {any} */ (new WebAssembly.Instance(kernel, { live: { memory } }).exports);
        if (blocks) this.blocks = /** @type {any} */ (new WebAssembly.Instance(blocks, { live: { memory } }).exports);
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

  /** A new matrix in blocks. @param {4 | 8} bits @param {number} width @param {number} depth */
  takeBlocks(bits, width, depth) {
    const bytes = ((width * depth) / BLOCK) * blockBytes(bits);
    const data = new Uint8Array(this.buffer, this.taken, bytes);
    this.taken += 4 * room(bytes / 4);
    return new Packed(bits, data, width, depth);
  }

  /** Makes room for rows that are multiplied with matrices in blocks. @param {number} rows @param {number} depth */
  takePrepared(rows, depth) {
    this.prepared = this.take(preparedRoom(rows, depth));
  }

  /** Makes room for rows that are multiplied with halves. @param {number} count of numbers */
  takeSpread(count) {
    const array = this.take(count);
    if (this.kernel?.negative(Infinity) && array.length > (this.spread?.length ?? 0)) this.spread = array;
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
    if (w instanceof Packed) {
      this.#packedProduct(x, w, out, rows, depth, width);
      return;
    }
    const swift = this.kernel !== null && depth % 8 === 0;
    if (swift && w instanceof Uint16Array && this.spread) {
      this.kernel?.spread(x.byteOffset, this.spread.byteOffset, rows * depth);
      this.kernel?.pairs(this.spread.byteOffset, w.byteOffset, out.byteOffset, rows, depth, width);
    } else if (swift) {
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

  /** @param {Float32Array} x @param {Packed} w @param {Float32Array} out @param {number} rows @param {number} depth @param {number} width */
  #packedProduct(x, w, out, rows, depth, width) {
    const swift = this.blocks !== null && this.prepared !== null;
    if (this.blocks && this.prepared) {
      prepare(w.bits, x, this.prepared, rows * depth);
      const run = w.bits === 4 ? this.blocks.fours : this.blocks.eights;
      run(this.prepared.byteOffset, w.data.byteOffset, out.byteOffset, rows, w.blocks, width);
    }
    const column = new Float32Array(depth);
    for (let j = swift ? width - (width % 2) : 0; j < width; j += 1) {
      w.row(j, column);
      plainProduct(x, column, out, rows, depth, width, j, j, j + 1);
    }
  }
}

/** The same without the kernel, from the column `first` on; w begins with the column `begin`.
 * @param {Float32Array} x @param {Float32Array} w @param {Float32Array} out @param {number} rows @param {number} depth @param {number} width
 * @param {number} first @param {number} [begin] @param {number} [end] the column behind the last */
function plainProduct(x, w, out, rows, depth, width, first, begin = 0, end = width) {
  const whole = depth - (depth % 4);
  for (let j = first; j < end; j += 1) {
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

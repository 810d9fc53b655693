// @ts-check
/* Safetensors: the names, shapes and numbers of a file. */
/** @import { Arena, Matrix } from "../products/products.js" */
import { must } from "../errors.js";
import { fromHalves, scaleHalves } from "../products/halves.js";

const LONGEST = 2 ** 24; // bytes of a header
/** @type {{ [dtype: string]: number }} */
const SIZES = { F16: 2, BF16: 2, F32: 4 };
const DAMAGED = "is no whole file of weights";

/** @typedef {{ dtype: string, shape: number[], begin: number, end: number }} Place bytes of the file
 * @typedef {{ dtype: string, numbers: Float32Array | Uint16Array }} Stored */

/** A file of weights that is wholly in memory, until `free`. */
export class Weights {
  /** Reads the header; throws a LiveError for a file that is truncated or of another kind.
   * @param {Uint8Array} bytes @param {string} name of the file, for messages */
  constructor(bytes, name) {
    this.bytes = bytes;
    this.name = name;
    must(bytes.length >= 8, `${name} ${DAMAGED}: it has ${bytes.length} bytes.`);
    const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
    must(length <= LONGEST && 8 + length <= bytes.length, `${name} ${DAMAGED}: its header does not fit into it.`);
    this.places = placesOf(parsed(bytes.subarray(8, 8 + length), name), 8 + length, bytes.length, name);
  }

  /** Whether there is a tensor of this name. @param {string} name */
  has(name) {
    return this.places.has(name);
  }

  /** The numbers in blocks: none. */
  get packed() {
    return 0;
  }

  /** Gives the memory back; nothing can be read any more. */
  free() {
    const { buffer } = this.bytes;
    this.bytes = new Uint8Array();
    if (buffer instanceof ArrayBuffer) buffer.transfer?.(0);
  }

  /** A tensor's numbers as they are stored; throws a LiveError if it is absent or of another shape.
   * @param {string} name @param {number[]} shape @returns {Stored} */
  #stored(name, shape) {
    const place = this.places.get(name);
    must(place !== undefined, `${this.name} has no ${name}. It belongs to a model of another kind.`);
    must(place.shape.join() === shape.join(),
      `${name} in ${this.name} must be ${shape.join(" x ")} by its config; got ${place.shape.join(" x ")}.`);
    const whole = this.bytes.subarray(place.begin, place.end);
    const { buffer, byteOffset } = whole.byteOffset % SIZES[place.dtype] ? whole.slice() : whole; // aligned
    const count = whole.length / SIZES[place.dtype];
    return { dtype: place.dtype, numbers: place.dtype === "F32" ? new Float32Array(buffer, byteOffset, count)
      : new Uint16Array(buffer, byteOffset, count) };
  }

  /** Copies a tensor into an array, as float32. @param {string} name @param {number[]} shape @param {Float32Array} target */
  copy(name, shape, target) {
    return this.#widened(name, this.#stored(name, shape), target);
  }

  /** @param {string} name @param {Stored} stored @param {Float32Array} target */
  #widened(name, { dtype, numbers }, target) {
    if (numbers instanceof Float32Array) target.set(numbers);
    else if (dtype === "F16") fromHalves(numbers, target);
    else fromBrain(numbers, target);
    let sum = 0;
    for (let i = 0; i < target.length; i += 1) sum += target[i] * 0; // nan once a number is infinite or nan
    must(sum === 0, `${name} in ${this.name} has numbers that are infinite or nan. Reload the page.`);
    return target;
  }

  /** A matrix in an arena: as halves if it is stored so, all fit (halves.js) and there is a kernel, else as float32.
   * @param {string} name @param {number[]} shape (width, depth) @param {Arena} arena @param {boolean} [transposed] it is stored (depth, width)
   * @returns {Matrix} */
  matrix(name, [width, depth], arena, transposed = false) {
    const stored = this.#stored(name, transposed ? [depth, width] : [width, depth]);
    if (transposed) stored.numbers = turned(stored.numbers, width, depth);
    const { dtype, numbers } = stored;
    if (numbers instanceof Uint16Array && dtype === "F16" && arena.kernel && depth % 8 === 0) {
      const target = arena.takeHalves(numbers.length);
      if (scaleHalves(numbers, target)) return target;
      arena.giveBack(target);
    }
    return this.#widened(name, stored, arena.take(numbers.length));
  }
}

/** @param {Uint8Array} bytes @param {string} name @returns {{ [tensor: string]: any }} */
function parsed(bytes, name) {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    must(false, `${name} ${DAMAGED}: its header is not JSON.`);
    return {};
  }
}

/** @param {{ [tensor: string]: any }} header @param {number} start of the numbers @param {number} end @param {string} name
 * @returns {Map<string, Place>} */
function placesOf(header, start, end, name) {
  const places = new Map();
  for (const [tensor, row] of Object.entries(header)) {
    if (tensor === "__metadata__") continue;
    const { dtype, shape, data_offsets: offsets } = row ?? {};
    must(Array.isArray(shape) && Array.isArray(offsets) && dtype in SIZES, `${name} ${DAMAGED}: ${tensor} is not described.`);
    const bytes = shape.reduce((/** @type {number} */ all, /** @type {number} */ one) => all * one, SIZES[dtype]);
    const place = { dtype, shape, begin: start + offsets[0], end: start + offsets[1] };
    const fits = place.begin >= start && place.end <= end && place.end - place.begin === bytes;
    must(fits, `${name} ${DAMAGED}: ${tensor} does not lie within it.`);
    places.set(tensor, place);
  }
  return places;
}

/** Numbers (depth, width) as (width, depth). @template {Float32Array | Uint16Array} T @param {T} numbers @param {number} width @param {number} depth */
function turned(numbers, width, depth) {
  const out = numbers.slice();
  for (let j = 0, to = 0; j < width; j += 1) {
    for (let k = 0, from = j; k < depth; k += 1, to += 1, from += width) out[to] = numbers[from];
  }
  return out;
}

/** @param {Uint16Array} halves in bfloat16, the upper halves of float32 @param {Float32Array} target */
function fromBrain(halves, target) {
  const bits = new Uint32Array(target.buffer, target.byteOffset, target.length);
  for (let i = 0; i < halves.length; i += 1) bits[i] = halves[i] << 16;
}

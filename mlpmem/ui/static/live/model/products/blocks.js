// @ts-check
/* Matrices in blocks of 32 numbers of 4 or 8 bits, as GGUF files have them: number = scale * q + offset.
 *
 * The kernel of blocks.wat multiplies them; without it rows are expanded to floats. */
import { fromHalves } from "./halves.js";

export const BLOCK = 32; // numbers
const PREPARED = 36; // floats of a prepared block: its numbers, then four sums of them

/** A kind of block in a GGUF file: bits of a number, bytes of a block, where its numbers begin, and whether it has an offset.
 * @type {{ [kind: string]: { bits: 4 | 8, bytes: number, from: number, offset: boolean } }} */
export const KINDS = {
  Q4_0: { bits: 4, bytes: 18, from: 2, offset: false },
  Q4_1: { bits: 4, bytes: 20, from: 4, offset: true },
  Q8_0: { bits: 8, bytes: 34, from: 2, offset: false },
};

/** The bytes of a block as the kernel reads it: 16 bytes of numbers, scale and offset; or 32 bytes and scale. @type {(bits: 4 | 8) => number} */
export const blockBytes = (bits) => (bits === 4 ? 24 : 36);

/** The floats of rows that are prepared for the kernel. @param {number} rows @param {number} depth */
export const preparedRoom = (rows, depth) => (rows * depth * PREPARED) / BLOCK;

/** A matrix (width, depth) in blocks, each row after the other. */
export class Packed {
  /** @param {4 | 8} bits @param {Uint8Array} data @param {number} width @param {number} depth */
  constructor(bits, data, width, depth) {
    this.bits = bits;
    this.data = data;
    this.width = width;
    this.blocks = depth / BLOCK; // of a row
    const words = data.byteLength / 4;
    this.floats = new Float32Array(data.buffer, data.byteOffset, words); // the scales and offsets among the numbers
  }

  /** Fills the matrix with a file's blocks; `order` names the file's row of each row.
   * @param {string} kind @param {Uint8Array} source @param {((row: number) => number) | null} order */
  fill(kind, source, order) {
    const { bytes, from, offset } = KINDS[kind];
    const size = blockBytes(this.bits);
    const numbers = bytes - from;
    const { data } = this;
    const sign = this.bits === 8 ? 0x80 : 0;
    const halves = new Uint16Array(2);
    const ends = new Float32Array(2);
    for (let row = 0, to = 0; row < this.width; row += 1) {
      let at = (order ? order(row) : row) * this.blocks * bytes;
      for (let block = 0; block < this.blocks; block += 1, at += bytes, to += size) {
        halves[0] = source[at] | (source[at + 1] << 8);
        halves[1] = offset ? source[at + 2] | (source[at + 3] << 8) : 0;
        fromHalves(halves, ends);
        for (let i = 0, first = at + from; i < numbers; i += 1) data[to + i] = source[first + i] ^ sign;
        this.floats[(to + numbers) / 4] = ends[0];
        if (this.bits === 4) this.floats[(to + numbers) / 4 + 1] = offset ? ends[1] : -8 * ends[0];
      }
    }
    return this;
  }

  /** Whether all scales and offsets are finite. */
  isFinite() {
    let sum = 0;
    const [step, first] = [blockBytes(this.bits) / 4, this.bits === 4 ? 4 : 8];
    for (let at = first; at < this.floats.length; at += step) {
      sum += this.floats[at] * 0 + (this.bits === 4 ? this.floats[at + 1] * 0 : 0); // nan once one is not
    }
    return sum === 0;
  }

  /** Writes a row's numbers as float32. @param {number} row @param {Float32Array} target (depth,) */
  row(row, target) {
    const { data, floats, blocks } = this;
    const size = blockBytes(this.bits);
    for (let block = 0, at = row * blocks * size; block < blocks; block += 1, at += size) {
      const to = block * BLOCK;
      const ends = (at + size) / 4;
      if (this.bits === 8) {
        for (let i = 0; i < BLOCK; i += 1) target[to + i] = (data[at + i] - 128) * floats[ends - 1];
        continue;
      }
      const [scale, offset] = [floats[ends - 2], floats[ends - 1]];
      for (let i = 0; i < 16; i += 1) {
        target[to + i] = Math.fround((data[at + i] & 15) * scale) + offset;
        target[to + 16 + i] = Math.fround((data[at + i] >> 4) * scale) + offset;
      }
    }
  }
}

/** Rows of x in the order in which the kernel reads them, each number divided by what its place in a lane multiplies.
 * @param {4 | 8} bits @param {Float32Array} x (rows, depth) @param {Float32Array} target @param {number} count rows * depth */
export function prepare(bits, x, target, count) {
  const places = bits === 4 ? FOURS : EIGHTS;
  const shares = bits === 4 ? FOUR_SHARES : EIGHT_SHARES;
  const factor = bits === 4 ? 1 : -128;
  for (let from = 0, to = 0; from < count; from += BLOCK, to += PREPARED) {
    let [a, b, c, d] = [0, 0, 0, 0];
    for (let i = 0; i < BLOCK; i += 4) {
      const [p, q, r, s] = [x[from + places[i]], x[from + places[i + 1]], x[from + places[i + 2]], x[from + places[i + 3]]];
      const share = shares[i >> 2];
      target[to + i] = p * share;
      target[to + i + 1] = q * share;
      target[to + i + 2] = r * share;
      target[to + i + 3] = s * share;
      a += p;
      b += q;
      c += r;
      d += s;
    }
    target[to + BLOCK] = a * factor;
    target[to + BLOCK + 1] = b * factor;
    target[to + BLOCK + 2] = c * factor;
    target[to + BLOCK + 3] = d * factor;
  }
}

/* Step n of the kernel masks one number out of each of the four lanes; the lanes are at 0, 4, 8 and 12 of the bytes. */
const FOURS = Array.from({ length: BLOCK }, (_, i) => 4 * (i % 4) + (i >> 3) + 16 * ((i >> 2) % 2));
const FOUR_SHARES = Float32Array.from({ length: 8 }, (_, n) => 2 ** (-4 * (n % 4)));
const EIGHTS = Array.from({ length: BLOCK }, (_, i) => 16 * (i >> 4) + 4 * (i % 4) + ((i >> 2) % 4));
const EIGHT_SHARES = Float32Array.from({ length: 8 }, (_, n) => (n % 4 === 3 ? 1 : 2 ** (-8 * (n % 4))));

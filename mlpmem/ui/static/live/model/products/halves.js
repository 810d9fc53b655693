// @ts-check
/* Half precision: to float32, rounded to it, and as the kernel reads it.
 *
 * The kernel reads halves times 1024. Then no number of a model is subnormal, which would cost it time, and none is
 * rounded; numbers from 63 on would not fit. */

const FACTOR = 1024;
/** The value of every half. @type {Float32Array | null} */
let values = null;
/** Every half times FACTOR; LARGE where that is no half. @type {Uint16Array | null} */
let scaled = null;
const LARGE = 0x7c00; // infinity

/** @param {number} half */
function numberOf(half) {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 0x1f;
  const fraction = (half & 0x3ff) / 1024;
  if (exponent === 0x1f) return fraction ? Number.NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
}

/** @param {number} half */
function scaledOf(half) {
  const sign = half & 0x8000;
  const value = Math.abs(numberOf(half)) * FACTOR;
  if (value === 0) return sign;
  const exponent = Math.floor(Math.log2(value));
  if (!(exponent <= 15)) return LARGE;
  return sign | ((exponent + 15) << 10) | ((value / 2 ** exponent - 1) * 1024);
}

/** Halves as float32. @param {Uint16Array} halves @param {Float32Array} target */
export function fromHalves(halves, target) {
  values ??= Float32Array.from({ length: 65536 }, (_, half) => numberOf(half));
  for (let i = 0; i < halves.length; i += 1) target[i] = values[halves[i]];
}

/** Halves times FACTOR; returns whether all fit. @param {Uint16Array} halves @param {Uint16Array} target */
export function scaleHalves(halves, target) {
  scaled ??= Uint16Array.from({ length: 65536 }, (_, half) => scaledOf(half));
  let fits = true;
  for (let i = 0; i < halves.length; i += 1) {
    target[i] = scaled[halves[i]];
    fits &&= target[i] !== LARGE;
  }
  return fits;
}

/** Numbers of a matrix as float32, whatever it holds. @param {Float32Array | Uint16Array} numbers halves times FACTOR, or floats
 * @param {Float32Array} target */
export function expand(numbers, target) {
  if (numbers instanceof Float32Array) {
    target.set(numbers);
    return;
  }
  fromHalves(numbers, target);
  for (let i = 0; i < numbers.length; i += 1) target[i] /= FACTOR;
}

/** Rounds float32 numbers to half precision in place, ties to even. @param {Float32Array} numbers */
export function roundToHalf(numbers) {
  const bits = new Uint32Array(numbers.buffer, numbers.byteOffset, numbers.length);
  for (let i = 0; i < numbers.length; i += 1) {
    if (Math.abs(numbers[i]) < 2 ** -14) { // below it, halves are multiples of 2^-24
      const scaledUp = Math.abs(numbers[i]) * 2 ** 24;
      numbers[i] = Math.sign(numbers[i]) * ((scaledUp + 2 ** 52 - 2 ** 52) / 2 ** 24);
    } else bits[i] = (bits[i] + 0xfff + ((bits[i] >>> 13) & 1)) & ~0x1fff;
  }
}

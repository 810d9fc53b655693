// @ts-check
/* The Mersenne twister (Matsumoto and Nishimura 1998), seeded as torch and as Python seed it. */

const SIZE = 624;

export class Twister {
  /** @param {number} seed below 2^32, as torch takes it */
  constructor(seed) {
    this.state = new Uint32Array(SIZE);
    this.state[0] = seed;
    for (let i = 1; i < SIZE; i += 1) {
      const last = this.state[i - 1] ^ (this.state[i - 1] >>> 30);
      this.state[i] = Math.imul(1812433253, last) + i;
    }
    this.at = SIZE;
  }

  /** As Python's random.Random(seed). @param {number} seed below 2^32 */
  static asPython(seed) {
    const twister = new Twister(19650218);
    const { state } = twister;
    let i = 1;
    const turn = () => {
      i += 1;
      if (i < SIZE) return;
      state[0] = state[SIZE - 1];
      i = 1;
    };
    const mixed = (/** @type {number} */ factor) => state[i] ^ Math.imul(state[i - 1] ^ (state[i - 1] >>> 30), factor);
    for (let k = 0; k < SIZE; k += 1) {
      state[i] = mixed(1664525) + seed;
      turn();
    }
    for (let k = 1; k < SIZE; k += 1) {
      state[i] = mixed(1566083941) - i;
      turn();
    }
    state[0] = 0x80000000;
    return twister;
  }

  /** The next 32 bits. */
  draw() {
    const { state } = this;
    if (this.at === SIZE) {
      for (let i = 0; i < SIZE; i += 1) {
        const y = (state[i] & 0x80000000) | (state[(i + 1) % SIZE] & 0x7fffffff);
        state[i] = state[(i + 397) % SIZE] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      this.at = 0;
    }
    let y = state[this.at];
    this.at += 1;
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }
}

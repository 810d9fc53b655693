// @ts-check
/* The context vectors: decayed means of the embeddings of the words so far, as mlpmem/model/context.py has them.
 *
 * Each half-life keeps D sums of weighted embeddings and one of the weights, in the cache of a text. Where a question begins,
 * they begin anew: at the second of two token ids, or at the one. The last number of all is 1 after the first of two. */

const TINY = 1e-30; // in place of no weight at all: the mean of no words is 0

export class Context {
  /** @param {number[]} lives half-lives in tokens @param {number} size D @param {Float32Array} weights (V,) of token ids
   * @param {number[]} turn the one or two token ids that begin a question, or none */
  constructor(lives, size, weights, turn = []) {
    this.decays = lives.map((life) => Math.fround(2 ** (-1 / life)));
    this.size = size;
    this.weights = weights;
    this.turn = turn;
  }

  /** The numbers of all context vectors. */
  get width() {
    return this.decays.length * this.size;
  }

  /** The sums of a text without words. */
  sums() {
    return new Float32Array(this.decays.length * (this.size + 1) + 1);
  }

  /** Adds a token to sums and writes the means. @param {number} token @param {Float32Array} embedding (D,) @param {Float32Array} sums
   * @param {Float32Array} out (width,) */
  read(token, embedding, sums, out) {
    const { size, turn } = this;
    const last = sums.length - 1;
    if (token === turn.at(-1) && (turn.length === 1 || sums[last] === 1)) sums.fill(0);
    sums[last] = turn.length === 2 && token === turn[0] ? 1 : 0;
    const weight = this.weights[token];
    for (const [life, decay] of this.decays.entries()) {
      const at = life * (size + 1);
      const to = life * size;
      sums[at + size] = weight + sums[at + size] * decay;
      const all = Math.max(sums[at + size], TINY);
      for (let i = 0; i < size; i += 1) {
        sums[at + i] = weight * embedding[i] + sums[at + i] * decay;
        out[to + i] = sums[at + i] / all;
      }
    }
  }
}

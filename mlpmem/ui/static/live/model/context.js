// @ts-check
/* The context vectors: decayed means of the embeddings of the words so far, as mlpmem/model/context.py has them.
 *
 * Each half-life keeps D sums of weighted embeddings and one of the weights, in the cache of a text. Where a question begins,
 * they begin anew: at the second of two token ids, or at the one. The last number of all is 1 after the first of two.
 *
 * With `ends`, three more sums are kept, of the sentence at hand, of the one that ended last and of those that asked, and one
 * more mean is written. The last number but one is 1 where the question is over. */

const SENTENCE_LIFE = 8; // half-life in tokens within a sentence that asks
const TINY = 1e-30; // in place of no weight at all: the mean of no words is 0
const ASKED = 2; // what a token ends: 1 a sentence, 2 one that asks, 3 a question
const CLOSED = 3;

export class Context {
  /** @param {number[]} lives half-lives in tokens @param {number} size D @param {Float32Array} weights (V,) of token ids
   * @param {number[]} turn the one or two token ids that begin a question, or none
   * @param {Float32Array | null} ends (V,) of what tokens end, 0 for nothing; null: no mean of what was asked */
  constructor(lives, size, weights, turn = [], ends = null) {
    this.decays = lives.map((life) => Math.fround(2 ** (-1 / life)));
    this.within = Math.fround(2 ** (-1 / SENTENCE_LIFE));
    this.size = size;
    this.weights = weights;
    this.turn = turn;
    this.ends = ends;
    this.longest = lives.indexOf(Math.max(...lives));
  }

  /** The numbers of all context vectors. */
  get width() {
    return (this.decays.length + (this.ends ? 1 : 0)) * this.size;
  }

  /** The sums of a text without words. */
  sums() {
    return new Float32Array((this.decays.length + (this.ends ? 3 : 0)) * (this.size + 1) + 2);
  }

  /** Adds a token to sums and writes the means. @param {number} token @param {Float32Array} embedding (D,) @param {Float32Array} sums
   * @param {Float32Array} out (width,) */
  read(token, embedding, sums, out) {
    const { size, turn } = this;
    const last = sums.length - 1;
    const begins = token === turn.at(-1) && (turn.length === 1 || sums[last] === 1);
    if (begins) sums.fill(0);
    sums[last] = turn.length === 2 && token === turn[0] ? 1 : 0;
    const weight = begins && this.ends ? 0 : this.weights[token]; // what begins a question is no word of it
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
    if (this.ends) this.#ask(this.ends[token], weight, embedding, sums, out);
  }

  /** Adds a token to the last three sums and writes what was asked.
   * @param {number} ends @param {number} weight @param {Float32Array} embedding @param {Float32Array} sums @param {Float32Array} out */
  #ask(ends, weight, embedding, sums, out) {
    const { size, longest, within } = this;
    const sentence = this.decays.length * (size + 1);
    const latest = sentence + size + 1;
    const asked = latest + size + 1;
    const to = this.decays.length * size;
    const over = sums.length - 2;
    const ended = ends > 0 && sums[sentence + size] + weight > 0 && !sums[over]; // one without a word is none
    for (let i = 0; i <= size; i += 1) {
      const sum = sums[sentence + i] * within + (i < size ? weight * embedding[i] : weight);
      sums[sentence + i] = ends ? 0 : sum;
      if (ended) sums[latest + i] = sum;
      if (ended && ends === ASKED) sums[asked + i] += sum;
    }
    if (ends === CLOSED && sums[latest + size] > 0) sums[over] = 1;
    const at = [asked, latest].find((sum) => sums[sum + size] > 0);
    const all = at === undefined ? 1 : Math.max(sums[at + size], TINY);
    for (let i = 0; i < size; i += 1) out[to + i] = at === undefined ? out[longest * size + i] : sums[at + i] / all;
  }
}

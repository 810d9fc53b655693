// @ts-check
/* Byte-pair merges of one piece of text, by a heap: also a piece of a hundred thousand characters takes no time. */
import { must } from "./errors.js";

/** A pair that may merge: its rank, the place of its left symbol, both ids when it was found, and the merged id.
 * @typedef {{ rank: number, at: number, left: number, right: number, to: number }} Pair */

export class Merges {
  /** @param {{ vocab: { [piece: string]: number }, merges: (string | [string, string])[] }} model */
  constructor({ vocab, merges }) {
    this.ids = new Map(Object.entries(vocab));
    this.size = this.ids.size;
    /** [rank, merged id] of pairs of ids, by left * BASE + right. @type {Map<number, [number, number]>} */
    this.rules = new Map();
    for (const [rank, rule] of merges.entries()) {
      const [left, right] = typeof rule === "string" ? rule.split(" ") : rule;
      this.rules.set(this.#key(this.#id(left), this.#id(right)), [rank, this.#id(left + right)]);
    }
  }

  /** @param {string} piece */
  #id(piece) {
    const id = this.ids.get(piece);
    must(id !== undefined, `The tokenizer's merges name ${piece.slice(0, 20)}, which its vocabulary lacks. Reload the page.`);
    return id;
  }

  /** @param {number} left @param {number} right */
  #key(left, right) {
    return left * 2 ** 26 + right;
  }

  /** The ids of a piece that is spelled by symbols. @param {string[]} symbols @returns {number[]} */
  apply(symbols) {
    const ids = symbols.map((symbol) => this.#id(symbol)); // -1 once merged into its left neighbour
    const next = ids.map((_, i) => i + 1);
    const last = ids.map((_, i) => i - 1);
    /** @type {Pair[]} */
    const heap = [];
    /** @param {number} at */
    const offer = (at) => {
      const right = next[at];
      const rule = right < ids.length ? this.rules.get(this.#key(ids[at], ids[right])) : undefined;
      if (rule) push(heap, { rank: rule[0], at, left: ids[at], right: ids[right], to: rule[1] });
    };
    for (let at = 0; at + 1 < ids.length; at += 1) offer(at);
    for (let pair = pop(heap); pair; pair = pop(heap)) {
      const { at } = pair;
      const right = next[at];
      if (ids[at] !== pair.left || right >= ids.length || ids[right] !== pair.right) continue; // merged meanwhile
      ids[at] = pair.to;
      ids[right] = -1;
      next[at] = next[right];
      if (next[at] < ids.length) last[next[at]] = at;
      if (last[at] >= 0) offer(last[at]);
      offer(at);
    }
    return ids.filter((id) => id >= 0);
  }
}

/** The lower rank comes first, at equal rank the one further left. @type {(a: Pair, b: Pair) => boolean} */
const before = (a, b) => a.rank < b.rank || (a.rank === b.rank && a.at < b.at);

/** @param {Pair[]} heap @param {Pair} pair */
function push(heap, pair) {
  let i = heap.push(pair) - 1;
  while (i > 0 && before(pair, heap[(i - 1) >> 1])) {
    heap[i] = heap[(i - 1) >> 1];
    i = (i - 1) >> 1;
  }
  heap[i] = pair;
}

/** @param {Pair[]} heap @returns {Pair | undefined} */
function pop(heap) {
  const top = heap[0];
  const moved = heap.pop();
  if (!heap.length || !moved) return top;
  let i = 0;
  for (;;) {
    let child = 2 * i + 1;
    if (child + 1 < heap.length && before(heap[child + 1], heap[child])) child += 1;
    if (child >= heap.length || !before(heap[child], moved)) break;
    heap[i] = heap[child];
    i = child;
  }
  heap[i] = moved;
  return top;
}

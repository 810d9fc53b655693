/* Evidence as numbers: the kNN distribution without some neighbours, and documents to tokens.
 *
 * A neighbour's weight is count * exp(-distance / temperature) over the sum of all k. Leaving some
 * out is therefore exact: the others' weights, divided by what is left of them. step.far holds the
 * weights of the neighbours that are not listed, by the token they stand for, -1 for any other.
 */
(() => {
  "use strict";
  const M = (window.MLPMEM = window.MLPMEM || {});
  const OTHER = -1;

  const add = (sums, key, mass) => sums.set(key, (sums.get(key) || 0) + mass);

  /** The step without the neighbours at the positions `left` of its list: p, cand and rest anew.
   * Where no mass is left the datastore has nothing to say and repeats the decoder. */
  M.without = (step, left) => {
    const listed = new Set(step.cand.map((row) => row[0]));
    const sums = new Map(step.far);
    step.nn.forEach((row, i) => {
      if (!left.has(i)) add(sums, listed.has(row[5]) ? row[5] : OTHER, row[8] || 0);
    });
    const total = [...sums.values()].reduce((sum, mass) => sum + mass, 0);
    const knn = (id, lm) => (total > 0 ? (sums.get(id) || 0) / total : lm);
    return {
      ...step,
      p: { ...step.p, knn: knn(step.id, step.p.lm) },
      cand: step.cand.map((row) => [...row.slice(0, 4), knn(row[0], row[2])]),
      rest: { ...step.rest, knn: knn(OTHER, step.rest.lm) },
      left: total,
    };
  };

  /** What was left out and how far the numbers still hold, as a sentence. */
  M.leftText = (step, left) => {
    if (!left.size) return "";
    const mass = [...left].reduce((sum, i) => sum + (step.nn[i][8] || 0), 0);
    const count = left.size === 1 ? "1 neighbour" : `${left.size} neighbours`;
    if (!(M.without(step, left).left > 0)) {
      return `Without ${count} nothing of what was found is left: the mix is the decoder alone.`;
    }
    return `Without ${count}, ${M.percent(mass)} % of the weight: datastore and mix are computed ` +
      "anew from the others found. A new search might bring in further ones.";
  };

  /** The tokens for which a document is evidence, as a set of indices. */
  M.tokensOf = (steps, title) => new Set(steps.flatMap((step, i) =>
    ((step.nn || []).some((row) => row[1] === title) ? [i] : [])));

  /** [{title, group, mass, count}, ...] of a text's documents, weightiest first. */
  M.documentsOf = (steps) => {
    const found = new Map();
    for (const step of steps) {
      const here = new Set();
      for (const row of step.nn || []) {
        const one = found.get(row[1]) || { title: row[1], group: row[2], mass: 0, count: 0 };
        one.mass += row[8] || 0;
        if (!here.has(row[1])) one.count += 1;
        here.add(row[1]);
        found.set(row[1], one);
      }
    }
    return [...found.values()].sort((a, b) => b.mass - a.mass);
  };
})();

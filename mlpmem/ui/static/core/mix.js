/* The maths of the page: pure functions on the plain values of a trace, no DOM.
 *
 * A step is {i, id, s, p, cand, rest, js, nn, ms}; p and rest are keyed by source; a candidate is
 * [id, text, lm, memory, knn] with null for an absent source. Equal to mlpmem/trace.py's mix. A
 * lambda may be "auto": then every step has its own, in step.lmbda.
 */
(() => {
  "use strict";
  const M = (window.MLPMEM = window.MLPMEM || {});
  const FLOOR = 1e-12; // below float32 softmax's smallest useful value; keeps a log finite
  M.SOURCES = ["lm", "memory", "knn"];
  const PARTS = { lm: [], memory: ["memory"], knn: ["knn"], mixed: ["memory", "knn"] };

  /** What a system mixes into the decoder, in equal shares. */
  M.partsOf = (system) => (Object.hasOwn(PARTS, system) ? PARTS[system] : []);

  /** What a system gives beside the decoder, null where it is the decoder alone or is absent. */
  M.other = (p, system) => {
    const parts = M.partsOf(system);
    let sum = 0;
    for (const part of parts) {
      if (p[part] === null || p[part] === undefined) return null;
      sum += p[part];
    }
    return parts.length ? sum / parts.length : null;
  };

  /** Lambda at one step: a number as it is, for "auto" what the router chose there. */
  M.weight = (step, lambda) => (lambda === "auto" ? step.lmbda ?? 0 : lambda);

  /** (1 - lambda) p_lm + lambda p_system; p_lm where the system is "lm" or is absent. */
  M.mix = (p, system, lambda) => {
    const other = M.other(p, system);
    return other === null ? p.lm : (1 - lambda) * p.lm + lambda * other;
  };

  /** A candidate row as {id, text, p: {lm, memory, knn}}. */
  M.candidate = (row) => ({
    id: row[0], text: row[1], p: { lm: row[2], memory: row[3], knn: row[4] },
  });

  /** The step's candidates by falling mixed probability, each with `fused`. */
  M.ranked = (step, system, lambda) =>
    step.cand
      .map((row) => {
        const c = M.candidate(row);
        c.fused = M.mix(c.p, system, M.weight(step, lambda));
        return c;
      })
      .sort((a, b) => b.fused - a.fused || a.id - b.id);

  /** The candidate row with the largest mixed probability; the chosen token wins a tie. */
  M.argmax = (step, system, lambda) => {
    let best = null;
    let top = -1;
    const [first, second] = { memory: [3, 3], knn: [4, 4], mixed: [3, 4] }[system] || [];
    const weight = M.weight(step, lambda);
    for (const row of step.cand) {
      const [a, b] = [row[first] ?? null, row[second] ?? null];
      const p = a === null || b === null ? row[2] : (1 - weight) * row[2] + weight * ((a + b) / 2);
      if (p > top || (p === top && row[0] === step.id)) {
        top = p;
        best = row;
      }
    }
    return best;
  };

  /** log(p_fused / p_lm) of the chosen token, nats: above 0 the source raised it. */
  M.credit = (step, system, lambda) => {
    const fused = Math.max(M.mix(step.p, system, M.weight(step, lambda)), FLOOR);
    return Math.log(fused / Math.max(step.p.lm, FLOOR));
  };

  /** The share of the mix that is the source's, 0 .. 1: whose probability the token has. */
  M.share = (step, system, lambda) => {
    const other = M.other(step.p, system);
    if (other === null) return 0;
    const weight = M.weight(step, lambda);
    return (weight * other) / Math.max(M.mix(step.p, system, weight), FLOOR);
  };

  /** Whether a trace is a text that was only scored: nothing in it was chosen by a mix. */
  M.isScored = (trace) => Boolean(trace.settings?.scored);

  /** Perplexity of the chosen tokens when the decoder is mixed with `source` at lambda. */
  M.perplexity = (steps, source, lambda) => {
    if (!steps.length) return NaN;
    let nll = 0;
    for (const step of steps) {
      nll -= Math.log(Math.max(M.mix(step.p, source, M.weight(step, lambda)), FLOOR));
    }
    return Math.exp(nll / steps.length);
  };

  /** [[lambda, perplexity], ...] on a grid of n + 1 points. */
  M.curve = (steps, source, n = 50) =>
    Array.from({ length: n + 1 }, (_, i) => [i / n, M.perplexity(steps, source, i / n)]);

  /** The grid point of least perplexity. */
  M.optimum = (curve) => curve.reduce((best, point) => (point[1] < best[1] ? point : best));

  /** Whether any step carries a probability of this source. */
  M.hasSource = (steps, source) =>
    steps.some((step) => step.p[source] !== null && step.p[source] !== undefined);

  /** How many of a trace's first tokens were given to it rather than chosen. */
  M.given = (trace) => trace.settings?.forced?.length ?? 0;

  /** Per step the candidate row that would be chosen at lambda, or null where nothing changes:
   * against what was generated, or, in a text that was only scored, against the decoder alone. */
  M.flips = (trace, lambda) => {
    if (M.isScored(trace)) {
      return trace.steps.map((step) => {
        const now = M.argmax(step, trace.system, lambda);
        return now && now[0] !== M.argmax(step, "lm", 0)[0] ? now : null;
      });
    }
    const own = lambda === trace.lmbda || Math.abs(lambda - trace.lmbda) < 1e-9;
    if (trace.system === "lm" || own) {
      return trace.steps.map(() => null);
    }
    const sampled = (trace.settings?.temperature ?? 0) > 0;
    const given = M.given(trace);
    return trace.steps.map((step, i) => {
      const now = M.argmax(step, trace.system, lambda);
      const before = sampled || i < given ? M.argmax(step, trace.system, trace.lmbda)?.[0] : step.id;
      return now && now[0] !== before ? now : null;
    });
  };

  /** The first index at which two step lists differ, or -1 while one continues the other. Another
   * decoder's ids mean other texts. */
  M.firstDifference = (a, b) => {
    const n = Math.min(a.length, b.length);
    for (let i = 0; i < n; i += 1) if (a[i].id !== b[i].id || a[i].s !== b[i].s) return i;
    return -1;
  };

  const plain = (text) => text.normalize("NFKC").toLowerCase().replace(/[\s.]+/g, " ").trim();

  /** Whether a generated text begins with the true answer, as whole words. */
  M.isRight = (text, answer) => {
    const got = plain(text);
    const want = plain(answer);
    return got === want || (got.startsWith(want) && !/[\p{L}\p{N}]/u.test(got[want.length]));
  };

  /** How far memory and datastore are apart, in words; js in nats (0 .. ln 2). */
  M.agreement = (js) => {
    if (js < 0.05) return "agree closely";
    if (js < 0.2) return "largely agree";
    return js < 0.45 ? "differ" : "disagree";
  };
})();

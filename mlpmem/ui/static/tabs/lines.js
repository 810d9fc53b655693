/* The nll of every token as four small lines on one scale: decoder, memory, datastore, mix. */
(() => {
  "use strict";
  const M = (window.MLPMEM = window.MLPMEM || {});
  const ROWS = ["lm", "memory", "knn", "fused"];
  const HEADS = { lm: "decoder", memory: "memory", knn: "datastore", fused: "mix" };
  const H = 30;
  const LEAST = 1e-12;
  const CAP = 14; // nats drawn at most: one token in a million

  const nll = (p) => -Math.log(Math.max(p, LEAST));

  class Lines {
    /** pick(index) is called for a place that was pointed at. */
    constructor(pick) {
      this.steps = [];
      this.rows = Object.fromEntries(ROWS.map((source) => [source, this.#row(source, pick)]));
      this.root = M.h("div", { class: "lines" }, ROWS.map((source) => this.rows[source].root));
    }

    #row(source, pick) {
      const path = M.s("path", { class: "nll-line", "vector-effect": "non-scaling-stroke" });
      const cursor = M.s("line", { class: "nll-cursor", y1: 0, y2: H, "vector-effect": "non-scaling-stroke" });
      const svg = M.s("svg", { class: "nll", role: "img", preserveAspectRatio: "none",
        on: { click: (event) => {
          const box = svg.getBoundingClientRect();
          const at = Math.floor(((event.clientX - box.left) / box.width) * this.steps.length);
          if (this.steps[at]) pick(at);
        } } }, path, cursor);
      const value = M.h("span", { class: "nll-value" });
      return { path, cursor, svg, value, root: M.h("div", { class: "nll-row", "data-source": source },
        M.h("span", { class: "nll-name" }, HEADS[source]), svg, value) };
    }

    draw(steps, system, lambda) {
      this.steps = steps;
      const of = {
        ...Object.fromEntries(M.SOURCES.map((s) => [s, (step) => step.p[s]])),
        fused: (step) => M.mix(step.p, system, lambda),
      };
      for (const source of ROWS) {
        const there = source === "fused" || M.hasSource(steps, source);
        this.rows[source].root.hidden = !there;
        if (there) this.#line(this.rows[source], HEADS[source], steps.map((s) => nll(of[source](s))));
      }
    }

    #line(row, name, values) {
      const y = (v) => (H - 2 - (Math.min(v, CAP) / CAP) * (H - 4)).toFixed(1);
      const parts = values.map((v, i) => `${i ? "L" : "M"}${i} ${y(v)}L${i + 1} ${y(v)}`);
      row.svg.setAttribute("viewBox", `0 0 ${values.length} ${H}`);
      row.path.setAttribute("d", parts.join(""));
      const mean = values.reduce((sum, v) => sum + v, 0) / values.length;
      const none = values.filter((v) => v >= nll(0)).length;
      M.setText(row.value, none ? `no probability for ${none} of ${values.length}`
        : `${mean.toFixed(2)} nats · ppl ${M.short(Math.exp(mean))}`);
      row.svg.setAttribute("aria-label",
        `${name}: negative log-likelihood of ${values.length} tokens, ${row.value.textContent}`);
    }

    /** Shows which token is chosen; -1 is none. */
    mark(index) {
      for (const { cursor } of Object.values(this.rows)) {
        cursor.style.display = index < 0 ? "none" : "";
        cursor.setAttribute("x1", index + 0.5);
        cursor.setAttribute("x2", index + 0.5);
      }
    }
  }

  M.Lines = Lines;
})();

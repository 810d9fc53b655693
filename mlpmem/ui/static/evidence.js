/* The neighbours the datastore found for one token: title, context, distance, weight. */
(() => {
  "use strict";
  const M = (window.MLPMEM = window.MLPMEM || {});
  const LN2 = Math.log(2);

  /** A neighbour row as named fields. */
  M.neighbour = ([entry, title, group, left, target, targetId, right, distance, weight]) =>
    ({ entry, title, group, left, target, targetId, right, distance, weight });

  function item(neighbour, chosen) {
    const n = M.neighbour(neighbour);
    const share = Number.isFinite(n.weight) ? n.weight : 0;
    return M.h("li", { class: "neighbour", "data-entry": n.entry, "data-same": n.targetId === chosen },
      M.h("div", { class: "neighbour-head" },
        M.h("span", { class: "neighbour-title", dir: "auto" }, n.title),
        M.h("span", { class: "group-tag", "data-group": n.group },
          M.h("b", null, n.group), ` ${M.GROUPS[n.group] || ""}`)),
      M.h("p", { class: "neighbour-text", dir: "auto" },
        "…", M.glyph(n.left), n.target.startsWith(" ") ? " " : "",
        M.h("mark", null, M.glyph(n.target).trimStart() || "␣"), M.glyph(n.right), "…"),
      M.h("div", { class: "neighbour-numbers" },
        M.h("span", { class: "weight-bar", "aria-hidden": "true" },
          M.h("i", { style: { width: `${100 * share}%` } })),
        M.h("span", null, `weight ${M.percent(share)} %`),
        M.h("span", null, `distance ${M.short(n.distance)}`)));
  }

  /** How close memory and datastore are at this token, as a sentence. */
  M.agreementText = (step) => {
    if (step.js === null || step.js === undefined) {
      return M.hasSource([step], "knn")
        ? "Memory and datastore were not compared here."
        : "The datastore has not answered here, so there is nothing to compare the memory with.";
    }
    return `Memory and datastore ${M.agreement(step.js)} here: Jensen-Shannon divergence ` +
      `${step.js.toFixed(2)} of at most ${LN2.toFixed(2)} nats.`;
  };

  class Evidence {
    constructor() {
      this.agree = M.h("p", { class: "agreement" });
      this.list = M.h("ol", { class: "neighbours" });
      this.root = M.h("div", { class: "evidence" },
        M.h("h4", null, "What the datastore found"), this.agree, this.list);
    }

    render(step) {
      M.setText(this.agree, M.agreementText(step));
      this.list.replaceChildren(...(step.nn || []).map((n) => item(n, step.id)));
      this.list.scrollTop = 0;
    }
  }

  M.Evidence = Evidence;
})();

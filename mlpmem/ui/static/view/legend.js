/* The legend below the panes: what colours, lines and marks say. */
(() => {
  "use strict";
  const M = (window.MLPMEM = window.MLPMEM || {});

  const sample = (system, move, text) => M.h("span", { class: "legend-item" },
    M.h("span", { class: "strip", "data-system": system, "aria-hidden": "true" },
      M.h("span", { class: "sample", "data-move": move, style: { "--w": "0.8" } }, "word")), text);

  const mark = (sign, text) => M.h("span", { class: "legend-item" },
    M.h("b", { "aria-hidden": "true" }, sign), text);

  M.legend = () => M.h("div", { class: "legend", role: "note", "aria-label": "Legend" },
    sample("memory", "up", "raised by the memory"),
    sample("knn", "up", "raised by the datastore"),
    sample("memory", "down", "lowered"),
    mark("◆", "first difference"),
    mark("⚑", "would change at this λ"),
    M.h("span", { class: "legend-item", "data-for": "scrub" },
      M.h("span", { class: "over", "aria-hidden": "true" }, "word"), "changed by scrubbing λ"));
})();

/* The neighbours the datastore found for one token: title, context, distance, weight. */
(() => {
  "use strict";
  const M = (window.MLPMEM = window.MLPMEM || {});
  const LN2 = Math.log(2);

  /** A neighbour row as named fields. */
  M.neighbour = ([entry, title, group, left, target, targetId, right, distance, weight]) =>
    ({ entry, title, group, left, target, targetId, right, distance, weight });

  function item(neighbour, chosen, on) {
    const n = M.neighbour(neighbour);
    const share = Number.isFinite(n.weight) ? n.weight : 0;
    const use = M.h("input", { type: "checkbox", class: "neighbour-use", checked: true,
      "aria-label": `Use this neighbour, ${n.title}`, on: { change: () => on.use(use.checked) } });
    return M.h("li", { class: "neighbour", "data-entry": n.entry, "data-same": n.targetId === chosen },
      M.h("div", { class: "neighbour-head" }, M.h("label", { class: "neighbour-box" }, use),
        M.h("button", { type: "button", class: "neighbour-title", dir: "auto",
          title: "Mark the tokens this document is evidence for", "data-title": n.title,
          on: { click: () => on.cite(n.title) } }, n.title),
        M.groupTag(n.group)),
      M.h("p", { class: "neighbour-text", dir: "auto" },
        n.left && `…${M.glyph(n.left)}`, n.target.startsWith(" ") ? " " : "",
        M.h("mark", null, M.glyph(n.target).trimStart() || "␣"), n.right && `${M.glyph(n.right)}…`),
      M.h("div", { class: "neighbour-numbers" },
        M.h("span", { class: "weight-bar", "aria-hidden": "true" },
          M.h("i", { style: { width: `${100 * share}%` } })),
        M.h("span", null, `weight ${M.percent(share)} %`),
        M.h("span", null, `distance ${M.short(n.distance)}`),
        on.read ? M.h("button", { type: "button", class: "neighbour-read",
          "aria-label": `Open ${n.title} in Corpus`, on: { click: () => on.read(n) } }, "open in Corpus") : ""));
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
    /** on.leave(step) is told what is left once neighbours were unticked; on.cite(title). A
     * visitor's own text is not the corpus that can be read. */
    constructor(on) {
      this.on = on;
      this.left = new Set(); // positions in the step's list that are unticked
      this.lack = M.h("p", { class: "left-out", role: "status" });
      this.cited = M.h("p", { class: "cited", role: "status" });
      this.agree = M.h("p", { class: "agreement" });
      this.list = M.h("ol", { class: "neighbours" });
      this.root = M.h("div", { class: "evidence" },
        M.h("h4", null, "What the datastore found"), this.agree, this.lack, this.cited, this.list);
    }

    render(step, own) {
      this.step = step;
      this.left.clear();
      M.setText(this.agree, M.agreementText(step));
      M.setText(this.lack, "");
      this.list.replaceChildren(...(step.nn || []).map((n, i) => item(n, step.id, {
        use: (ticked) => this.#use(i, ticked), cite: this.on.cite,
        read: !own && M.canRead?.() ? M.read : null,
      })));
      this.list.scrollTop = 0;
    }

    #use(i, ticked) {
      if (ticked) this.left.delete(i);
      else this.left.add(i);
      this.list.children[i].toggleAttribute("data-left", !ticked);
      M.setText(this.lack, M.leftText(this.step, this.left));
      this.on.leave(this.left.size ? M.without(this.step, this.left) : this.step);
    }

    /** Says which document is marked in the text, and for how many tokens it is evidence. */
    cite(title, count) {
      M.setText(this.cited, title === null ? ""
        : `${M.quote(title)} is evidence for ${count} ${count === 1 ? "token" : "tokens"}, marked above.`);
      for (const button of this.list.querySelectorAll(".neighbour-title")) {
        button.setAttribute("aria-pressed", String(button.dataset.title === title));
      }
    }
  }

  M.Evidence = Evidence;
})();

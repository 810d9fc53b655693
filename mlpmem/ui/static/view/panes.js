/* One column of the page: who answers, its tokens, what changed, what it cost. */
(() => {
  "use strict";
  const M = (window.MLPMEM = window.MLPMEM || {});

  const RECORD = "Measured in wordings nobody trained on. New: facts the decoder never " +
    "saw. Known: facts that only the decoder was trained on. Mixed at its own lambda, or as the router chose. See Results.";

  /** What a system gets right of [new, known] facts, as the children of a line. */
  const measured = (shares) => {
    if (!shares) return [];
    const [fresh, known] = shares.map((share) => M.h("b", null, `${Math.round(100 * share)} %`));
    return ["Right on new facts ", fresh, ", on known facts ", known];
  };

  class Pane {
    /** id is the element's id; pick(system, index, how) is called for a chosen token. */
    constructor(system, id, pick) {
      this.system = system;
      this.trace = null;
      this.answers = []; // the right one and its aliases; empty where none is known
      this.reason = ""; // why it has nothing to show, where the run itself says so
      this.strip = new M.TokenStrip(system, (index, how) => pick(system, index, how));
      this.verdict = M.h("span", { class: "verdict" });
      this.note = M.h("p", { class: "pane-note" });
      this.empty = M.h("p", { class: "pane-empty" });
      this.caption = M.h("p", { class: "pane-caption" }, M.CAPTIONS[system] || "");
      this.record = M.h("p", { class: "pane-record", title: RECORD });
      this.read = new M.PassageNote();
      this.cost = new M.CostRow();
      this.inspect = M.h("button", { type: "button", class: "pane-tool", hidden: true,
        on: { click: () => M.page.inspect(this.trace.prompt + this.trace.text) } }, "Inspect");
      this.tools = M.h("div", { class: "pane-tools" });
      const title = M.h("h3", { class: "pane-title" },
        M.h("span", { class: "swatch", "data-source": system, "aria-hidden": "true" }),
        M.h("span", null, M.nameOf(system).title), this.verdict, this.inspect);
      this.root = M.h("section", { id, class: "pane", "data-system": system,
        "data-hue": M.kindOf(system), "aria-label": M.nameOf(system).title },
      title, this.caption, this.record, this.read.root,
      M.h("div", { class: "pane-body" }, this.empty, this.strip.root), this.note, this.tools,
      this.cost.root);
    }

    /** What was measured of this system, mixed as its text is or would be: by a router, or at one lambda. */
    #recall() {
      const known = M.RECORDS[this.system] || {};
      const auto = this.trace ? this.trace.lmbda === "auto" : M.page.status.routed;
      const key = auto && known.auto ? "auto" : "own";
      if (key !== this.record.dataset.key) this.record.replaceChildren(...measured(known[key]));
      this.record.dataset.key = key;
    }

    /** Starts over with a trace's plain fields; its steps are added as they arrive. */
    reset(trace, answers = []) {
      this.trace = trace ? { ...trace, steps: [] } : null;
      this.#recall();
      this.answers = answers;
      this.strip.clear();
      this.root.dataset.state = trace ? "waiting" : "empty";
      this.inspect.hidden = true;
      this.reason = "";
      this.read.show(null);
      M.setText(this.empty, "");
      M.setText(this.note, "");
      this.#judge(false);
      this.cost.render({ time: [], size: [] }, { time: 0, size: 0 });
    }

    /** Says why this column has nothing to show. */
    explain(text) {
      this.#recall();
      M.setText(this.empty, text);
    }

    /** The run says why nothing is here, or not yet. */
    hold(text, state) {
      this.reset(null);
      this.reason = text;
      this.root.dataset.state = state;
      this.explain(text);
    }

    /** Says where this column's answers come from; "" is the usual. */
    describe(text) {
      M.setText(this.caption, text || M.CAPTIONS[this.system] || "");
      this.record.hidden = Boolean(text); // measured with the page's own corpus
    }

    append(steps) {
      if (!this.trace || !steps.length) return;
      this.trace.steps.push(...steps);
      this.strip.append(steps);
      this.root.dataset.state = "running";
    }

    /** The generation is over: `trace` is complete and replaces what was pieced together. */
    finish(trace, scale) {
      const have = this.trace ? this.trace.steps.length : 0;
      if (!this.trace || have > trace.steps.length) {
        this.strip.clear();
        this.strip.append(trace.steps);
      } else {
        this.strip.append(trace.steps.slice(have));
      }
      this.trace = { ...trace };
      this.#recall();
      if (trace.finish === "eos") this.strip.markEnd();
      this.root.dataset.state = "done";
      const base = ["", "mixed"].includes(M.kindOf(this.system)); // what Inspect computes with
      this.inspect.hidden = !base || !M.page.inspect || M.isScored(trace);
      if (M.kindOf(this.system) === "rag") this.read.show(trace);
      this.#judge(true);
      this.cost.render(M.costOf(trace), scale);
    }

    /** Puts another whole text in place of this one; what both begin with stays as it is. */
    show(trace) {
      const at = M.firstDifference(this.trace.steps, trace.steps);
      const same = at < 0 ? Math.min(this.strip.nodes.length, trace.steps.length) : at;
      this.strip.cut(same);
      this.strip.append(trace.steps.slice(same));
      this.trace = trace;
      this.#recall();
      if (trace.finish === "eos") this.strip.markEnd();
      this.root.dataset.state = trace.finish ? "done" : "stopped";
      this.#judge(Boolean(trace.finish));
    }

    /** No more tokens come, though the answer has not ended. */
    interrupt() {
      const { dataset } = this.root;
      if (dataset.state !== "waiting" && dataset.state !== "running") return;
      if (this.trace) dataset.state = "stopped";
      else this.hold("Stopped before its turn.", "stopped");
    }

    #judge(done) {
      const known = done && this.answers.length > 0 && this.trace;
      const right = known && this.answers.some((a) => M.isRight(this.trace.text || "", a));
      this.verdict.dataset.right = known ? String(right) : "";
      M.setText(this.verdict, known ? (right ? "✓ right" : "✗ wrong") : "");
    }

    /** Repaints for the page's lambda; `base` is the decoder's own trace, if it is on screen. */
    repaint(base) {
      if (!this.trace) return;
      const lambda = M.lambdaOf(this.trace);
      const differs = base && base !== this.trace
        ? M.firstDifference(base.steps, this.trace.steps) : -1;
      const flip = this.strip.repaint(this.trace, lambda, differs);
      this.root.dataset.flipped = flip ? "yes" : "no";
      this.#remark(base, differs, flip);
    }

    #remark(base, differs, flip) {
      const given = M.given(this.trace);
      if (M.isScored(this.trace)) {
        M.setText(this.note, "");
      } else if (given && !flip && this.trace.steps.length >= given) {
        M.setText(this.note, `↳ You chose ${M.quote(this.trace.steps[given - 1].s)} at token ${given}; ` +
          "the text goes on from there.");
      } else if (flip) {
        const node = this.trace.steps[flip.index];
        M.setText(this.note, `⚑ Text valid up to here: now ${M.quote(flip.row[1])}, ` +
          `not ${M.quote(node.s)}.`);
      } else if (base && base !== this.trace && this.trace.steps.length) {
        M.setText(this.note, differs < 0 ? "Same as the decoder alone."
          : `◆ Differs from the decoder at token ${differs + 1}.`);
      } else {
        M.setText(this.note, "");
      }
    }
  }

  M.Pane = Pane;
})();

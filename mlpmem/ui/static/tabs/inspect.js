/* The Inspect tab: one text in one token view; beside it lines, gains, losses and documents. */
(() => {
  "use strict";
  const M = (window.MLPMEM = window.MLPMEM || {});
  const SHOWN = 6; // rows of a list
  const BEFORE = 8; // characters shown before a token
  const EMPTY = "Every token of a text, as it stands: how likely the decoder, the memory and the datastore " +
    "each found it, whose probability it is, who was surprised, and where the datastore had it from.";
  const LEAST = 0.05; // nats below which a token is no gain and no loss

  class Inspect {
    /** example is a text that is offered while there is none, "" for no offer. */
    constructor(host, example) {
      this.trace = null;
      const inner = M.h("div", { class: "view-host" });
      this.head = M.h("div", { class: "inspect-head", hidden: true }, this.#switch(),
        this.sentence = M.h("p", { class: "inspect-sentence" }),
        this.best = M.h("button", { type: "button", class: "pane-tool", on: { click: () => this.#go() } }));
      this.lines = new M.Lines((i) => this.#pick(i));
      this.lists = ["gains", "losses", "documents"].map((kind) => this.#list(kind));
      this.more = M.h("div", { class: "inspect-more", hidden: true },
        M.h("section", null, M.h("h4", null, "Negative log-likelihood of every token"), this.lines.root),
        M.h("div", { class: "inspect-lists" }, this.lists.map((list) => list.root)));
      this.bar = M.h("i");
      this.progress = M.h("div", { class: "own-bar", hidden: true }, this.bar);
      this.empty = M.h("div", { class: "inspect-empty" }, M.h("p", null, EMPTY), example
        ? M.h("button", { type: "button", class: "pane-tool", on: { click: () => M.page.inspect(example) } },
          "Inspect an example") : null);
      host.replaceChildren(this.progress, this.head, this.empty, inner, this.more);
      this.view = new M.TokenView(inner, { prefix: "inspect-pane-", systems: [], follows: true });
      inner.querySelector(".legend").replaceWith(M.inspectLegend());
      M.page.on("lambda", () => this.repaint());
      M.page.on("view", (view) => view === this.view && this.#mark());
      M.page.on("cite", (view) => view === this.view && this.#cited());
      M.page.on("stopped", (view) => { if (view === this.view) this.#nothing(); });
    }

    #switch() {
      this.sources = ["memory", "knn"].map((source) => M.h("button", { type: "button",
        class: "group-button", "data-source": source, "aria-pressed": "false",
        on: { click: () => this.mixWith(source) } }, `mix with ${M.nameOf(source).source}`));
      return M.h("div", { class: "groups", role: "group", "aria-label": "What the decoder is mixed with" },
        this.sources);
    }

    #list(kind) {
      const head = { gains: "Biggest gains", losses: "Biggest losses", documents: "Documents behind it, by weight" };
      const body = M.h("ol", { class: "inspect-list", "data-kind": kind });
      return { kind, body, root: M.h("section", null, M.h("h4", null, head[kind]), body) };
    }

    receive(value) {
      if (!value) return;
      if (value.kind === "progress") {
        if (value.run !== this.view.run) return;
        this.progress.hidden = false;
        this.bar.style.width = `${(100 * value.done) / value.total}%`;
        this.view.head.mark(`${value.done} of ${value.total} tokens`, "progress");
        return;
      }
      this.progress.hidden = value.kind !== "begin";
      if (value.kind === "begin") this.#hide();
      if (value.kind === "done" && value.run === this.view.run) {
        this.lambdas = value.lmbdas;
        [this.trace] = Object.values(value.traces);
        this.view.setRunning(false);
        this.mixWith(this.trace.system);
      } else {
        this.view.receive(value);
        if (value.kind === "message") this.#nothing();
      }
    }

    /** No text came after all. */
    #nothing() {
      this.progress.hidden = true;
      this.empty.hidden = this.trace !== null;
    }

    #hide() {
      this.trace = null;
      this.empty.hidden = true;
      this.bar.style.width = "0";
      this.head.hidden = true;
      this.more.hidden = true;
    }

    /** Shows the text as a mix of the decoder with another source; nothing is asked for. */
    mixWith(source) {
      const chosen = this.view.chosen?.index;
      this.trace = { ...this.trace, system: source, lmbda: this.lambdas[source] ?? this.trace.lmbda };
      this.view.restart({ [source]: this.trace });
      this.view.chosen = { system: source, index: chosen ?? 0 }; // it opens no drawer by itself
      this.view.complete({ [source]: this.trace });
      this.view.finished = null;
      this.view.replay.offer();
      this.view.chosen = null;
      this.view.head.mark("", "done");
      for (const button of this.sources) {
        button.hidden = !(button.dataset.source in this.lambdas);
        button.setAttribute("aria-pressed", String(button.dataset.source === source));
      }
      this.optimum = M.optimum(M.curve(this.trace.steps, source, 100));
      this.head.hidden = false;
      this.more.hidden = false;
      this.#documents();
      this.repaint();
      if (chosen !== undefined) this.#pick(chosen, "page");
      else this.#mark();
    }

    repaint() {
      if (!this.trace) return;
      const { steps, system } = this.trace;
      const lambda = M.lambdaOf(this.trace);
      this.lines.draw(steps, system, lambda);
      const flips = M.flips(this.trace, lambda).filter((flip) => flip !== null).length;
      const alone = M.perplexity(steps, system, 0);
      const mixed = M.perplexity(steps, system, lambda);
      const [target, least] = this.optimum;
      M.setText(this.sentence, `Perplexity: decoder ${M.short(alone)}, mix ` +
        `${M.short(mixed)} at λ ${M.lambdaText(lambda)}, least ${M.short(least)} at λ ` +
        `${M.lambdaText(target)}. ⚑ At ${flips} of ${steps.length} tokens the mix's first choice ` +
        "is another than the decoder's.");
      M.setText(this.best, `λ to ${M.lambdaText(target)}`);
      this.#moves(lambda);
    }

    /** The lists of tokens that the source raised and lowered most at lambda. */
    #moves(lambda) {
      const { steps, system } = this.trace;
      const moved = steps.map((step, i) => ({ step, i, credit: M.credit(step, system, lambda) }))
        .sort((a, b) => b.credit - a.credit);
      const lists = {
        gains: moved.filter((m) => m.credit > LEAST).slice(0, SHOWN),
        losses: moved.filter((m) => m.credit < -LEAST).reverse().slice(0, SHOWN),
      };
      for (const { kind, body } of this.lists) {
        if (!lists[kind]) continue;
        const key = `${system}${lists[kind].map((m) => `${m.i}:${m.credit.toFixed(2)}`)}`;
        if (body.key === key) continue;
        body.key = key;
        body.replaceChildren(...lists[kind].map((m) => this.#move(m, lambda)));
        if (!lists[kind].length) body.append(M.h("li", { class: "none" }, "none at this λ"));
      }
    }

    #move({ step, i, credit }, lambda) {
      const mixed = M.mix(step.p, this.trace.system, lambda);
      return M.h("li", null, M.h("button", { type: "button", class: "jump", "data-index": i,
        on: { click: () => this.#pick(i) } },
      M.h("span", { class: "jump-word", dir: "auto" }, this.#before(i), M.h("b", null, M.glyph(step.s))),
      M.h("span", null, `${M.percent(step.p.lm)} → ${M.percent(mixed)} %`),
      M.h("b", null, `${credit > 0 ? "▲ +" : "▼ −"}${Math.abs(credit).toFixed(2)} nats`)));
    }

    /** The end of the text before a token: a piece of a word alone says little. */
    #before(i) {
      const text = this.trace.steps.slice(Math.max(0, i - BEFORE), i).map((step) => step.s).join("");
      return text.length > BEFORE ? `…${M.glyph(text.slice(-BEFORE))}` : M.glyph(text).replace("∅", "");
    }

    #documents() {
      const { body } = this.lists.find((list) => list.kind === "documents");
      const found = M.documentsOf(this.trace.steps);
      body.replaceChildren(...found.slice(0, SHOWN).map((one) => M.h("li", null,
        M.h("button", { type: "button", class: "jump", "aria-pressed": "false", "data-title": one.title,
          on: { click: () => this.view.cite(one.title) } },
        M.h("span", { class: "jump-word", dir: "auto" }, one.title),
        M.h("span", null, M.isLettered(one.group) ? one.group : ""),
        M.h("b", null, `${one.count} ${one.count === 1 ? "token" : "tokens"}`)))));
      if (!found.length) body.append(M.h("li", { class: "none" }, "no datastore answered"));
    }

    #cited() {
      const { body } = this.lists.find((list) => list.kind === "documents");
      for (const button of body.querySelectorAll("button")) {
        button.setAttribute("aria-pressed", String(button.dataset.title === this.view.cited));
      }
    }

    #pick(index, how = "pointer") {
      if (this.trace) this.view.select(this.trace.system, index, how);
    }

    #mark() {
      this.lines.mark(this.view.chosen ? this.view.chosen.index : -1);
    }

    #go() {
      M.page.bar?.set(this.optimum[0]);
    }
  }

  const sample = (move, share, text) => M.h("span", { class: "legend-item" },
    M.h("span", { class: "strip", "data-system": "memory", "aria-hidden": "true" },
      M.h("span", { class: "sample", "data-move": move, style: { "--w": "0.6", "--share": share } }, "word")),
    text);

  /** What tint, lines and marks say of a scored text. */
  M.inspectLegend = () => M.h("div", { class: "legend", role: "note", "aria-label": "Legend" },
    sample("same", "0.9", "tint: how much of the probability is not the decoder's"),
    sample("up", "0", "it helps"), sample("down", "0", "it hurts"),
    M.h("span", { class: "legend-item" }, M.h("b", { "aria-hidden": "true" }, "⚑"),
      "another first choice than the decoder's"));

  M.mountInspect = (element, props, watch) => {
    const inspect = new Inspect(element.querySelector(".inspect-host"), props.example);
    watch("value", () => inspect.receive(M.unpack(props.value)));
  };

  /** Opens a text of another tab here and has it scored. */
  M.page.inspect = (given) => {
    const text = given.replace(/\r\n?/g, "\n"); // as a box gives it back
    const tabs = [...document.querySelectorAll("[role=tab]")];
    tabs.find((tab) => tab.textContent.trim() === "Inspect")?.click();
    const area = () => document.querySelector("#inspect-text textarea");
    const fill = (tries) => { // a tab's widgets are there once it was shown, and take words a little later
      if (area()?.value === text) {
        M.write(area(), text);
        window.setTimeout(() => document.getElementById("inspect-score")?.click(), 80);
        return;
      }
      if (area()) M.write(area(), text);
      if (tries) window.setTimeout(() => fill(tries - 1), 50);
    };
    fill(200);
  };
})();

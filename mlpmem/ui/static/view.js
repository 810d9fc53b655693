/* The token view: panes side by side and the drawer below, fed by the values Python sends.
 *
 * A value is {kind, run, ...}: "recorded" and "done" carry whole traces, "begin" opens a run,
 * "steps" carries a delta with seq, "message" says what went wrong, "invite" asks the page to
 * generate for the prompt that was just filled in; "opened" and "linked" belong to share.js.
 * A "begin" with branch fills one column anew and leaves the others; "scrub" and "scrubbed" belong
 * to scrub.js.
 */
(() => {
  "use strict";
  const M = (window.MLPMEM = window.MLPMEM || {});

  const PATIENCE = 60000; // milliseconds in the queue without a word

  class TokenView {
    constructor(host, options) {
      this.prefix = options.prefix; // of the panes' ids
      this.follows = options.follows; // whether a run says which panes there are
      this.ask = options.ask; // sends a request to the model, null where none can be sent
      this.scrub = new M.Scrub(this);
      this.root = host;
      this.run = null;
      this.seq = 0;
      this.running = false;
      this.finished = null;
      this.chosen = null;
      this.answers = []; // the right one and its aliases
      this.badge = M.h("span", { class: "badge" });
      this.prompt = M.h("span", { class: "asked", dir: "auto" });
      this.truth = M.h("span", { class: "truth", dir: "auto" });
      this.part = M.h("span", { class: "group-tag" });
      this.replay = new M.Replay(this);
      this.panes = new Map();
      this.tree = new M.Tree(this);
      const legend = M.legend();
      if (this.ask) legend.append(M.tally().root);
      this.alert = M.h("p", { class: "alert", role: "alert" });
      this.live = M.h("p", { class: "unseen", "aria-live": "polite" });
      this.columns = M.h("div", { class: "panes" });
      this.slot = M.h("div", { class: "drawer-slot" }, M.h("p", { class: "drawer-hint" },
        "Pick any token to see what the decoder, the memory and the datastore each say there."));
      this.runHead = M.h("div", { class: "run-head" }, this.badge, this.prompt, this.part,
        this.truth, this.replay.button);
      host.replaceChildren(this.alert, this.runHead, this.columns, legend, this.tree.root, this.slot, this.live);
      this.setSystems(options.systems);
      M.page.views.push(this);
      M.page.on("lambda", () => this.repaint());
      M.page.on("status", () => this.explain());
    }

    setSystems(systems) {
      this.panes = new Map(systems.map((system) => [system, new M.Pane(system,
        `${this.prefix}${system}`, (s, i, how) => this.select(s, i, how))]));
      for (const pane of this.panes.values()) {
        pane.reset(null);
        if (this.ask && pane.system !== "lm") pane.tools.append(this.scrub.row(pane.system));
      }
      this.columns.replaceChildren(...[...this.panes.values()].map((pane) => pane.root));
      this.columns.dataset.count = systems.length;
    }

    /** Takes one value from Python. */
    receive(value) {
      if (!value || !value.kind) return;
      if (value.kind === "message") this.say(value.text);
      else if (value.kind === "recorded") this.showRecorded(value);
      else if (value.kind === "begin") this.begin(value);
      else if (value.kind === "invite") this.invite();
      else if (value.kind === "opened") M.showOpened(this, value);
      else if (value.kind === "linked") M.showLinked(this, value);
      else if (value.kind.startsWith("scrub")) this.scrub.receive(value);
      else if (value.run !== this.run) return; // a late word of a run that was stopped
      else if (value.kind === "steps" && value.seq === this.seq + 1) {
        this.seq = value.seq;
        this.add(value.steps);
      } else if (value.kind === "done") this.end(value);
    }

    say(text) {
      M.setText(this.alert, text);
      if (this.scrub.end()) return;
      this.#interrupt();
      if (this.badge.dataset.kind === "waiting") M.setText(this.badge, "");
    }

    name(run) {
      this.run = run;
      this.root.dataset.run = run;
    }

    head(value, badge) {
      M.setText(this.alert, "");
      M.setText(this.badge, badge);
      this.badge.dataset.kind = value.kind;
      this.about = { prompt: value.prompt || "", answer: value.answer || "",
        aliases: value.aliases || [], part: value.part || "", wording: value.wording || "" };
      M.setText(this.prompt, value.prompt || "");
      this.answers = value.answer ? [value.answer, ...(value.aliases || [])] : [];
      M.setText(this.truth, "");
      const part = M.GROUPS[value.part] ? value.part : "";
      const held = ["test", "unseen"].includes(value.wording) ? " · wording nobody trained on" : "";
      this.part.replaceChildren(...(part ? [M.h("b", null, part), ` ${M.GROUPS[part]}${held}`] : []));
    }

    showRecorded(value, badge = "recorded") {
      this.replay.cancel();
      this.tree.clear();
      this.name(value.run);
      this.head(value, badge);
      this.setRunning(false);
      this.restart(value.traces);
      this.complete(value.traces);
    }

    begin(value) {
      if (!value.branch) {
        this.finished = null;
        this.tree.clear();
      }
      this.growing = value.branch ? this.tree.plan : null;
      this.replay.cancel();
      this.name(value.run);
      this.seq = 0;
      this.head(value, "live");
      this.restart(value.traces);
      this.panes.get("knn")?.describe(value.own ? M.OWN_CAPTION : "");
      this.setRunning(true);
    }

    /** An example filled in the prompt and the model is there: as if Generate had been pressed. */
    invite() {
      window.setTimeout(() => document.getElementById("generate")?.click(), 60);
    }

    /** Generate was pressed: until the first word comes back, this visitor is in the queue. */
    pending() {
      M.setText(this.alert, "");
      M.setText(this.badge, "waiting for its turn");
      this.badge.dataset.kind = "waiting";
      this.setRunning(true);
      this.#wait();
      M.page.emit("pending");
    }

    /** This many runs come first; the visitor is not forgotten. */
    ahead(count) {
      if (this.badge.dataset.kind !== "waiting" || !Number.isInteger(count)) return;
      M.setText(this.badge, count > 0 ? `waiting: ${count} ahead of you` : "waiting: you are next");
      this.#wait();
    }

    #wait() {
      window.clearTimeout(this.patience);
      this.patience = window.setTimeout(() => {
        if (this.badge.dataset.kind === "waiting") this.say("No answer came. Try again.");
      }, PATIENCE);
    }

    /** Empties the panes for new tokens of these traces. */
    restart(traces) {
      this.closeDrawer();
      if (this.follows) this.setSystems(Object.keys(traces));
      this.chosen = null;
      if (this.cited) this.cite(this.cited);
      for (const [system, pane] of this.panes) {
        if (this.growing && !traces[system]) continue;
        if (this.growing) this.tree.grow(system, { ...traces[system], steps: [] }, this.growing);
        pane.reset(traces[system], this.answers);
      }
      this.explain();
    }

    /** Says in every empty column why it is empty. */
    explain() {
      for (const [system, pane] of this.panes) {
        if (pane.trace) continue;
        const waiting = system === "knn" ? M.page.status.waiting : "";
        pane.explain(waiting || (this.run ? "Not part of this comparison." : ""));
      }
    }

    add(steps) {
      for (const [system, list] of Object.entries(steps)) this.panes.get(system)?.append(list);
      this.repaint();
    }

    end(value) {
      this.setRunning(false);
      const { growing } = this;
      this.growing = null;
      this.complete(value.traces, growing);
      if (!growing && this.answers.length && this.ask) M.tally().count(this.about.prompt, this.panes);
    }

    /** Sends a request unless a run is under way; returns whether it was sent. */
    request(data) {
      if (!this.ask || M.page.runningView()) return false;
      if (this.replay.playing) this.replay.stop();
      this.pending();
      this.ask({ ...data, prompt: this.about.prompt });
      return true;
    }

    /** Shows whole traces: repairs gaps, judges, and opens the drawer where it is instructive. */
    complete(traces, grown = null) {
      this.finished = grown ? { ...this.finished, ...traces } : traces;
      this.replay.offer();
      const scale = M.costScale(Object.values(this.finished));
      for (const [system, trace] of Object.entries(traces)) this.panes.get(system)?.finish(trace, scale);
      if (grown) this.tree.fill(grown.system, this.panes.get(grown.system).trace);
      this.repaint();
      const said = Object.entries(traces).map(([s, t]) => `${M.nameOf(s).title}: ${t.text}`);
      M.setText(this.live, said.join(". "));
      if (M.isPhone()) return;
      if (grown) this.select(grown.system, grown.index, "key");
      else if (!this.chosen) this.openTelling();
    }

    /** Stop was pressed: keep what arrived and let it be inspected; what still comes is late. */
    halt() {
      if (!this.running || this.scrub.end()) return;
      this.run = null;
      this.#interrupt();
      M.setText(this.badge, "stopped");
      this.badge.dataset.kind = "stopped";
      M.page.emit("stopped", this);
    }

    /** Nothing more comes: what is there stays. */
    #interrupt() {
      this.setRunning(false);
      for (const pane of this.panes.values()) pane.interrupt();
      if (this.growing) this.tree.fill(this.growing.system, this.panes.get(this.growing.system).trace);
      this.growing = null;
    }

    setRunning(on) {
      this.running = on;
      if (!on) M.setText(this.truth, this.answers.length ? `right answer: ${this.answers[0]}` : "");
      document.body.toggleAttribute("data-running", M.page.runningView() !== null);
    }

    /** Opens the drawer at the first token where the memory leaves the decoder. */
    openTelling() {
      const base = this.panes.get("lm")?.trace;
      for (const system of ["memory", "knn", "lm"]) {
        const trace = this.panes.get(system)?.trace;
        if (!trace?.steps.length) continue;
        const at = base ? M.firstDifference(base.steps, trace.steps) : 0;
        this.select(system, Math.max(0, at), "page");
        return;
      }
    }

    select(system, index, how) {
      const pane = this.panes.get(system);
      if (!pane?.trace?.steps[index]) return;
      if (this.chosen && this.chosen.system !== system) {
        this.panes.get(this.chosen.system)?.strip.select(-1);
      }
      this.chosen = { system, index };
      pane.strip.select(index, how === "key" || how === "pointer");
      M.drawer().show(this, pane, index);
      M.page.emit("view", this);
    }

    /** Marks in every pane the tokens that a document is evidence for; the same again unmarks. */
    cite(title) {
      this.cited = title === this.cited ? null : title;
      for (const pane of this.panes.values()) {
        pane.strip.cite(this.cited === null ? null : M.tokensOf(pane.trace?.steps || [], this.cited));
      }
      M.page.emit("cite", this);
    }

    deselect() {
      this.chosen = null;
      M.page.emit("view", this);
    }

    closeDrawer() {
      const drawer = M.drawer();
      if (drawer.open && drawer.view === this) drawer.close(false);
    }

    /** The pane whose text the perplexity curve describes. */
    focusPane() {
      const wanted = [this.chosen?.system, "memory", "knn", "lm"];
      const system = wanted.find((s) => s && this.panes.get(s)?.trace?.steps.length);
      return system ? this.panes.get(system) : null;
    }

    isShown() {
      return this.root.offsetParent !== null;
    }

    /** Whether anything on screen was generated at another lambda. */
    isOff(lambda) {
      return [...this.panes.values()].some((pane) => pane.system !== "lm" && pane.trace &&
        Math.abs(pane.trace.lmbda - lambda) > 1e-9);
    }

    repaint() {
      this.tree.settle();
      const base = this.panes.get("lm")?.trace || null;
      for (const pane of this.panes.values()) pane.repaint(base);
      M.page.emit("view", this);
    }
  }

  M.TokenView = TokenView;
})();

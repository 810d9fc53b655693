/* The probe: any token a visitor names, at the position the drawer shows. One request. */
(() => {
  "use strict";
  const M = (window.MLPMEM = window.MLPMEM || {});
  const COLUMNS = ["lm", "memory", "knn", "fused"];
  let send = null; // set once the part that carries it is mounted
  let number = 0;
  let waiting = null;

  class Probe {
    constructor(drawer) {
      this.drawer = drawer;
      this.input = M.h("input", { type: "text", class: "probe-input", maxlength: "40", dir: "auto",
        placeholder: "name any token", "aria-label": "Probe a token: its first token's probability here",
        on: { keydown: (event) => this.#pressed(event) } });
      this.button = M.h("button", { type: "button", class: "pane-tool",
        on: { click: () => this.ask() } }, "Probe");
      this.note = M.h("p", { class: "probe-note", role: "status" });
      this.body = M.h("tbody");
      this.root = M.h("div", { class: "probe", hidden: !send },
        M.h("div", { class: "probe-row" }, this.input, this.button, this.note),
        M.h("table", { class: "probe-table", "aria-label": "Probed tokens" }, this.body));
      this.rows = [];
    }

    /** Whether the model that answers is the one this column was written by. */
    allow(on) {
      this.root.hidden = !send || !on;
    }

    clear() {
      waiting = null;
      this.rows = [];
      this.body.replaceChildren();
      M.setText(this.note, "");
    }

    #pressed(event) {
      if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) this.ask();
      if (event.key !== "Escape" && !(event.ctrlKey || event.metaKey)) event.stopPropagation();
    }

    ask() {
      const { trace, index, view } = this.drawer;
      const text = this.input.value;
      if (!send || !text.trim()) return;
      if (!M.page.status.ready) {
        M.setText(this.note, "The model is still loading.");
        return;
      }
      number += 1;
      waiting = number;
      M.setText(this.note, "asking …");
      const before = trace.steps.slice(0, index).map((step) => step.id);
      send({ number, ids: [...trace.prompt_ids, ...before], text, own: view.own });
    }

    receive(value) {
      if (!value || value.number !== waiting) return;
      waiting = null;
      M.setText(this.note, value.error || "");
      this.rows = (value.rows || []).map((row) => this.#row(row));
      this.body.replaceChildren(...this.rows.map((row) => row.root));
      const { trace } = this.drawer;
      this.repaint(trace.system, M.weight(this.drawer.current, M.lambdaOf(trace)));
    }

    #row({ id, text, named, p }) {
      const cells = COLUMNS.map((c) => M.h("td", { class: "p", "data-source": c }, M.percent(p[c])));
      const whole = text === named ? null : M.h("span", { class: "lead" }, ` of ${M.quote(named)}`);
      return { p, cells, root: M.h("tr", { "data-token-id": id },
        M.h("th", { scope: "row", dir: "auto" }, M.single(text), whole), cells) };
    }

    repaint(system, lambda) {
      for (const { p, cells } of this.rows) M.setText(cells[3], M.percent(M.mix(p, system, lambda)));
    }
  }

  M.Probe = Probe;
  M.mountProbe = (props, watch, trigger) => {
    send = trigger;
    M.drawer().probe.root.hidden = false;
    watch("value", () => M.drawer().probe.receive(M.unpack(props.value)));
  };
})();

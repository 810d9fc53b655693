/* What a column read before the prompt: passages that retrieval found, folded away. */
(() => {
  "use strict";
  const M = (window.MLPMEM = window.MLPMEM || {});
  const PARTED = "¶"; // between passages, and before the prompt

  /** The texts that stand before what was asked in what was read. A run of old does not say what
   * was asked: there it is the last of the texts. */
  M.passagesOf = ({ prompt, settings }) => {
    const texts = (text) => text.split(PARTED).map((one) => one.trim()).filter((one) => one);
    const asked = settings?.asked;
    if (typeof asked !== "string" || !prompt.endsWith(asked)) return texts(prompt).slice(0, -1);
    return texts(prompt.slice(0, prompt.length - asked.length));
  };

  class PassageNote {
    constructor() {
      this.summary = M.h("summary", null, "Read before the prompt");
      this.list = M.h("div");
      this.root = M.h("details", { class: "pane-read", hidden: true }, this.summary, this.list);
    }

    /** Shows what a trace had read; null hides it. */
    show(trace) {
      this.root.hidden = !trace;
      if (!trace) return;
      const found = M.passagesOf(trace);
      M.setText(this.summary, found.length ? "Read before the prompt:" : "No passage was found, or none had room.");
      this.list.replaceChildren(...found.map((text) => M.h("p", { dir: "auto" }, text)));
      this.root.open = found.length > 0;
    }
  }

  M.PassageNote = PassageNote;
})();

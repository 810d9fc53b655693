/* The Corpus tab: hits, an open document, and the state of a visitor's own datastore. */
(() => {
  "use strict";
  const M = (window.MLPMEM = window.MLPMEM || {});

  const STRANGERS = "Not about anybody: passages on invented names, hardly one of which is ever met again. From " +
    "them decoder and memory learn to doubt a name they never met. Nothing of this is asked.";

  class CorpusView {
    constructor(host, open) {
      this.open = open;
      this.place = ""; // words of a passage that an opened document is to be read from
      M.page.corpus = this;
      this.alert = M.h("p", { class: "alert", role: "alert" });
      this.count = M.h("p", { class: "panel-note", role: "status" });
      this.hits = M.h("ol", { class: "hits" });
      this.page = M.h("article", { class: "document", tabindex: "0", "aria-label": "Document" });
      this.page.append(M.h("p", { class: "log-hint" }, "Search, and open a document to read all of it."));
      this.grid = M.h("div", { class: "corpus-grid" }, M.h("div", null, this.count, this.hits), this.page);
      host.replaceChildren(this.alert, this.grid);
    }

    receive(value) {
      if (!value) return;
      M.setText(this.alert, value.kind === "message" ? value.text : "");
      if (value.kind === "message") this.place = "";
      if (value.kind === "hits") this.#list(value);
      if (value.kind === "document") this.#read(value);
    }

    #list({ query, count, hits }) {
      const shown = hits.length < count ? `, the first ${hits.length} shown` : "";
      M.setText(this.count, count ? `${count} ${count === 1 ? "document has" : "documents have"} ` +
        `${M.quote(query)}${shown}.` : `Nothing has ${M.quote(query)}. Try fewer or other words.`);
      this.hits.replaceChildren(...hits.map((hit) => M.h("li", null,
        M.h("button", { type: "button", class: "hit", "aria-pressed": "false", "data-document": hit.document,
          on: { click: () => this.open({ document: hit.document, query }) } },
        M.h("span", { class: "hit-head" }, M.h("span", { class: "neighbour-name", dir: "auto" }, hit.title),
          M.groupTag(hit.group)),
        M.h("span", { class: "neighbour-text", dir: "auto" }, "…", hit.before,
          hit.match ? M.h("mark", null, hit.match) : "", hit.after, "…"))))); // the title alone may match
      this.hits.scrollTop = 0;
    }

    #read({ document, title, group, passages, count }) {
      const more = passages.length < count
        ? `The first ${passages.length} of ${count.toLocaleString("en")} passages.` : "";
      this.page.replaceChildren(
        M.h("h3", { dir: "auto" }, title, " ", M.groupTag(group)),
        group === "stranger" ? M.h("p", { class: "panel-note" }, STRANGERS) : "",
        more ? M.h("p", { class: "panel-note" }, more) : "",
        ...passages.map((parts) => M.h("p", { dir: "auto" }, // every second part is what was looked for
          ...parts.map((part, i) => (i % 2 ? M.h("mark", null, part) : part)))));
      const here = this.place && this.page.querySelector("mark");
      this.page.scrollTop = here ? here.offsetTop - this.page.offsetTop - this.page.clientHeight / 3 : 0;
      this.place = "";
      for (const hit of this.hits.querySelectorAll(".hit")) {
        hit.setAttribute("aria-pressed", String(Number(hit.dataset.document) === document));
      }
      if (M.isPhone()) this.page.scrollIntoView({ behavior: M.isCalm() ? "auto" : "smooth" });
    }
  }

  class Own {
    constructor(host) {
      this.alert = M.h("p", { class: "alert", role: "alert" });
      this.bar = M.h("i");
      this.progress = M.h("div", { class: "own-bar", hidden: true }, this.bar);
      this.line = M.h("p", { class: "own-line", role: "status" });
      this.kept = ""; // what the line says of the text that is kept
      host.replaceChildren(this.alert, this.progress, this.line);
      for (const name of ["data-own", "data-keying"]) document.body.removeAttribute(name);
      document.addEventListener("click", (event) => event.target.closest?.("#own-make") && this.#wait());
    }

    /** Make was pressed: until the first word comes back, others may come first. */
    #wait() {
      document.body.toggleAttribute("data-keying", true);
      M.setText(this.line, "Waiting for its turn …");
    }

    receive(value) {
      if (!value) return;
      M.setText(this.alert, value.kind === "message" ? value.text : "");
      if (value.kind === "progress" && value.run !== this.run) return; // a late word of what was cancelled
      const keying = value.kind === "begin" || value.kind === "progress";
      this.progress.hidden = !keying;
      document.body.toggleAttribute("data-keying", keying);
      this.run = keying ? value.run : null;
      if (value.kind === "begin") {
        this.bar.style.width = "0";
        M.setText(this.line, `Reading ${M.quote(value.title)} …`);
      } else if (value.kind === "progress") {
        this.bar.style.width = `${(100 * value.done) / Math.max(1, value.total)}%`;
        M.setText(this.line, `Keying ${value.done.toLocaleString("en")} of ` +
          `${value.total.toLocaleString("en")} tokens …`);
      } else if (value.kind === "ready") this.#ready(value);
      else if (value.kind === "gone") {
        this.#gone(value.stopped ? "Cancelled: nothing of it is kept."
          : "Deleted: the page answers from its own corpus again.");
      }
      else if (value.kind === "message") M.setText(this.line, this.kept);
    }

    #ready({ title, documents, tokens, bytes, seconds, note }) {
      const until = new Date(Date.now() + 1000 * seconds)
        .toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
      document.body.setAttribute("data-own", "");
      M.setText(this.line, this.kept = `${M.quote(title)}: ${documents} ` +
        `${documents === 1 ? "document" : "documents"}, ${tokens.toLocaleString("en")} tokens, ` +
        `${M.megabytes(bytes)}, kept for you alone until ${until}. The datastore's column, Inspect ` +
        "and Chat answer from it now: kNN knows it; the memory was trained earlier and does not." +
        (note ? ` (${note})` : ""));
      window.clearTimeout(this.timer);
      this.timer = window.setTimeout(() => this.#expire(), 1000 * seconds);
    }

    #expire() {
      this.#gone("Your text has expired and is gone.");
      document.querySelector("#store-choice input")?.click(); // what the page serves
    }

    #gone(text) {
      window.clearTimeout(this.timer);
      this.kept = "";
      document.body.removeAttribute("data-own");
      M.setText(this.line, text);
    }
  }

  const LONGEST = 48; // characters of what stands before a neighbour's token

  /** Whether this page has the texts that its datastore was made of. */
  const tab = () => [...document.querySelectorAll("[role=tab]")].find((one) => one.textContent.trim() === "Corpus");
  M.canRead = () => Boolean(tab());

  /** Opens a neighbour's document on the Corpus tab, at its place. */
  M.read = ({ title, group, left, target }) => {
    tab().click();
    const ask = (tries) => { // a tab's parts are there once it was shown
      const view = M.page.corpus;
      if (view?.page.isConnected && view.page.getClientRects().length) {
        const before = (left + target).split("¶").at(-1);
        view.place = (before.length > LONGEST ? before.slice(-LONGEST).replace(/^\S*\s/, "") : before).trim();
        view.open({ title, group, place: view.place });
      } else if (tries) window.setTimeout(() => ask(tries - 1), 50);
    };
    ask(100);
  };

  M.mountCorpus = (element, props, watch, open) => {
    const view = new CorpusView(element.querySelector(".corpus-host"), open);
    watch("value", () => view.receive(M.unpack(props.value)));
  };

  M.mountOwn = (element, props, watch) => {
    const own = new Own(element.querySelector(".own-host"));
    watch("value", () => own.receive(M.unpack(props.value)));
  };
})();

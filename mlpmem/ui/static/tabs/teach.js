// @ts-check
/* A part of the Corpus tab: told facts, the teaching of a memory with its loss, answers before and after. */
/** @import { Packed, Props, Taught, Watch } from "../core/types.js" */
import { h, inside, quote, setText, short, svg, tabNamed, write } from "../core/dom.js";
import { unpack } from "../core/state.js";

const W = 240;
const H = 56;
const SORTS = { new: "Your facts, in other words", begun: "Your sentences, completed: the page knows no other words for these", old: "Old facts", known: "What the decoder knows",
  general: "Anything else: the answers should stay" };
const TWICE = 600; // milliseconds in which a second click asks for nothing more
const FORM = /^Question: (.*) Answer:$/;
const WHY = "The datastore knows your sentences at once and cites them; delete one, and it forgets. The memory was " +
  "trained before you came. Teach it, and a copy of it learns them beside old text, so that it keeps the rest. The " +
  "copy is yours only, and goes with this page. While it is taught, your questions wait.";

/** @typedef {{ tell: (data: { text: string } | { forget: string }) => void, teach: () => void, halt: () => void,
 *   undo: () => void }} Events
 * @typedef {{ examples: [string, string][], longest: number, seconds: number }} Fields */

/** Asks a question on Compare, in all columns; "" only opens the box. @param {string} question */
const ask = (question) => {
  tabNamed("Compare")?.click();
  const box = document.querySelector("#prompt textarea");
  if (!(box instanceof HTMLTextAreaElement)) return;
  write(box, question);
  window.setTimeout(() => {
    const next = question ? document.querySelector("#generate") : box;
    if (next instanceof HTMLElement) next[question ? "click" : "focus"]();
  }, 250); // Gradio reads the box a little later
};

/** The loss of a teaching, in nats per new token against steps. */
class Loss {
  constructor() {
    this.line = svg("path", { class: "teach-line" });
    this.text = h("span", { class: "teach-loss" });
    this.root = h("div", { class: "teach-curve" },
      svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "Loss by step" }, this.line), this.text);
    /** @type {[number, number][]} */
    this.points = [];
  }

  clear() {
    this.points = [];
    this.line.setAttribute("d", "");
    setText(this.text, "");
  }

  /** @param {number} step @param {number} steps @param {number} loss */
  add(step, steps, loss) {
    this.points.push([step, loss]);
    const top = Math.max(...this.points.map(([, value]) => value), 0.1);
    const at = this.points.map(([x, y]) =>
      `${((W * x) / Math.max(1, steps)).toFixed(1)},${(3 + (H - 6) * (1 - y / top)).toFixed(1)}`);
    this.line.setAttribute("d", `M${at.join("L")}`);
    setText(this.text, `loss ${short(loss)} nats per new token`);
  }
}

class Teach {
  /** @param {HTMLElement} host @param {Fields} fields @param {Events} events */
  constructor(host, { examples, longest, seconds }, events) {
    this.events = events;
    this.examples = examples;
    this.box = h("input", { type: "text", class: "teach-box", maxlength: longest,
      "aria-label": "A fact, as one sentence", placeholder: "One sentence, such as: Quenby Harrowdale plays the oboe.",
      on: { keydown: (/** @type {KeyboardEvent} */ event) => { if (event.key === "Enter") this.#tell(); } } });
    this.send = h("button", { type: "button", class: "pane-tool", id: "teach-tell",
      on: { click: () => this.#tell() } }, "Tell it");
    this.offers = h("p", { class: "teach-offers" }, "Try ", ...examples.map(([text]) =>
      h("button", { type: "button", class: "teach-offer", on: { click: () => this.#send({ text }) } }, text)));
    this.alert = h("p", { class: "alert", role: "alert" });
    this.line = h("p", { class: "teach-status", role: "status" });
    this.list = h("ol", { class: "teach-list", "aria-label": "Your sentences" });
    this.teach = h("button", { type: "button", class: "pane-tool", id: "teach-start", hidden: true,
      on: { click: () => this.#start() } }, `Teach the memory (learns at most ${seconds} s)`);
    this.halt = h("button", { type: "button", class: "pane-tool", id: "teach-halt", hidden: true,
      on: { click: () => this.#halt() } }, "Cancel");
    this.undo = h("button", { type: "button", class: "pane-tool", id: "teach-undo", hidden: true,
      on: { click: () => events.undo() } }, "Undo");
    this.bar = h("i");
    this.progress = h("div", { class: "teach-bar", role: "progressbar", "aria-label": "Teaching", hidden: true },
      this.bar);
    this.loss = new Loss();
    this.loss.root.hidden = true;
    this.table = h("div", { class: "teach-table" });
    host.replaceChildren(h("p", { class: "panel-note" }, WHY), h("div", { class: "teach-row" }, this.box, this.send),
      this.offers, this.alert, this.list, this.line,
      h("div", { class: "teach-row" }, this.teach, this.halt, this.undo), this.progress, this.loss.root, this.table);
    /** @type {string | null} */
    this.run = null; // the teaching whose values are shown
    this.stopped = false;
    this.sent = { key: "", at: 0 }; // what was told or deleted last, and when
  }

  #tell() {
    if (this.box.value.trim()) this.#send({ text: this.box.value });
  }

  /** @param {{ text: string } | { forget: string }} data */
  #send(data) {
    const [key, now] = [JSON.stringify(data), performance.now()];
    if (key === this.sent.key && now - this.sent.at < TWICE) return;
    this.sent = { key, at: now };
    setText(this.alert, "");
    setText(this.line, "Reading …");
    this.events.tell(data);
  }

  #start() {
    this.stopped = false;
    this.run = null;
    this.loss.clear();
    this.table.replaceChildren();
    this.#busy(true);
    this.bar.style.width = "0";
    setText(this.line, "Waiting in the queue …");
    setText(this.alert, "");
    this.events.teach();
  }

  #halt() {
    this.stopped = true;
    this.#busy(false);
    setText(this.line, "Cancelled. Nothing has changed.");
    this.events.halt();
  }

  /** @param {boolean} on */
  #busy(on) {
    this.progress.hidden = !on;
    this.halt.hidden = !on;
    this.loss.root.hidden = !on && !this.table.childElementCount;
    this.teach.hidden = on || !this.list.childElementCount;
    this.send.disabled = on;
  }

  /** @param {Taught | null} value */
  receive(value) {
    if (!value) return;
    if (value.kind === "message") {
      this.#busy(false);
      setText(this.alert, value.text);
      setText(this.line, "");
    } else if (value.kind === "told") this.#told(value);
    else if (value.kind === "teaching") this.#step(value);
    else if (value.kind === "taught" && !this.stopped) this.#taught(value);
    else if (value.kind === "untaught") this.#untaught("Undone. The memory answers as it did before.");
  }

  /** @param {Extract<Taught, { kind: "told" }>} value */
  #told({ sentences, seconds }) {
    if (sentences.includes(this.box.value.trim().replace(/\s+/g, " "))) this.box.value = ""; // else it is being written
    setText(this.alert, "");
    this.list.replaceChildren(...sentences.map((text) => this.#sentence(text)));
    const count = `${sentences.length} ${sentences.length === 1 ? "sentence" : "sentences"}`;
    const took = seconds ? `, read in ${short(seconds)} s` : "";
    setText(this.line, sentences.length ? `The datastore knows ${count}${took}.`
      : "Nothing is told now.");
    this.#busy(false);
  }

  /** @param {string} text */
  #sentence(text) {
    const question = this.examples.find(([told]) => told === text)?.[1];
    return h("li", null, h("span", { dir: "auto" }, text),
      h("button", { type: "button", class: "teach-ask", on: { click: () => ask(question ?? "") } },
        question ? `Ask: ${question}` : "Write a question"),
      h("button", { type: "button", class: "teach-forget", "aria-label": `Delete ${quote(text)}`,
        on: { click: () => this.#send({ forget: text }) } }, "Delete"));
  }

  /** @param {Extract<Taught, { kind: "teaching" }>} value */
  #step({ run, step, steps, loss, left }) {
    if (this.stopped) return; // a late value of a cancelled teaching
    this.run = run;
    this.#busy(true);
    const share = Math.round((100 * step) / Math.max(1, steps));
    this.bar.style.width = `${share}%`;
    this.progress.setAttribute("aria-valuenow", String(share));
    if (step) this.loss.add(step, steps, loss);
    const rest = step && step === steps ? "asking the same questions before and after …"
      : `${step ? `step ${step} of ${steps}` : "reading old text beside your facts"}, at most ${Math.ceil(left ?? 0)} s left`;
    setText(this.line, steps ? `Teaching: ${rest}` : "Teaching: writing your facts in other words …");
  }

  /** @param {Extract<Taught, { kind: "taught" }>} value */
  #taught({ sentences, seconds, steps, planned, rows }) {
    const heads = ["Question", "Before", "After"].map((text) => h("th", { scope: "col" }, text));
    const parts = /** @type {(keyof typeof SORTS)[]} */ (Object.keys(SORTS)).map((sort) => {
      const own = rows.filter((row) => row.sort === sort);
      return own.length ? h("tbody", null,
        h("tr", null, h("th", { colspan: 3, scope: "rowgroup" }, SORTS[sort])),
        ...own.map((row) => h("tr", null, h("td", { dir: "auto" }, row.question.replace(FORM, "$1")),
          ...(sort === "general" ? [h("td", { dir: "auto" }, row.before || "…"), this.#stayed(row.after, row.before)]
            : [row.before, row.after].map((text) => this.#answer(text, row.answer)))))) : "";
    });
    this.table.replaceChildren(h("table", null, h("thead", null, h("tr", null, ...heads)), ...parts));
    this.undo.hidden = false;
    this.#busy(false);
    setText(this.line, `A copy of the memory learned ${sentences} ${sentences === 1 ? "sentence" : "sentences"} in ` +
      `${Math.round(seconds)} s. It answers in the memory's column, for you only.` +
      (steps < planned ? ` Only ${steps} of ${planned} steps fitted in: this machine is busy, so it learned less.` : ""));
  }

  /** @param {string} text @param {string} answer */
  #answer(text, answer) {
    const right = text.replace(/[.\s]+$/, "") === answer.replace(/[.\s]+$/, "") || text.startsWith(`${answer} `);
    return this.#judged(text, right, right ? ["✓ ", "right: "] : ["✗ ", "wrong: "]);
  }

  /** An answer that nobody calls right, and that should be as it was. @param {string} text @param {string} before */
  #stayed(text, before) {
    const same = text === before;
    return this.#judged(text, same, same ? ["= ", "as before: "] : ["≠ ", "changed: "]);
  }

  /** @param {string} text @param {boolean} good @param {string[]} judgement as a sign, and as words for a screen reader */
  #judged(text, good, [sign, words]) {
    return h("td", { dir: "auto", "data-right": good ? "yes" : "no" },
      h("span", { "aria-hidden": "true" }, sign), h("span", { class: "teach-said" }, words), text || "…");
  }

  /** @param {string} text */
  #untaught(text) {
    this.table.replaceChildren();
    this.undo.hidden = true;
    this.#busy(false);
    setText(this.line, text);
  }
}

/** @type {(element: Element, props: Props<Packed> & Fields, watch: Watch, events: Events) => void} */
export const mountTeach = (element, props, watch, events) => {
  const part = new Teach(inside(element, ".teach-host"), props, events);
  watch("value", () => part.receive(unpack(props.value)));
};

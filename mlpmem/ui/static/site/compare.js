// @ts-check
/* The Compare tab: prompt, options, examples, and the requests of a column's own buttons. */
/** @import { Request, Trace, Traces, Value, ValueOf } from "../core/types.js" */
/** @import { Desk, Recorded } from "./desk.js" */
import { h, inside, isCalm } from "../core/dom.js";
import { mountExamples } from "../core/panels.js";
import { page } from "../core/state.js";
import { mountProbe } from "../drawer/drawer.js";
import { BOUNDS } from "../live/engine/prompts.js";
import { mountView } from "../view/page.js";
import { mountCircuit } from "../circuit/circuit.js";
import { at } from "./desk.js";
import { Slot, newRun, packed } from "./slot.js";

/** An option's name in a link, if it differs. @type {{ [option: string]: string }} */
const LINKS = { max_new_tokens: "tokens", repetition_penalty: "penalty" };
/** @type {{ [system: string]: string }} */
const COLUMNS = { lm: "decoder alone", memory: "with memory", knn: "with datastore" };
const STEPS = { temperature: 0.1, top_p: 0.05, min_p: 0.05, repetition_penalty: 0.05 };

/** @typedef {{ [option: string]: HTMLInputElement }} Fields */

export class Compare {
  /** @param {Desk} desk */
  constructor(desk) {
    this.desk = desk;
    this.played = false; // a recording, once
    /** @type {number | null} */
    this.job = null;
    /** @type {Fields} */
    this.numbers = {};
    /** @type {Fields} */
    this.columns = {};
    const ask = desk.values.live ? (/** @type {any} */ request) => this.#asked(request) : null;
    mountCircuit(at("circuit"), { context: desk.values.context }, () => {}, null);
    mountView(at("compare-view"), { prefix: "pane-", systems: desk.values.systems }, () => {}, ask);
    this.view = page.views[page.views.length - 1];
    this.box = /** @type {HTMLTextAreaElement} */ (inside(at("prompt"), "textarea"));
    if (!ask) return;
    this.#layOut();
    at("generate").addEventListener("click", () => this.#generate());
    at("stop").addEventListener("click", () => desk.door?.stop(this.job));
    this.box.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.ctrlKey || event.metaKey || event.isComposing) return;
      event.preventDefault();
      this.#generate();
    });
    const probe = new Slot();
    mountProbe(probe.props, probe.watch, (data) =>
      desk.ask({ kind: "probe", ...data, own: Boolean(this.view.own) }, (value) => probe.set(packed(value))));
  }

  #layOut() {
    for (const [name, [, low, high, usual]] of Object.entries(BOUNDS)) {
      this.numbers[name] = h("input", { type: "number", min: low, max: high, step: /** @type {any} */ (STEPS)[name] ?? 1, value: usual, id: `option-${name}` });
    }
    for (const name of this.desk.values.systems) this.columns[name] = h("input", { type: "checkbox", checked: true });
    this.special = h("input", { type: "checkbox" });
    inside(at("settings"), ".settings-host").replaceChildren(
      h("div", { id: "systems", role: "group", "aria-label": "Columns" }, Object.entries(this.columns).map(([name, box]) =>
        h("label", null, box, COLUMNS[name]))),
      h("div", { class: "options-row" }, Object.entries(BOUNDS).map(([name, [label]]) =>
        h("label", { class: "option" }, h("span", null, label), this.numbers[name]))),
      h("label", { class: "option-special" }, this.special, "Parse control tokens, such as </s>, in the prompt"));
  }

  /** Offers the examples that can be shown now. */
  offer() {
    const { desk, desk: { values: { examples, questions } } } = this;
    const live = document.body.hasAttribute("data-live");
    const shown = live ? examples : examples.filter((example) => desk.recorded(example.prompt));
    const surprises = live && questions.length > 0;
    mountExamples(at("recordings"), { value: shown, surprises }, (_, { index }) =>
      this.#pick(index === "surprise" ? desk.surprise() : shown[index].prompt));
  }

  /** Runs an example, or shows its recording while the model loads. @param {string} prompt */
  #pick(prompt) {
    this.box.value = prompt;
    const recorded = this.desk.recorded(prompt);
    if (this.desk.ready) this.view.invite();
    else if (recorded) this.show(recorded);
    else this.view.receive({ kind: "linked", run: newRun(), prompt, ...this.desk.known(prompt), traces: null, ready: false, lmbda: null });
  }

  /** Shows a recorded run; plays it while the model loads. @param {Recorded} recorded */
  show(recorded) {
    this.box.value = recorded.prompt;
    this.view.receive(this.#recorded(recorded));
    const first = recorded.paced && !this.played;
    this.played = true;
    if ((first || page.status.state === "loading") && !isCalm()) this.view.replay.start();
  }

  /** A recorded run as the view's value. @param {Recorded} recorded @returns {ValueOf<"recorded">} */
  #recorded(recorded) {
    const knn = recorded.traces.knn;
    const traces = knn && this.desk.values.live ? { ...recorded.traces, knn: recording(knn) } : recorded.traces;
    return { ...recorded, kind: "recorded", run: newRun(), traces };
  }

  /** Shows what the page's address asks for, by default the first recording. */
  restore() {
    const { runs, first, live } = this.desk.values;
    const query = new URLSearchParams(window.location.search);
    const text = query.get("q") ?? "";
    const prompt = live ? this.desk.asPrompt(text) : text;
    for (const [name, [, low, high]] of Object.entries(live ? BOUNDS : {})) {
      const value = Number.parseFloat(query.get(LINKS[name] ?? name) ?? "");
      if (Number.isFinite(value)) this.numbers[name].value = String(Math.min(high, Math.max(low, value)));
    }
    const asked = query.get("systems")?.split(",").filter((name) => name in this.columns) ?? [];
    for (const name of asked.length ? Object.keys(this.columns) : []) this.columns[name].checked = asked.includes(name);
    const known = runs.find((run) => run.prompt === prompt);
    const showcase = runs.find((run) => run.prompt === first) ?? runs[0];
    this.view.showcase = showcase ? this.#recorded(showcase) : null;
    if (known || !live || !prompt.trim()) this.show(known ?? showcase);
    else this.#pick(prompt);
    const lambda = Number.parseFloat(query.get("lambda") ?? "");
    if (Number.isFinite(lambda)) page.bar?.set(Math.min(1, Math.max(0, lambda)));
    else if (query.get("lambda") === "auto") page.bar?.set("auto");
  }

  #generate() {
    const typed = this.box.value;
    const special = this.special?.checked ?? false;
    const prompt = special ? typed : this.desk.asPrompt(typed);
    const chat = !special && Boolean(this.desk.values.live?.chats);
    const systems = Object.keys(this.columns).filter((name) => this.columns[name].checked);
    const options = { ...Object.fromEntries(Object.entries(this.numbers).map(([name, { value }]) => [name, value === "" ? undefined : Number(value)])), special };
    this.#run({ prompt, systems, lmbda: this.desk.lambda, options, forced: [], own: this.desk.own, chat },
      prompt === typed && !chat ? "" : typed);
  }

  /** A request of a column's own buttons. @param {Request & { prompt: string, own: string }} request */
  #asked({ kind, run, system, systems = [system], lmbda, settings, forced, prompt, typed, own, chat = false }) {
    if (own && own !== this.desk.own) {
      window.setTimeout(() => this.view.say("The run searched a text that is gone. Generate it again."));
      return;
    }
    const options = { ...settings, special: settings?.special ?? false };
    if (kind === "scrub") {
      this.job = this.desk.ask({ kind, run, prompt, system, lmbda, options, forced, own: Boolean(own), chat }, (value) => this.view.receive(value));
    } else if (kind === "typed") this.#run({ prompt: typed ?? "", systems, lmbda, options, forced: [], own, chat: false }, "");
    else this.#run({ prompt, systems: [system], lmbda, options, forced, own, chat }, "", true);
  }

  /** Runs columns; the datastore's shows a recording unless a visitor's own text is searched.
   * @param {{ prompt: string, systems: string[], lmbda: any, options: object, forced: number[], own: string, chat: boolean }} plan @param {string} typed @param {boolean} [branch] */
  #run(plan, typed, branch = false) {
    const asked = plan.systems;
    const systems = asked.filter((system) => plan.own || system !== "knn");
    const kept = !branch && !plan.own && asked.includes("knn") ? this.desk.recorded(plan.prompt)?.traces.knn : undefined;
    /** @type {Traces} */
    const traces = {};
    /** @type {{ [system: string]: string }} */
    const captions = {};
    if (kept) {
      traces.knn = recording(kept);
      captions.knn = this.desk.caption;
    }
    const about = { ...this.desk.known(plan.prompt), ...(plan.chat ? { chat: true } : {}), typed, branch, columns: asked, own: plan.own, captions };
    if (!systems.length) {
      window.setTimeout(() => this.view.say(asked.length ? page.status.waiting : "No column is chosen. Choose one in Options."));
      return;
    }
    this.job = this.desk.ask({ kind: "compare", ...plan, systems, own: Boolean(plan.own) }, (/** @type {Value} */ value) => {
      if (value.kind === "begin") {
        this.view.receive({ ...value, ...about });
        if (kept) this.view.receive({ kind: "part", run: value.run, traces });
      } else if (value.kind === "done") this.view.receive({ ...value, traces: { ...value.traces, ...traces } });
      else this.view.receive(value);
    });
  }
}

/** A trace that is marked as a recording within a live run. @type {(trace: Trace) => Trace} */
const recording = (trace) => Object.assign({}, trace, { recorded: true });

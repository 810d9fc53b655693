// @ts-check
/* What the tabs share: the door, what is known about prompts, and the visitor's own text. */
/** @import { About, Example, Lambda, Scrubs, Traces } from "../core/types.js" */
/** @import { Live, Plan } from "../live/types.js" */
import { inside, megabytes, tabNamed } from "../core/dom.js";
import { page } from "../core/state.js";
import { asPrompt } from "../live/engine/prompts.js";
import { Door } from "./door.js";
import { Slot, newRun } from "./slot.js";

/** A recorded comparison. @typedef {About & { prompt: string, traces: Traces, paced?: boolean, scrubs?: Scrubs }} Recorded
 * @typedef {{ runs: Recorded[], examples: (About & Example)[], questions: (About & { prompt: string })[], titles: [string, string][],
 *   first: string | null, text: string, context: boolean, chat: import("../chat/types.js").Texts,
 *   rounds: import("../core/types.js").GameRow[], defaults: { [source: string]: number }, systems: string[], live: Live | null }} Values of recordings.js */

const ABSENT = "The datastore is not part of this recording.";
const UNTRAINED = ["test", "unseen"];
const LEAST = 12; // bytes of the device's memory per byte of a large model: a tab gets half of it at most, and needs five per byte

/** @type {(id: string) => HTMLElement} */
export const at = (id) => inside(document.body, `#${id}`);

export class Desk {
  /** @param {Values} values */
  constructor(values) {
    this.values = values;
    /** The id of the visitor's own text, "" for none. */
    this.own = "";
    this.status = new Slot();
    /** @type {Door | null} */
    this.door = null;
    page.local = true;
    this.#tell("replay", "recorded runs, without a server");
  }

  /** Starts loading the model, or offers a large one, if the site has one. */
  open() {
    const { live } = this.values;
    if (!live?.asked) {
      this.load();
      return;
    }
    const { deviceMemory: memory } = /** @type {{ deviceMemory?: number }} */ (navigator); // GB, where a browser tells it
    if (memory && memory * 1e9 < LEAST * this.#size) {
      this.#tell("replay", `recorded runs: the model (${megabytes(this.#size)}) needs a device with more memory than ${memory} GB`);
    } else this.#tell("replay", "recorded runs, until you load the model", this.#offer);
  }

  /** The bytes of the model's files. */
  get #size() {
    return Object.values(this.values.live?.files ?? {}).reduce((sum, file) => sum + file.bytes, 0);
  }

  /** The button that loads a large model. */
  get #offer() {
    const { live } = this.values;
    return live?.asked ? { download: `Load ${live.title}, ${megabytes(this.#size)}` } : {};
  }

  /** Starts loading the model. */
  load() {
    const { live } = this.values;
    if (!live) return;
    const all = this.#size;
    document.body.toggleAttribute("data-live", true);
    this.#tell("loading", `loading the model: 0 of ${megabytes(all)}`, { share: 0 });
    this.door = new Door(live, {
      files: (loaded, total) => this.#tell("loading", loaded < total
        ? `loading the model: ${megabytes(loaded)} of ${megabytes(total)}` : "starting the model", { share: loaded / total }),
      ready: (facts) => this.#ready(facts),
      lost: (text) => this.#lost(text),
    });
  }

  /** @param {import("../live/types.js").Facts} facts */
  #ready({ auto, kept, seconds, chat }) {
    document.body.dataset.seconds = seconds.toFixed(3);
    const line = kept ? "answers in your browser" : "answers in your browser; it could not store the model for your next visit";
    this.#tell("ready", line, { ready: true, auto, routed: this.values.live?.settings.auto && auto.length > 0, gated: true, chat });
    this.offer();
  }

  /** Offers the chat the systems that can answer; the datastore needs a text of the visitor's. */
  offer() {
    const { chat } = page.status;
    if (!chat) return;
    const systems = [...chat.systems.filter((system) => system !== "knn"), ...(this.own ? ["knn"] : [])];
    this.status.set({ ...page.status, chat: { ...chat, systems } });
  }

  /** @param {string} text */
  #lost(text) {
    this.door = null;
    document.body.removeAttribute("data-live");
    tabNamed("Compare")?.click(); // the only tab without a model
    this.#tell("replay", `${text} Recorded runs are shown.`, this.#offer);
  }

  /** @param {string} state @param {string} line @param {object} [more] */
  #tell(state, line, more = {}) {
    const { live, defaults } = this.values;
    this.status.set({ state, line, ready: false, settled: state !== "loading", waiting: live ? this.#absence() : ABSENT,
      defaults: live ? live.settings.lmbda : defaults, ...more });
  }

  /** Why the datastore's column is empty. */
  #absence() {
    if (!this.values.runs.some(({ traces }) => traces.knn)) {
      return "This model comes without a datastore. Paste a text of your own, and this column searches it, in your browser only.";
    }
    const bytes = this.#bytes("datastore_bytes");
    const small = this.#bytes("memory_bytes");
    return `The datastore${bytes ? ` (${megabytes(bytes)})` : ""} stays out of your browser; this column shows recorded runs, such as the ` +
      `examples. The memory${small ? ` needs ${megabytes(small)} and` : ""} answers anything.` +
      " Paste a text of your own to search that here.";
  }

  /** @param {string} part */
  #bytes(part) {
    return Object.values(this.values.runs[0]?.traces ?? {})[0]?.cost?.[part];
  }

  /** The caption of a recorded column in a live run. */
  get caption() {
    const bytes = this.#bytes("datastore_bytes");
    return `Recorded on a server: this datastore${bytes ? ` of ${megabytes(bytes)}` : ""} stays out of your browser.`;
  }

  get ready() {
    return Boolean(page.status.ready && this.door);
  }

  /** Sends a plan, or says why it cannot be answered; `receive` gets the values, never at once. Returns the job's number.
   * @param {any} plan without its run @param {(value: any) => void} receive @returns {number | null} */
  ask(plan, receive) {
    const run = plan.run ?? newRun();
    if (this.door && this.ready) return this.door.ask(/** @type {Plan} */ ({ ...plan, run }), receive);
    const text = this.door ? `The model is not ready yet: ${page.status.line}.` : page.status.line;
    window.setTimeout(() => receive({ kind: "message", run, text, number: plan.number, error: text }));
    return null;
  }

  /** The recorded comparison of a prompt. @param {string} prompt */
  recorded(prompt) {
    return this.values.runs.find((run) => run.prompt === prompt) ?? null;
  }

  /** The known facts about a prompt. @param {string} prompt @returns {About} */
  known(prompt) {
    const rows = [...this.values.questions, ...this.values.examples, ...this.values.runs];
    const { answer = "", aliases = [], part = "", wording = "" } = rows.find((row) => row.prompt === prompt) ?? {};
    return { answer, aliases, part, wording };
  }

  /** A prompt on an entity that the decoder never saw, in an untrained wording; "" without any. */
  surprise() {
    const fresh = this.values.questions.filter((row) => (this.values.live?.chats || row.part === "B") && UNTRAINED.includes(row.wording ?? ""));
    return fresh[Math.floor(Math.random() * fresh.length)]?.prompt ?? "";
  }

  /** A bare question in the form that the decoder was trained on. @param {string} text */
  asPrompt(text) {
    return asPrompt(text, Boolean(this.values.live?.questions));
  }

  /** The bar's lambda for the next text. @returns {Lambda | null} */
  get lambda() {
    return page.auto ? "auto" : page.lambda;
  }
}

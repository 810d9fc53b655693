// @ts-check
/* The drawer of settings: system prompt, sampling, longest answer, stop texts; and what is kept in this browser. */
/** @import { Facts, Sampling } from "./types.js" */
import { h, inside, megabytes, setText } from "../core/dom.js";
import { page } from "../core/state.js";

/** @typedef {"temperature" | "top_p" | "min_p" | "repetition_penalty" | "longest"} Numbered */
/** [field, name, what it does, least, most, step]. @type {[Numbered, string, string, number, number, number][]} */
const NUMBERS = [
  ["temperature", "Temperature", "0 always takes the likeliest token", 0, 2, 0.1],
  ["top_p", "Top-p", "share of the probability that is drawn from; 1 is all", 0.01, 1, 0.05],
  ["min_p", "Min-p", "tokens below this share of the likeliest are left out", 0, 1, 0.05],
  ["repetition_penalty", "Repetition penalty", "above 1, tokens that occurred become less likely", 0.1, 10, 0.05],
  ["longest", "Longest answer", "tokens; a cut answer says so and can be continued", 1, 512, 1],
];
const MOST_STOPS = 8;

/** @type {() => Sampling} */
const usualSampling = () => ({ system: "", temperature: null, top_p: null, min_p: null, repetition_penalty: null, longest: null, stop: [] });

/** The model's facts, null while it is loading. @type {() => Facts | null} */
export const facts = () => /** @type {any} */ (page.status).chat ?? null;

/** The model's own value of a field. @type {(field: Numbered) => number} */
const usual = (field) => {
  const known = facts();
  return field === "longest" ? known?.longest ?? 256 : known?.usual[field] ?? (field === "temperature" || field === "min_p" ? 0 : 1);
};

export class Settings {
  /** changed() is called with new values, erase() erases the conversation; kept() is the bytes of what is kept.
   * @param {{ changed: (values: Sampling) => void, erase: () => void, kept: () => number }} on */
  constructor(on) {
    this.on = on;
    this.values = usualSampling();
    /** @type {{ [field: string]: HTMLInputElement }} */
    this.inputs = {};
    this.system = h("textarea", { id: "chat-system", rows: "4", dir: "auto", placeholder: "No system prompt", maxlength: "2000",
      on: { input: () => this.#read() } });
    this.note = h("p", { class: "settings-note" });
    this.stop = h("textarea", { id: "chat-stops", rows: "2", placeholder: "One text per line",
      on: { input: () => this.#read() } });
    this.kept = h("p", { class: "settings-note", role: "status" });
    this.erase = h("button", { type: "button", class: "small-button", on: { click: () => { on.erase(); this.#count(); } } }, "Erase the conversation");
    /** @type {HTMLDialogElement | null} */
    this.dialog = null;
    this.button = h("button", { type: "button", id: "chat-settings", class: "chat-tool", "aria-haspopup": "dialog",
      on: { click: () => this.open() } }, "Settings");
  }

  open() {
    this.dialog ??= this.#layOut();
    this.show();
    this.dialog.showModal();
  }

  #layOut() {
    const close = h("button", { type: "button", class: "icon-button", "aria-label": "Close", on: { click: () => dialog.close() } }, "✕");
    const numbers = NUMBERS.map(([field, name, text, low, high, step]) => {
      const most = field === "longest" ? facts()?.most ?? high : high;
      const input = h("input", { type: "number", id: `chat-${field}`, min: low, max: most, step, inputmode: "decimal",
        "aria-describedby": `chat-${field}-note`, on: { input: () => this.#read(), change: () => this.show() } });
      this.inputs[field] = input;
      return h("div", { class: "setting" }, h("label", { for: input.id }, name), input,
        h("p", { class: "settings-note", id: `chat-${field}-note` }, `${text} (${low} to ${most})`));
    });
    const reset = h("button", { type: "button", class: "small-button", on: { click: () => this.#reset() } }, "Use the model's own");
    const dialog = h("dialog", { class: "chat-settings", "aria-label": "Chat settings", on: {
      keydown: (event) => event.stopPropagation(),
      click: (event) => { if (event.target === dialog) dialog.close(); },
    } }, h("div", null, h("header", null, h("h2", null, "Settings"), close),
      h("div", { class: "setting wide" }, h("label", { for: this.system.id }, "System prompt"), this.system, this.note),
      h("div", { class: "settings-grid" }, numbers),
      h("div", { class: "setting wide" }, h("label", { for: this.stop.id }, "Stop texts"), this.stop,
        h("p", { class: "settings-note" }, "An answer ends before the first of them.")),
      h("div", { class: "settings-acts" }, reset),
      h("h3", null, "Kept in this browser"), this.kept, h("div", { class: "settings-acts" }, this.erase)));
    inside(document.body, ".gradio-container").append(dialog);
    return dialog;
  }

  /** Shows the values; an empty field shows the model's own. */
  show() {
    const known = facts();
    this.system.value = this.values.system;
    this.system.disabled = known !== null && !known.template;
    setText(this.note, this.system.disabled ? "This decoder has no chat template, so it cannot read a system prompt." : "It comes before every conversation.");
    this.stop.value = this.values.stop.map((text) => text.replaceAll("\n", "\\n")).join("\n");
    for (const [field, input] of Object.entries(this.inputs)) {
      const value = this.values[/** @type {Numbered} */ (field)];
      input.value = value === null ? "" : String(value); // what is sent, also where something else was typed
      input.setAttribute("aria-invalid", "false");
      input.placeholder = `${usual(/** @type {Numbered} */ (field))}`;
    }
    this.#count();
  }

  #count() {
    const bytes = this.on.kept();
    setText(this.kept, bytes ? `The conversation with its tokens has ${megabytes(bytes)}. It is not kept on the server.` : "Nothing.");
    this.erase.disabled = !bytes;
  }

  #read() {
    /** @type {Sampling} */
    const values = { ...usualSampling(), system: this.system.value };
    for (const [field, , , low, , step] of NUMBERS) {
      const input = this.inputs[field];
      const most = Number(input.max);
      const number = Number(input.value);
      const isSet = input.value.trim() !== "" && Number.isFinite(number);
      const value = Math.min(most, Math.max(low, step === 1 ? Math.round(number) : number));
      input.setAttribute("aria-invalid", String(input.value !== "" && (!isSet || value !== number)));
      values[field] = isSet ? value : null;
    }
    values.stop = this.stop.value.split("\n").filter((line) => line).map((line) => line.replaceAll("\\n", "\n")).slice(0, MOST_STOPS);
    this.values = values;
    this.mark();
    this.on.changed(values);
  }

  #reset() {
    this.values = { ...usualSampling(), system: this.values.system };
    this.show();
    this.mark();
    this.on.changed(this.values);
  }

  /** Marks the button while anything differs from the model's own. */
  mark() {
    const set = JSON.stringify(this.values) !== JSON.stringify(usualSampling());
    this.button.toggleAttribute("data-set", set);
    this.button.setAttribute("aria-label", set ? "Settings, changed" : "Settings");
  }

  /** The values to send: the model's own where none is set. @returns {Sampling} */
  get sent() {
    const known = facts();
    const values = { ...this.values };
    for (const [field] of NUMBERS) values[field] ??= usual(field);
    if (known && !known.template) values.system = "";
    return { ...values, seed: values.temperature ? Math.floor(Math.random() * 2 ** 31) : 0 };
  }
}

// @ts-check
/* The foot of the chat: the box, Send and Stop, who answers, and how full the context is. */
/** @import { Turn } from "./types.js" */
import { h, setText } from "../core/dom.js";
import { nameOf, page } from "../core/state.js";
import { facts } from "./settings.js";
import { shownOf } from "./kept/talk.js";

const SYSTEMS = ["lm", "memory", "knn"];

export class Composer {
  /** `systems` are the bundle's, until the model says which can answer.
   * @param {{ send: () => void, stop: () => void, chosen: () => void }} on @param {{ question: string, systems: string[] }} texts */
  constructor(on, { question: hint, systems }) {
    this.on = on;
    this.bundled = systems;
    this.box = h("textarea", { rows: "1", dir: "auto", placeholder: hint, "aria-label": "Question", enterkeyhint: "send",
      on: { keydown: (event) => this.#pressed(event), input: () => this.say("") } });
    this.send = h("button", { type: "button", id: "chat-send", class: "primary", on: { click: () => on.send() } }, "Send");
    this.stop = h("button", { type: "button", id: "chat-stop", class: "secondary", disabled: true, hidden: true, on: { click: () => on.stop() } }, "Stop");
    this.note = h("p", { class: "composer-note", role: "status" });
    this.bar = h("i");
    this.meter = h("span", { class: "meter-bar", "aria-hidden": "true" }, this.bar);
    this.read = h("span", { class: "meter-text" });
    /** Who answers the next question. @type {string[]} */
    this.systems = [];
    /** Whom the visitor wants, some of whom may not be ready; none before a choice. @type {string[]} */
    this.wanted = [];
    this.chips = new Map(SYSTEMS.map((system) => [system, h("button", { type: "button", class: "who-chip", "data-system": system, "aria-pressed": "false",
      on: { click: () => this.#toggle(system) } }, h("span", { class: "swatch", "data-source": system, "aria-hidden": "true" }),
    h("span", { class: "long" }, nameOf(system).title), h("span", { class: "brief" }, nameOf(system).short))]));
    this.source = h("div", { id: "chat-source", role: "group", "aria-label": "Who answers" }, [...this.chips.values()]);
    this.root = h("div", { class: "composer" }, this.note,
      h("div", { class: "composer-row" }, h("div", { id: "chat-input" }, this.box), this.send, this.stop),
      h("div", { class: "meter", hidden: true }, this.meter, this.read));
    this.gauge = /** @type {HTMLElement} */ (this.root.lastElementChild);
    page.on("status", () => this.offer());
    this.offer();
  }

  /** Enter sends, Shift+Enter begins a line; Enter that ends an input method's word does neither. @param {KeyboardEvent} event */
  #pressed(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.on.send();
  }

  /** Offers the systems that can answer; the first choice is the memory, else the decoder. */
  offer() {
    const known = facts();
    const own = document.querySelector('#store-choice input[value="own"]');
    const available = new Set([...(known?.systems ?? this.bundled), ...(own instanceof HTMLInputElement && own.checked ? ["knn"] : [])]);
    for (const [system, chip] of this.chips) chip.hidden = !available.has(system) && !(system === "knn" && own);
    this.source.hidden = [...this.chips.values()].filter((chip) => !chip.hidden).length < 2;
    const valid = this.wanted.filter((system) => !this.chips.get(system)?.hidden);
    const usual = available.has("memory") ? "memory" : "lm";
    this.#choose(valid.length ? valid : [usual]);
  }

  /** Whether a system can be chosen. @param {string} system */
  has(system) {
    return this.chips.get(system)?.hidden === false;
  }

  /** @param {string[]} systems */
  want(systems) {
    this.wanted = systems;
    this.offer();
  }

  /** @param {string[]} systems */
  #choose(systems) {
    this.systems = SYSTEMS.filter((system) => systems.includes(system));
    for (const [system, chip] of this.chips) chip.setAttribute("aria-pressed", String(this.systems.includes(system)));
  }

  /** Adds a system or takes it away; one stays. @param {string} system */
  #toggle(system) {
    const rest = this.systems.filter((one) => one !== system);
    this.want(rest.length === this.systems.length ? [...rest, system] : rest.length ? rest : [system]);
    this.on.chosen();
  }

  /** @param {string} text */
  say(text) {
    setText(this.note, text);
  }

  /** @param {boolean} on */
  setRunning(on) {
    const focused = document.activeElement === this.send || document.activeElement === this.stop;
    this.send.hidden = on;
    this.stop.hidden = !on;
    this.stop.disabled = !on;
    if (focused) (on ? this.stop : this.box).focus();
  }

  /** Shows how much of the context the conversation fills. @param {Turn | undefined} last */
  measure(last) {
    const answers = Object.values(last?.answers ?? {}).flatMap((versions) => shownOf(versions) ?? []).filter((answer) => answer.room);
    this.gauge.hidden = !answers.length;
    if (!answers.length) return;
    const fullest = answers.reduce((most, answer) => (answer.read + answer.trace.steps.length > most.read + most.trace.steps.length ? answer : most));
    const used = fullest.read + fullest.trace.steps.length;
    const share = Math.min(1, used / fullest.room);
    this.bar.style.width = `${100 * share}%`;
    this.gauge.toggleAttribute("data-full", share > 0.85);
    const fallen = fullest.dropped ? ` · ${fullest.dropped} oldest ${fullest.dropped === 1 ? "turn" : "turns"} left out` : "";
    setText(this.read, `context: ${used.toLocaleString("en")} of ${fullest.room.toLocaleString("en")} tokens${fallen}`);
  }
}

// @ts-check
/* A view's content: panes side by side, the drawer below, and the selected token. */
/** @import { How, Lambda, Own, Probs, Shown, Step, ValueOf } from "../core/types.js" */
import { h, hasSheet, isEnd } from "../core/dom.js";
import { entriesOf, firstDifference, isAway, tokensOf, without } from "../core/mix.js";
import { AWAY, OWN_CAPTIONS, canRoute, kindOf, nameOf, page } from "../core/state.js";
import { truthOf } from "../core/truth.js";
import { drawer } from "../drawer/drawer.js";
import { Pane, legend } from "./panes.js";
import { Replay } from "./replay.js";
import { Room } from "./room.js";
import { RunHead } from "./runhead.js";
import { Scrub } from "./scrub.js";
import { tally } from "./tally.js";
import { Tree } from "./tree.js";
import { Whole } from "./whole.js";

/** `prefix` starts the panes' ids; `systems` have panes, unless the view `follows`: then every run names its columns.
 * ask(request) sends a request to the model, null without one.
 * @typedef {{ prefix: string, systems: string[], follows?: boolean, ask?: ((request: object) => void) | null }} Options */

/** The base class of TokenView only. */
export class Columns {
  /** @param {HTMLElement} host @param {Options} options */
  constructor(host, options) {
    this.prefix = options.prefix;
    this.follows = options.follows ?? false;
    this.ask = options.ask ?? null;
    this.root = host;
    /** The id of the run on screen. @type {string | null} */
    this.run = null;
    /** @type {Own} */
    this.own = "";
    /** The bundle's recorded run of the first screen, for the tour. @type {ValueOf<"recorded"> | null} */
    this.showcase = null;
    /** The right answer's tokens as the server scored them. @type {Probs[] | null} */
    this.asked = null;
    /** The unticked neighbours, by the entries of a position's list. @type {Map<string, Set<number>>} */
    this.unticked = new Map();
    this.shown = false; // on the open tab
    /** The selected token. @type {{ system: string, index: number } | null} */
    this.chosen = null;
    /** The title of the document whose tokens are marked. @type {string | null} */
    this.cited = null;
    /** @type {Map<string, Pane>} */
    this.panes = new Map();
    this.scrub = new Scrub(/** @type {any} */ (this));
    this.tree = new Tree(/** @type {any} */ (this));
    this.replay = new Replay(/** @type {any} */ (this));
    this.head = new RunHead(this.replay.button, (typed) => /** @type {any} */ (this).askAsTyped(typed));
    this.head.root.append(new Whole(this.head.truth, this).root);
    this.alert = h("p", { class: "alert", role: "alert" });
    this.live = h("p", { class: "unseen", "aria-live": "polite" });
    this.columns = h("div", { class: "panes" });
    this.slot = h("div", { class: "drawer-slot" }, h("p", { class: "drawer-hint" },
      "Select a word to see what the decoder", h("span", { "data-needs": "memory" }, ", the memory"),
      h("span", { "data-needs": "knn" }, ", the datastore"), " and their mix say there."));
    /** Where the circuit stands, which draws a token of this view. */
    this.home = h("div", { class: "circuit-home" });
    const key = legend();
    if (this.ask) key.append(tally().root);
    const details = h("button", { type: "button", class: "link-button details-button", "aria-expanded": "false", on: {
      click: () => details.setAttribute("aria-expanded", String(this.columns.toggleAttribute("data-details"))) } },
    "Tools, times and sizes");
    host.replaceChildren(this.alert, this.head.root, this.columns, details, key, this.tree.root,
      this.slot, this.home, this.live);
    this.room = this.prefix === "pane-" ? new Room(this.columns, this.home) : null;
    host.closest(".block")?.classList.add("holds-view");
    this.usual = options.systems;
    this.setSystems(options.systems);
    page.on("lambda", () => this.repaint());
    page.on("status", () => this.explain());
    new ResizeObserver(() => this.#turned()).observe(host);
  }

  /** The right answer's tokens, null where it is not known or in no text of this run; those of the column in focus come
   * first, because a router's lambdas are a column's own. */
  truth() {
    const focus = this.focusPane();
    const panes = [...(focus ? [focus] : []), ...this.panes.values()]
      .filter(({ system }) => !["tuned", "memory", "rag"].includes(kindOf(system)));
    const nodes = panes.flatMap(({ system }) => this.tree.current.get(system) ?? []);
    const traces = [...panes.map((pane) => pane.trace), ...nodes.map((node) => node.trace), ...nodes.flatMap((node) => node.scrub?.texts ?? [])]
      .filter((trace) => trace !== null);
    return truthOf(traces, this.head.answers, this.asked);
  }

  /** Creates the panes of a run's columns; the default panes stay if the run has no other columns.
   * @param {string[]} names */
  place(names) {
    const extra = this.follows || names.some((name) => !this.usual.includes(name));
    const wanted = extra ? names : this.usual;
    const other = wanted.join() !== [...this.panes.keys()].join();
    const guessed = wanted.some((name) => nameOf(name).guessed); // from a saved run
    if (this.follows || other || guessed) this.setSystems(wanted);
  }

  /** @param {string[]} systems */
  setSystems(systems) {
    this.scrub.rows.clear();
    this.panes = new Map(systems.map((system) => [system, new Pane(system, `${this.prefix}${system}`,
      (s, i, how) => this.select(s, i, how), (trace) => this.#inspect(trace))]));
    for (const pane of this.panes.values()) {
      pane.reset(null);
      const scrubs = pane.system !== "lm" && ["", "mixed"].includes(kindOf(pane.system));
      if (this.ask && scrubs) pane.tools.append(this.scrub.row(pane.system));
    }
    this.columns.replaceChildren(...[...this.panes.values()].map((pane) => pane.root));
    this.columns.dataset.count = String(systems.length);
    this.room?.watch();
  }

  /** Sets the captions for the searched text; a run may bring others.
   * @param {Own} own @param {{ [system: string]: string }} [captions] */
  from(own, captions = {}) {
    this.own = own;
    for (const name of ["memory", ...Object.keys(OWN_CAPTIONS)]) {
      this.panes.get(name)?.describe(captions[name] ?? (own ? OWN_CAPTIONS[name] ?? "" : ""));
    }
  }

  /** Tells where a gate let the datastore of the visitor's own text nowhere in. @param {Shown} [trace] */
  tellAway(trace) {
    if (this.own && trace && isAway(trace)) this.panes.get("knn")?.describe(AWAY, true);
  }

  /** Scores an answer with its prompt, read as the run read it. @param {Shown} trace */
  #inspect({ prompt, prompt_ids: read = [], text, steps, settings }) {
    const written = steps.filter(({ s }, i) => i < steps.length - 1 || !isEnd(s)).map(({ id }) => id);
    page.inspect?.(`${prompt}${text}`, Boolean(settings.special || this.head.about.chat), [...read, ...written]);
  }

  /** Shows in every empty column why it is empty. */
  explain() {
    for (const [system, pane] of this.panes) {
      if (pane.trace || pane.reason) continue;
      const waiting = system === "knn" ? page.status.waiting : "";
      pane.explain(waiting || (system === "memory" && page.status.no_memory) || (this.run ? "Not part of this run." : ""));
    }
  }

  /** The columns' systems, with the decoder last. */
  #mixedFirst() {
    const systems = [...this.panes.keys()];
    return [...systems.filter((s) => s !== "lm"), ...systems.filter((s) => s === "lm")];
  }

  /** Opens the drawer at the first token that differs from the decoder's: a tuned decoder's if there is
   * one, because the run is about it, else that of the first column that differs. */
  openAtDifference() {
    const base = this.panes.get("lm")?.trace;
    const places = this.#mixedFirst().flatMap((system) => {
      const steps = this.panes.get(system)?.trace?.steps;
      return steps?.length ? [{ system, at: base ? firstDifference(base.steps, steps) : 0 }] : [];
    });
    const other = places.filter(({ at }) => at >= 0);
    const place = other.find(({ system }) => kindOf(system) === "tuned") ?? other[0] ?? places[0];
    if (place) this.select(place.system, Math.max(0, place.at), "page");
  }

  /** @param {string} system @param {number} index @param {How} how */
  select(system, index, how) {
    const pane = this.panes.get(system);
    if (!pane?.trace?.steps[index]) return;
    if (this.chosen && this.chosen.system !== system) {
      this.panes.get(this.chosen.system)?.strip.select(-1);
    }
    this.chosen = { system, index };
    pane.strip.select(index, how === "key" || how === "pointer");
    drawer().show(this, pane, index);
    pane.strip.reveal();
    page.emit("view", this);
  }

  /** Marks in every pane the tokens that a document is evidence for; a second call unmarks them.
   * @param {string} title */
  cite(title) {
    this.cited = title === this.cited ? null : title;
    for (const pane of this.panes.values()) {
      pane.strip.cite(this.cited === null ? null : tokensOf(pane.trace?.steps || [], this.cited));
    }
    page.emit("cite", this);
  }

  /** A step without the neighbours that are unticked at it. @param {Step} step */
  stepOf(step) {
    const left = this.unticked.get(entriesOf(step));
    return left?.size ? without(step, left) : step;
  }

  deselect() {
    this.chosen = null;
    page.emit("view", this);
  }

  closeDrawer() {
    if (drawer().at?.view === this) drawer().close(false);
  }

  /** A conversation to share, which only the chat has. @returns {import("../core/types.js").Shared | null} */
  conversation() {
    return null;
  }

  /** Every pane on screen. @returns {Pane[]} */
  allPanes() {
    return [...this.panes.values()];
  }

  /** The pane of the perplexity curve. */
  focusPane() {
    const wanted = [this.chosen?.system, ...this.#mixedFirst()];
    const system = wanted.find((s) => s && this.panes.get(s)?.trace?.steps.length);
    return (system && this.panes.get(system)) || null;
  }

  /** The view's tab was opened or left: the drawer moves to the open tab's selected token. */
  #turned() {
    const shown = this.root.getClientRects().length > 0;
    if (shown === this.shown) return;
    this.shown = shown;
    document.body.toggleAttribute("data-still", !page.views.some((view) => view.shown));
    if (shown && this.chosen && !hasSheet()) this.select(this.chosen.system, this.chosen.index, "page");
    page.emit("view", this);
  }

  /** Whether a text on screen was generated at another lambda; "auto" is the routers'.
   * @param {Lambda} lambda */
  isOff(lambda) {
    return [...this.panes.values()].some(({ system, trace }) => {
      if (!trace || trace.system === "lm" || trace.recorded) return false;
      if (lambda !== "auto") return !(Math.abs(Number(trace.lmbda) - lambda) <= 1e-9);
      return trace.lmbda !== "auto" && canRoute(system, this.own);
    });
  }

  repaint() {
    this.tree.settle();
    const base = this.panes.get("lm")?.trace || null;
    for (const pane of this.panes.values()) pane.repaint(base);
    page.emit("view", this);
  }
}

// @ts-check
/* What the rest of the page sees of the chat: a view like Compare's, whose columns are the answers to one question; its
 * switch for the sources, its drawer, and how it scrolls. */
/** @import { How, Lambda, Own } from "../core/types.js" */
/** @import { AnswerPane } from "./answer.js" */
/** @import { TurnView } from "./question.js" */
import { h, isFrom, isPhone, setText } from "../core/dom.js";
import { tokensOf } from "../core/mix.js";
import { canRoute, page } from "../core/state.js";
import { drawer } from "../drawer/drawer.js";

const NEAR = 140; // pixels from the end within which the page scrolls along

/** The base class of Chat only. */
export class Shown {
  /** @param {HTMLElement} host */
  constructor(host) {
    this.root = host;
    this.prefix = "chat-pane-";
    this.shown = false; // on the open tab
    this.running = false;
    this.waiting = false; // in the queue
    this.ask = () => {}; // the drawer's candidates are buttons
    /** The unticked neighbours, by the entries of a position's list. @type {Map<string, Set<number>>} */
    this.unticked = new Map();
    /** @type {string | null} */
    this.cited = null;
    /** The answer with the selected token. @type {AnswerPane | null} */
    this.current = null;
    this.sources = false; // the switch
    this.held = false; // the key X
    /** The turns on screen, by id. @type {Map<string, TurnView>} */
    this.views = new Map();
    this.frame = 0;
    this.alert = h("p", { class: "alert", role: "alert" });
    this.live = h("p", { class: "unseen", "aria-live": "polite" });
    this.log = h("div", { class: "log", role: "log", "aria-label": "Conversation", "aria-live": "off", hidden: true });
    this.slot = h("div", { class: "drawer-slot" });
    this.switch = h("button", { type: "button", id: "chat-tint", class: "chat-tool tint-switch", role: "switch", "aria-checked": "false",
      title: "Shows who raised or lowered each word (hold X)", on: { click: () => this.#turnSources() } }, "Sources");
  }

  /** Joins the page. */
  listen() {
    page.views.push(/** @type {any} */ (this));
    this.root.append(this.live);
    page.on("lambda", () => this.repaint());
    page.on("status", () => this.repaint());
    page.on("cite", (view) => { if (/** @type {any} */ (view) === this) this.repaint(); });
    const resized = new ResizeObserver(() => this.#turned());
    for (const node of [this.root, document.body]) resized.observe(node); // what stands above it grows, too
    document.addEventListener("keydown", (event) => this.#key(event, true));
    document.addEventListener("keyup", (event) => this.#key(event, false));
    window.addEventListener("blur", () => this.#hold(false));
  }

  get tinted() {
    return this.sources || this.held;
  }

  #turnSources() {
    this.sources = !this.sources;
    this.switch.setAttribute("aria-checked", String(this.sources));
    this.#dock();
    this.follow(false); // the lambda bar comes up below
    this.repaint();
  }

  /** @param {KeyboardEvent} event @param {boolean} down */
  #key(event, down) {
    if (event.key !== "x" && event.key !== "X") return;
    const typing = isFrom(event, "textarea, input:not([type=range]), [contenteditable]") || event.ctrlKey || event.altKey || event.metaKey;
    if (!down) this.#hold(false);
    else if (!typing && this.shown) this.#hold(true);
  }

  /** @param {boolean} on */
  #hold(on) {
    if (this.held === on) return;
    this.held = on;
    this.repaint();
  }

  /** The tab was opened or left. */
  #turned() {
    const shown = this.root.getClientRects().length > 0;
    if (shown) this.root.style.setProperty("--above", `${this.root.getBoundingClientRect().top + window.scrollY}px`);
    if (shown === this.shown) return;
    this.shown = shown;
    document.body.toggleAttribute("data-still", !page.views.some((view) => view.shown));
    this.#dock();
    if (shown) this.opened();
    if (shown && this.chosen && !isPhone()) this.select(this.chosen.system, this.chosen.index, "page");
    page.emit("view", /** @type {any} */ (this));
  }

  opened() {}

  /** The lambda bar is there with the sources or a drawer: a plain conversation needs none. */
  #dock() {
    document.body.toggleAttribute("data-plain", this.shown && !this.sources && !this.isOpen);
  }

  get isOpen() {
    return /** @type {any} */ (drawer().at?.view) === this;
  }

  /** The right answer's tokens, which nobody scores in a chat. */
  truth() {
    return null;
  }

  /** The turn of the selected token, else the last. @returns {TurnView | undefined} */
  get here() {
    const views = [...this.views.values()];
    return views.find((view) => this.current && [...view.panes.values()].includes(this.current)) ?? views[views.length - 1];
  }

  /** @param {AnswerPane} pane */
  turnOf(pane) {
    return [...this.views.values()].find((view) => view.panes.get(pane.system) === pane)?.turn;
  }

  /** The answers of one turn, by system. @returns {Map<string, AnswerPane>} */
  get panes() {
    return this.here?.panes ?? new Map();
  }

  /** The answers of every turn on screen. @returns {AnswerPane[]} */
  allPanes() {
    return [...this.views.values()].flatMap(({ panes }) => [...panes.values()]);
  }

  get run() {
    return this.here?.turn.id ?? null;
  }

  /** @returns {Own} */
  get own() {
    return this.here?.turn.own ?? "";
  }

  /** The selected token. */
  get chosen() {
    const pane = this.current;
    return pane && pane.strip.selected >= 0 ? { system: pane.system, index: pane.strip.selected } : null;
  }

  /** What a queue and an export ask of a view's head. */
  get head() {
    return { kind: this.running && this.waiting ? "waiting" : "", about: this.here?.turn.about ?? {}, answers: [] };
  }

  /** The whole traces of the turn, null while one is incomplete. */
  get finished() {
    const panes = [...this.panes];
    if (!panes.length || panes.some(([, { answer }]) => answer?.state !== "done")) return null;
    return Object.fromEntries(panes.map(([system, { trace }]) => [system, trace]));
  }

  /** @param {number | null | undefined} count of runs before this one */
  ahead(count) {
    if (!this.running || !this.waiting || typeof count !== "number") return;
    for (const pane of this.panes.values()) {
      if (pane.growing) setText(pane.note, count > 0 ? `Waiting: ${count} ahead of you.` : "Waiting: you are next.");
    }
  }

  /** The page's own Generate buttons call these; the chat's buttons act themselves. */
  pending() {}

  halt() {}

  /** @param {AnswerPane} pane @param {number} index @param {How} how */
  pick(pane, index, how) {
    if (this.current && this.current !== pane) this.current.strip.select(-1);
    this.current = pane;
    this.select(pane.system, index, how);
  }

  /** @param {string} system @param {number} index @param {How} how */
  select(system, index, how) {
    const pane = this.panes.get(system);
    if (!pane?.trace?.steps[index]) return;
    if (this.current && this.current !== pane) this.current.strip.select(-1);
    this.current = pane;
    pane.strip.select(index, how === "key" || how === "pointer");
    this.#open(pane, index);
    pane.strip.reveal();
    this.repaint();
    page.emit("view", /** @type {any} */ (this));
  }

  /** @param {AnswerPane} pane @param {number} index */
  #open(pane, index) {
    drawer().show(/** @type {any} */ (this), /** @type {any} */ (pane), index);
    this.#dock();
  }

  deselect() {
    const focused = this.current?.strip.root.contains(document.activeElement);
    this.current?.strip.select(-1);
    this.current = null;
    if (focused && !this.tinted && !isPhone()) /** @type {HTMLElement | null} */ (document.querySelector("#chat-input textarea"))?.focus();
    this.#dock();
    page.emit("view", /** @type {any} */ (this));
  }

  /** The drawer keeps to the answer on screen, once that has the token. */
  keepDrawer() {
    const { at } = drawer();
    if (!at || !this.isOpen || at.trace === at.pane.trace || !at.pane.trace?.steps[at.index]) return;
    this.select(at.pane.system, at.index, "page");
  }

  closeDrawer() {
    if (this.isOpen) drawer().close(false);
  }

  /** @param {string} title */
  cite(title) {
    this.cited = title === this.cited ? null : title;
    for (const pane of this.panes.values()) {
      pane.strip.cite(this.cited === null ? null : tokensOf(pane.trace?.steps || [], this.cited));
    }
    page.emit("cite", /** @type {any} */ (this));
  }

  /** The answer of the perplexity curve: that of the selected token, else a mixed one. */
  focusPane() {
    const panes = [...this.panes.values()].filter(({ trace }) => trace?.steps.length);
    return (this.current?.trace ? this.current : null) ?? panes.find(({ system }) => system !== "lm") ?? panes[0] ?? null;
  }

  /** Lambda of the next text. @returns {Lambda | null} */
  get nextLambda() {
    return page.auto ? "auto" : page.lambda;
  }

  /** Whether an answer of the turn was written at another lambda. @param {Lambda} lambda */
  isOff(lambda) {
    return [...this.panes.values()].some(({ system, trace }) => {
      if (!trace || trace.system === "lm") return false;
      if (lambda !== "auto") return !(Math.abs(Number(trace.lmbda) - lambda) <= 1e-9);
      return trace.lmbda !== "auto" && canRoute(system, this.own);
    });
  }

  /** Paints the sources of all answers, once per frame. */
  repaint() {
    window.cancelAnimationFrame(this.frame);
    this.frame = window.requestAnimationFrame(() => {
      for (const view of this.views.values()) this.paint(view);
      this.#dock();
      this.root.toggleAttribute("data-tinted", this.tinted);
      page.emit("view", /** @type {any} */ (this));
    });
  }

  /** @param {TurnView} view */
  paint(view) {
    const base = view.panes.get("lm")?.trace ?? null;
    for (const pane of view.panes.values()) pane.repaint(this.tinted, base);
  }

  /** Scrolls to the end, always or only if it was near. @param {boolean} always */
  follow(always) {
    const box = document.scrollingElement;
    if (!box || !this.shown) return;
    const left = box.scrollHeight - box.clientHeight - box.scrollTop;
    if (always || left < NEAR) box.scrollTop = box.scrollHeight;
  }
}

// @ts-check
/* Room for the circuit on a desktop's first screen: the answers above it and the lambda bar below it leave it whole.
 * Where they do not, the circuit is lower, the columns' tools hide behind "Tools, times and sizes", and a longer answer
 * scrolls in its column, unless less than half of it would be seen: then the circuit is below the fold. What is below the
 * circuit begins below the lambda bar if its first line would be cut there. */
import { hasSheet } from "../core/dom.js";
import { page } from "../core/state.js";

const GAP = 8; // pixels between the circuit and the lambda bar
const LEAST = 92; // pixels of a column: its title and one line
const LINE = 44; // pixels of the first line below the circuit, with the space above it
const TIGHTER = ["circuit", "tools"]; // first the circuit is lower, then the columns' tools hide too

/** @type {(body: Element) => boolean} */
const isWritten = (body) => body.closest(".pane")?.getAttribute("data-state") === "running";

export class Room {
  /** home is where the circuit stands. @param {HTMLElement} panes @param {HTMLElement} home */
  constructor(panes, home) {
    this.panes = panes;
    this.home = home;
    this.frame = 0;
    this.observer = new ResizeObserver(() => {
      cancelAnimationFrame(this.frame);
      this.frame = requestAnimationFrame(() => this.fit());
    });
    panes.addEventListener("scroll", () => this.#fade(), { capture: true, passive: true });
    page.on("view", () => this.#rest());
    for (const node of [panes, home, document.documentElement]) this.observer.observe(node);
  }

  /** Watches the columns' texts, which grow without them where they scroll. */
  watch() {
    for (const strip of this.panes.querySelectorAll(".strip")) this.observer.observe(strip);
  }

  /** The pixels between the columns' top and what must stay visible below them, with the page scrolled up. */
  #room() {
    const dock = document.querySelector(".dock")?.getBoundingClientRect();
    const floor = dock?.height ? dock.top : window.innerHeight;
    const below = this.home.offsetHeight + parseFloat(getComputedStyle(this.home).marginTop) + GAP;
    return floor - (this.panes.getBoundingClientRect().top + window.scrollY) - below;
  }

  fit() {
    const { panes, home } = this;
    const scrolled = this.#bodies().map((body) => body.scrollTop);
    panes.removeAttribute("data-capped");
    panes.removeAttribute("data-tight");
    home.style.marginBottom = "";
    if (hasSheet() || !home.offsetHeight || panes.hasAttribute("data-details")) return;
    for (const way of TIGHTER) {
      if (panes.offsetHeight > this.#room()) panes.setAttribute("data-tight", way);
    }
    const room = this.#room();
    const wanted = panes.offsetHeight;
    if (wanted > room && room < Math.max(LEAST, wanted / 2)) return;
    const spare = GAP + Math.max(0, room - wanted); // pixels between the circuit and the lambda bar
    if (spare < LINE) home.style.marginBottom = `${spare}px`;
    if (wanted <= room) return;
    panes.style.setProperty("--most", `${room}px`);
    panes.setAttribute("data-capped", "");
    for (const [i, body] of this.#bodies().entries()) {
      if (isWritten(body)) body.setAttribute("data-follows", "");
      body.scrollTop = isWritten(body) ? body.scrollHeight : scrolled[i]; // the words that are being written stay visible
    }
    this.#fade();
  }

  /** Scrolls a text that is no longer being written back to its beginning. */
  #rest() {
    for (const body of this.#bodies()) {
      if (!body.hasAttribute("data-follows") || isWritten(body)) continue;
      body.removeAttribute("data-follows");
      body.scrollTop = 0;
    }
  }

  #bodies() {
    return [...this.panes.querySelectorAll(".pane-body")];
  }

  /** Fades the lines of a text that goes on above or below. */
  #fade() {
    const capped = this.panes.hasAttribute("data-capped");
    for (const body of this.#bodies()) {
      body.toggleAttribute("data-before", capped && body.scrollTop > 4);
      body.toggleAttribute("data-more", capped && body.scrollTop + body.clientHeight < body.scrollHeight - 4);
    }
  }
}

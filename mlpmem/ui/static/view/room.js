// @ts-check
/* Room for the circuit on a desktop's first screen: the answers above it and the lambda bar below it leave it whole.
 * Where they do not, the circuit is lower, the columns' tools hide behind "Tools, times and sizes", and a longer answer
 * scrolls in its column, unless less than half of it would be seen: then the circuit is below the fold. */
import { hasSheet } from "../core/dom.js";

const GAP = 8; // pixels between the circuit and the lambda bar
const LEAST = 92; // pixels of a column: its title and one line
const TIGHTER = ["circuit", "tools"]; // first the circuit is lower, then the columns' tools hide too

export class Room {
  /** home is where the circuit stands. @param {HTMLElement} panes @param {HTMLElement} home */
  constructor(panes, home) {
    this.panes = panes;
    this.home = home;
    this.frame = 0;
    const observer = new ResizeObserver(() => {
      cancelAnimationFrame(this.frame);
      this.frame = requestAnimationFrame(() => this.fit());
    });
    panes.addEventListener("scroll", () => this.#fade(), { capture: true, passive: true });
    for (const node of [panes, home, document.documentElement]) observer.observe(node);
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
    if (hasSheet() || !home.offsetHeight || panes.hasAttribute("data-details")) return;
    for (const way of TIGHTER) {
      if (panes.offsetHeight > this.#room()) panes.setAttribute("data-tight", way);
    }
    const room = this.#room();
    const wanted = panes.offsetHeight;
    if (wanted <= room || room < Math.max(LEAST, wanted / 2)) return;
    panes.style.setProperty("--most", `${room}px`);
    panes.setAttribute("data-capped", "");
    for (const [i, body] of this.#bodies().entries()) {
      const running = body.closest(".pane")?.getAttribute("data-state") === "running";
      body.scrollTop = running ? body.scrollHeight : scrolled[i]; // the words that are being written stay visible
    }
    this.#fade();
  }

  #bodies() {
    return [...this.panes.querySelectorAll(".pane-body")];
  }

  /** Fades the last line of a text that goes on below. */
  #fade() {
    const capped = this.panes.hasAttribute("data-capped");
    for (const body of this.#bodies()) {
      body.toggleAttribute("data-more", capped && body.scrollTop + body.clientHeight < body.scrollHeight - 4);
    }
  }
}

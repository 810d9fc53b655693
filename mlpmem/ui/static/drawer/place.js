// @ts-check
/* The drawer's place: its greatest height beside the columns, and the page's margin below a sheet. */
import { hasSheet } from "../core/dom.js";

const GAP = 12; // pixels to the window's top and to the lambda bar
const LEAST = 240; // pixels of a drawer beside the columns in a low window

export class Place {
  /** @param {HTMLElement} root the drawer, which has no parent yet */
  constructor(root) {
    this.root = root;
    for (const name of ["scroll", "resize"]) {
      window.addEventListener(name, () => this.fit(), { passive: true });
    }
    const observer = new ResizeObserver(() => this.fit());
    observer.observe(root); // also when it is shown, or moved to another tab
    observer.observe(document.documentElement); // what is above the columns grows and shrinks
  }

  /** Keeps the drawer between the window's top and the lambda bar. */
  fit() {
    const slot = this.root.parentElement;
    const { style } = document.documentElement;
    const sheet = hasSheet() && !this.root.hidden && this.root.getClientRects().length > 0;
    style.setProperty("--sheet", sheet ? `${this.root.offsetHeight}px` : "0px");
    if (!slot || sheet) return;
    const dock = document.querySelector(".dock")?.getBoundingClientRect();
    const floor = dock?.height ? dock.top : window.innerHeight;
    const room = floor - Math.max(GAP, slot.getBoundingClientRect().top) - GAP;
    style.setProperty("--room", `${Math.max(LEAST, room)}px`);
  }
}

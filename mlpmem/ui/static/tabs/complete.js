// @ts-check
/* Completes names of the bundle's entities in the prompt box, without requests. */
/** @import { Packed, Props } from "../core/types.js" */
import { h, inside, setText } from "../core/dom.js";
import { unpack } from "../core/state.js";

const SHOWN = 7;
const BACK = 6; // words before the caret at which a name may begin

/** @typedef {{ name: string, group: string, folded: string }} Title */
/** @typedef {{ start: number, names: Title[] }} Piece */

/** @type {(text: string) => string} */
const fold = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase().replaceAll("ß", "ss");

/** {start, names} of the longest text before the caret that is the beginning of names.
 * @type {(titles: Title[], before: string) => Piece} */
const completions = (titles, before) => {
  const starts = [...before.matchAll(/(?<![\p{L}\p{N}])[\p{L}\p{N}]/gu)].map((m) => m.index);
  for (const start of starts.slice(-BACK)) {
    const typed = before.slice(start);
    const enough = /^\p{Lu}/u.test(typed) ? 2 : 4;
    if (typed.length < enough) continue;
    const want = fold(typed);
    const names = titles.filter((t) => t.folded.startsWith(want) && t.folded !== want);
    if (names.length) return { start, names: names.slice(0, SHOWN) };
  }
  return { start: 0, names: [] };
};

class Completion {
  /** @param {[string, string][]} titles */
  constructor(titles) {
    this.titles = titles.map(([name, group]) => ({ name, group, folded: fold(name) }))
      .sort((a, b) => a.folded.length - b.folded.length || (a.folded < b.folded ? -1 : 1));
    this.active = -1;
    /** @type {Piece} */
    this.found = { start: 0, names: [] };
    /** @type {HTMLTextAreaElement | null} */
    this.box = null;
    this.filling = false; // while a name is written into the box
    this.list = h("ul", { id: "names", class: "names", role: "listbox",
      "aria-label": "Names in the corpus", hidden: true });
    this.live = h("p", { class: "unseen", "aria-live": "polite" });
    inside(document.body, ".gradio-container").append(this.list, this.live);
    document.addEventListener("input", (event) => this.#typed(event));
    document.addEventListener("focusout", () => this.close());
    window.addEventListener("scroll", () => this.close(), true);
  }

  /** @param {Event} event */
  #typed({ target }) {
    const box = target instanceof HTMLTextAreaElement && target.closest("#prompt") ? target : null;
    this.box = box;
    const typing = !this.filling && document.activeElement === box;
    if (!box || !typing || box.selectionStart !== box.value.length) {
      this.close();
      return;
    }
    this.found = completions(this.titles, box.value);
    this.active = -1;
    this.#show(box);
  }

  /** @param {HTMLTextAreaElement} area */
  #show(area) {
    const { names } = this.found;
    this.list.hidden = !names.length;
    this.list.replaceChildren(...names.map((title, i) => h("li", { id: `name-${i}`,
      role: "option", "aria-selected": String(i === this.active), dir: "auto",
      on: { mousedown: (event) => { event.preventDefault(); this.#take(i); } } },
    h("span", null, title.name), h("span", { class: "group-tag" }, title.group))));
    const box = area.getBoundingClientRect();
    this.list.style.left = `${box.left}px`;
    this.list.style.top = `${box.bottom + 4}px`;
    this.list.style.maxWidth = `${box.width}px`;
    area.setAttribute("aria-autocomplete", "list");
    area.setAttribute("aria-controls", "names");
    if (this.active >= 0) area.setAttribute("aria-activedescendant", `name-${this.active}`);
    else area.removeAttribute("aria-activedescendant");
    setText(this.live, names.length ? `${names.length} names, arrow down to select` : "");
  }

  close() {
    if (this.list.hidden) return;
    this.list.hidden = true;
    this.active = -1;
    this.box?.removeAttribute("aria-activedescendant");
    setText(this.live, "");
  }

  /** Arrow keys select, Enter or Tab accepts, Esc closes the list.
   * @param {KeyboardEvent} event */
  pressed(event) {
    const { box } = this;
    if (this.list.hidden || !box || event.target !== box || event.isComposing) return;
    const count = this.found.names.length;
    const by = event.key === "ArrowDown" ? 1 : event.key === "ArrowUp" ? -1 : 0;
    const takes = (event.key === "Enter" || event.key === "Tab") && this.active >= 0 &&
      !event.ctrlKey && !event.metaKey && !event.shiftKey;
    if (by) {
      this.active = (this.active + by + count + (this.active < 0 && by < 0 ? 1 : 0)) % count;
      this.#show(box);
    } else if (takes) this.#take(this.active);
    else if (event.key === "Escape") this.close();
    else {
      if (event.key === "Enter") this.close();
      return;
    }
    event.preventDefault();
    event.stopImmediatePropagation();
  }

  /** @param {number} index */
  #take(index) {
    const { box, found } = this;
    if (!box) return;
    const { name } = found.names[index];
    this.close();
    box.setRangeText(name, found.start, box.value.length, "end");
    this.filling = true;
    box.dispatchEvent(new Event("input", { bubbles: true }));
    this.filling = false;
    box.focus();
  }
}

/** @type {Completion | null} */
let only = null;
// the window's listener runs before view/page.js's, so Enter on a name starts no run
window.addEventListener("keydown", (event) => only?.pressed(event), true);

/** @type {(_: Element, props: Props<Packed>) => void} */
export const mountTitles = (_, props) => {
  const titles = unpack(props.value) || [];
  if (titles.length) only = new Completion(titles);
};

// @ts-check
/* A card beside a token under the mouse, or one that the keyboard reaches: its likeliest candidates, how open the choice was,
 * and its ranks. A finger's tap opens the drawer, which says the same. */
/** @import { Pane } from "../core/types.js" */
import { h, inside, percent, setText, single } from "../core/dom.js";
import { lambdaAt } from "../core/mix.js";
import { lambdaOf, page } from "../core/state.js";
import { choiceText, shortText, topOf } from "../drawer/choice.js";
import { drawer } from "../drawer/drawer.js";

const WAIT = 220; // milliseconds until the card opens, so that a mouse can pass
const GAP = 8; // pixels to the token and to the window
const ID = "token-card";

/** The pane of a token's element, of any view. @type {(node: Element) => Pane | null} */
const paneOf = (node) => page.views.flatMap((view) => view.allPanes()).find((pane) => pane.strip.root.contains(node)) ?? null;

/** @type {{ root: HTMLElement, head: HTMLElement, facts: HTMLElement, list: HTMLElement } | null} */
let card = null;
/** @type {HTMLElement | null} */
let node = null;
let timer = 0;

function lay() {
  const parts = { head: h("p", { class: "hover-head" }), facts: h("p", { class: "hover-facts" }), list: h("ol", { class: "hover-list" }) };
  const root = h("div", { class: "hover-card", id: ID, role: "tooltip", hidden: true }, parts.head, parts.list, parts.facts);
  inside(document.body, "main").append(root);
  return { root, ...parts };
}

/** Shows the card at a token. @param {HTMLElement} token */
function open(token) {
  const pane = paneOf(token);
  const trace = pane?.trace;
  const index = Number(token.dataset.index);
  const step = trace?.steps[index];
  if (!pane || !trace || !step?.cand?.length || !token.isConnected) return;
  card ??= lay();
  const weight = lambdaAt(step, lambdaOf(trace));
  setText(card.head, trace.system === "lm" ? "Likeliest here, the decoder" : `Likeliest here, mixed at λ ${weight.toFixed(2)}`);
  const top = topOf(step, trace, weight);
  card.list.replaceChildren(...top.map(({ id, text, p }) => h("li", { "data-chosen": id === step.id ? "" : null,
    style: { "--p": p } }, h("span", { class: "hover-text", dir: "auto" }, single(text)), h("i"), h("b", null, percent(p)))));
  setText(card.facts, `${shortText(step, trace, top.length)}${choiceText(step, trace, weight)}`);
  token.dataset.said = token.title; // one card, not two
  token.title = "";
  token.setAttribute("aria-describedby", ID);
  card.root.hidden = false;
  place(token, card.root);
}

/** Puts the card below its token, or above it where the window or the lambda bar ends.
 * @param {HTMLElement} token @param {HTMLElement} root */
function place(token, root) {
  const [box, { offsetWidth: width, offsetHeight: height }] = [token.getBoundingClientRect(), root];
  const floor = document.querySelector(".dock")?.getBoundingClientRect().top || window.innerHeight;
  const below = box.bottom + GAP;
  root.style.left = `${Math.max(GAP, Math.min(box.left, window.innerWidth - width - GAP))}px`;
  root.style.top = `${Math.max(GAP, below + height < floor ? below : box.top - GAP - height)}px`;
}

function close() {
  window.clearTimeout(timer);
  if (card) card.root.hidden = true;
  if (node?.dataset.said !== undefined) {
    node.title = node.dataset.said;
    delete node.dataset.said;
    node.removeAttribute("aria-describedby");
  }
  node = null;
}

/** Opens the card for a token a moment later, and closes an earlier one; keys open none for the drawer's own token.
 * @param {HTMLElement | null} token @param {boolean} [keys] */
function meet(token, keys = false) {
  if (token === node) return;
  close();
  node = token;
  if (token) timer = window.setTimeout(() => { if (!keys || !isInDrawer(token)) open(token); }, WAIT);
}

/** @type {(event: Event) => HTMLElement | null} */
const tokenOf = ({ target }) => /** @type {HTMLElement | null} */ (target instanceof Element ? target.closest(".token") : null);

/** Whether the drawer shows this token, with the same numbers. @type {(token: HTMLElement) => boolean} */
const isInDrawer = (token) => {
  const { at } = drawer();
  return at !== null && at.pane === paneOf(token) && at.index === Number(token.dataset.index);
};

/** Opens the card for a token under the mouse or with the keyboard's focus, from now on. */
export const watchHover = () => {
  document.addEventListener("pointerover", (event) => {
    if (event.pointerType === "mouse") meet(event.buttons ? null : tokenOf(event));
  });
  for (const name of ["pointerdown", "keydown", "scroll", "focusout"]) document.addEventListener(name, close, { passive: true, capture: true });
  document.addEventListener("focusin", (event) => {
    const token = tokenOf(event);
    if (token?.matches(":focus-visible")) meet(token, true);
  });
};

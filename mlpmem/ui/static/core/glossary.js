// @ts-check
/* The page's words, explained on hover and focus: one note for all elements with data-term. */
import { h, inside, setText } from "./dom.js";

/** @type {{ [term: string]: string }} */
const MEANINGS = {
  decoder: "A language model whose weights never change here. It reads the words so far and turns them into a hidden state.",
  head: "The last layer of the decoder: it turns the hidden state into a probability for every next word.",
  memory: "A small network, trained to give the datastore's answer from the same hidden state. It has learned the corpus and stores no text.",
  datastore: "Every place of the corpus, stored with the word that follows. It finds the places most similar to the present one.",
  lambda: "How much of the memory or the datastore is let through: 0 is the decoder only, 1 is none of it.",
  token: "A piece of text that the model writes in one step: a word, or a part of one.",
  words: "All that the decoder has read: the prompt and the tokens written so far.",
  context: "A running average of the words so far, in some memories since the last question began, with one more of the sentences that ask. This memory reads it together with the hidden state.",
  fresh: "Facts that the decoder never read. Only the corpus of memory and datastore has them.",
  known: "Facts that the decoder learned in its own training. A poor memory makes it forget them.",
  unseen: "Asked in a wording that no training text has, so that nobody can answer by heart.",
  flips: "With λ where it is now, another token would be written here.",
  differs: "Up to here the column writes what the decoder writes.",
  raised: "With memory or datastore, this token is more probable than by the decoder only.",
  scored: "Before the first token, the prompt is read by memory and datastore, to know how far each can be trusted.",
};
const GAP = 8; // pixels between a term and its note

/** Marks an element as a term that is explained on hover and focus. Whether it can be focused is up
 * to its kind; a plain one gets a tab stop with `stop`.
 * @template {HTMLElement} E @param {E} node @param {string} term @param {boolean} [stop] @returns {E} */
export const term = (node, term, stop = false) => {
  node.dataset.term = term;
  if (stop) node.tabIndex = 0;
  return node;
};

/** @type {HTMLElement | null} */
let note = null;
/** @type {HTMLElement | null} */
let shown = null;

/** @param {HTMLElement} node @param {HTMLElement} card */
function place(node, card) {
  const box = node.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = card;
  const above = box.top - GAP - height;
  card.style.left = `${Math.max(GAP, Math.min(box.left, window.innerWidth - width - GAP))}px`;
  card.style.top = `${above > GAP ? above : box.bottom + GAP}px`;
}

/** @param {HTMLElement} node @param {string} text */
function show(node, text) {
  note ||= h("p", { class: "glossary", role: "tooltip", id: "glossary" });
  if (!note.isConnected) inside(document.body, "main").append(note);
  setText(note, text);
  note.hidden = false;
  node.setAttribute("aria-describedby", "glossary");
  shown = node;
  place(node, note);
}

function hide() {
  if (note) note.hidden = true;
  shown?.removeAttribute("aria-describedby");
  shown = null;
}

/** The note stays beside its term when the page scrolls. */
function follow() {
  if (shown && note && !note.hidden) place(shown, note);
}

/** @param {Event} event */
function enter({ target }) {
  const node = target instanceof Element ? target.closest("[data-term]") : null;
  if (!(node instanceof HTMLElement)) {
    if (shown) hide();
    return;
  }
  const meaning = MEANINGS[node.dataset.term ?? ""];
  if (node !== shown && meaning) show(node, meaning);
}

/** Shows a term's meaning on hover and on focus, from now on. */
export const explainTerms = () => {
  document.addEventListener("pointerover", enter);
  document.addEventListener("focusin", enter);
  document.addEventListener("focusout", hide);
  document.addEventListener("scroll", follow, { passive: true, capture: true });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
};

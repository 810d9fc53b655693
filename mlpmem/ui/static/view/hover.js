// @ts-check
/* A card beside a hovered token: the likeliest candidates of its place, how open the choice was, and its ranks. It is for a
 * mouse; the drawer has the same numbers for everybody. */
/** @import { Lambda, Pane, Shown, Step } from "../core/types.js" */
import { h, inside, percent, setText, short, single } from "../core/dom.js";
import { SOURCES, candidateOf, lambdaAt, mix } from "../core/mix.js";
import { lambdaOf, nameOf, page } from "../core/state.js";

const KEPT = 8; // candidates of each source that a trace keeps at least
const MOST = 10; // candidates in the card
const WAIT = 220; // milliseconds until the card opens, so that a mouse can pass
const GAP = 8; // pixels to the token and to the window

/** A probability that no token outside a step's candidates exceeds: each source's is below its KEPT-th listed one.
 * @type {(step: Step, system: string, lambda: number) => number} */
const unseen = (step, system, lambda) => {
  const least = Object.fromEntries(SOURCES.map((source) => {
    const all = step.cand.map((row) => candidateOf(row).p[source]).filter((p) => p !== null && p !== undefined);
    return [source, all.length ? all.sort((a, b) => b - a)[Math.min(KEPT, all.length) - 1] : null];
  }));
  return mix(/** @type {any} */ (least), system, lambda);
};

/** The likeliest tokens of a mix in order, at most ten, and only those that no unlisted token can come before.
 * @type {(step: Step, system: string, lambda: number) => { id: number, text: string, p: number }[]} */
export const topOf = (step, system, lambda) => {
  const bound = unseen(step, system, lambda);
  return step.cand.map(candidateOf).map(({ id, text, p }) => ({ id, text, p: mix(p, system, lambda) }))
    .filter(({ p }) => p >= bound).sort((a, b) => b.p - a.p || a.id - b.id).slice(0, MOST);
};

/** The entropy of a mix in nats, with all unlisted tokens as one: the entropy is at least this much. `rest` is their share.
 * @type {(step: Step, system: string, lambda: number) => { nats: number, rest: number }} */
export const entropyOf = (step, system, lambda) => {
  const rest = Math.max(0, mix(step.rest, system, lambda));
  const all = [...step.cand.map((row) => mix(candidateOf(row).p, system, lambda)), rest];
  return { nats: all.reduce((sum, p) => sum - (p > 0 ? p * Math.log(p) : 0), 0), rest };
};

/** A token's rank under a source, null if it is beyond the listed ones or the source has no answer.
 * @type {(step: Step, source: string) => number | null} */
export const rankOf = (step, source) => {
  const own = step.p[source];
  if (own === null || own === undefined) return null;
  const rank = 1 + step.cand.filter((row) => (candidateOf(row).p[/** @type {"lm"} */ (source)] ?? 0) > own).length;
  return rank <= KEPT ? rank : null;
};

/** The pane of a token's element, of any view. @type {(node: Element) => Pane | null} */
const paneOf = (node) => page.views.flatMap((view) => view.allPanes()).find((pane) => pane.strip.root.contains(node)) ?? null;

/** The ranks of the written token, as words. @type {(step: Step) => string} */
const ranks = (step) => SOURCES.filter((source) => Number.isFinite(step.p[source]))
  .map((source) => `${nameOf(source).source} ${rankOf(step, source) ?? `beyond ${KEPT}`}`).join(", ");

/** @type {{ root: HTMLElement, head: HTMLElement, facts: HTMLElement, list: HTMLElement } | null} */
let card = null;
/** @type {HTMLElement | null} */
let node = null;
let timer = 0;

function lay() {
  const parts = { head: h("p", { class: "hover-head" }), facts: h("p", { class: "hover-facts" }), list: h("ol", { class: "hover-list" }) };
  const root = h("div", { class: "hover-card", "aria-hidden": "true" }, parts.head, parts.list, parts.facts);
  inside(document.body, ".gradio-container").append(root);
  return { root, ...parts };
}

/** @param {Shown} trace @param {Step} step @param {Lambda} lambda */
function fill(trace, step, lambda) {
  card ??= lay();
  const weight = lambdaAt(step, lambda);
  const { nats, rest } = entropyOf(step, trace.system, weight);
  const top = topOf(step, trace.system, weight);
  setText(card.head, trace.system === "lm" ? "Likeliest here, the decoder" : `Likeliest here, mixed at λ ${weight.toFixed(2)}`);
  card.list.replaceChildren(...top.map(({ id, text, p }) => h("li", { "data-chosen": id === step.id ? "" : null, style: { "--p": p } },
    h("span", { class: "hover-text", dir: "auto" }, single(text)), h("i"), h("b", null, percent(p)))));
  setText(card.facts, `Entropy ${rest > 0.01 ? "at least " : ""}${short(nats)} nats, as open as ${short(Math.exp(nats))} equal choices. ` +
    `Rank of the written token: ${ranks(step)}.`);
}

/** @param {HTMLElement} token */
function open(token) {
  const pane = paneOf(token);
  const trace = pane?.trace;
  const step = trace?.steps[Number(token.dataset.index)];
  if (!trace || !step?.cand?.length || !token.isConnected) return;
  fill(trace, step, lambdaOf(trace));
  if (!card) return;
  token.dataset.said = token.title; // one card, not two
  token.title = "";
  card.root.hidden = false;
  const [box, { offsetWidth: width, offsetHeight: height }] = [token.getBoundingClientRect(), card.root];
  const floor = document.querySelector(".dock")?.getBoundingClientRect().top || window.innerHeight;
  const below = box.bottom + GAP;
  card.root.style.left = `${Math.max(GAP, Math.min(box.left, window.innerWidth - width - GAP))}px`;
  card.root.style.top = `${Math.max(GAP, below + height < floor ? below : box.top - GAP - height)}px`;
}

function close() {
  window.clearTimeout(timer);
  if (card) card.root.hidden = true;
  if (node?.dataset.said !== undefined) {
    node.title = node.dataset.said;
    delete node.dataset.said;
  }
  node = null;
}

/** Opens the card for a token under the mouse, from now on. */
export const watchHover = () => {
  if (!window.matchMedia("(hover: hover)").matches) return;
  document.addEventListener("pointerover", (event) => {
    const found = event.target instanceof Element ? event.target.closest(".token") : null;
    const token = found instanceof HTMLElement && event.pointerType === "mouse" && !event.buttons ? found : null;
    if (token === node) return;
    close();
    node = token;
    if (token) timer = window.setTimeout(() => open(token), WAIT);
  });
  for (const name of ["pointerdown", "keydown", "scroll"]) document.addEventListener(name, close, { passive: true, capture: true });
};

// @ts-check
/* Keyboard shortcuts, which are off while the visitor types, and the overlay that lists them. */
import { h, inside, isFrom } from "./dom.js";
import { page } from "./state.js";

const LIST = [
  ["Ctrl Enter", "generate"],
  ["Esc", "stop the run, or close the drawer"],
  ["1 2 3", "first, second, third column; also 4 and 5"],
  ["← →", "previous, next token"],
  ["n p", "next, previous mark (◆ differs, ⚑ would change)"],
  ["[ ]", "move λ by 0.05"],
  ["↑ ↓", "previous, next candidate"],
  ["Enter", "open the token, branch with the candidate"],
  ["X", "hold it in Chat to see the sources of the words"],
  ["?", "this list"],
];
/** @type {HTMLDialogElement | null} */
let dialog = null;

/** The overlay, created on first use. */
export const keysHelp = () => {
  dialog ||= overlay();
  if (!dialog.open) dialog.showModal();
};

function overlay() {
  const rows = LIST.map(([keys, what]) => [h("dt", null, keys.split(" ").map((k) =>
    h("kbd", null, k))), h("dd", null, what)]);
  const close = h("button", { type: "button", class: "icon-button", "aria-label": "Close",
    on: { click: () => root.close() } }, "✕");
  const root = h("dialog", { class: "keys-help", "aria-label": "Keys", on: {
    keydown: (event) => event.stopPropagation(),
    click: (event) => { if (event.target === root) root.close(); },
  } }, h("div", null, h("header", null, h("h2", null, "Keys"), close), h("dl", null, rows),
    h("p", null, "Keys are off while you type.")));
  inside(document.body, ".gradio-container").append(root);
  return root;
}

/** @param {number} number */
function column(number) {
  const view = page.activeView();
  const pane = view && [...view.panes.values()][number - 1];
  if (!view || !pane?.trace?.steps.length) return;
  const at = view.chosen?.system === pane.system ? view.chosen.index : pane.strip.selected;
  view.select(pane.system, Math.max(0, at), "key");
}

/** Selects the next (1) or previous (-1) marked token of the column, and wraps around. @param {1 | -1} by */
function mark(by) {
  const view = page.activeView();
  const pane = view?.focusPane();
  if (!view || !pane) return;
  const marked = pane.strip.nodes.flatMap((node, i) =>
    (/differs|flips/.test(node.dataset.marks || "") ? [i] : []));
  if (!marked.length) return;
  const at = view.chosen?.system === pane.system ? view.chosen.index : by > 0 ? -1 : Infinity;
  const next = by > 0 ? marked.find((i) => i > at) : marked.findLast((i) => i < at);
  view.select(pane.system, next ?? marked[by > 0 ? 0 : marked.length - 1], "key");
}

/** @type {{ [key: string]: () => void }} */
const ACTIONS = {
  "[": () => page.bar?.nudge(-0.05), "]": () => page.bar?.nudge(0.05),
  1: () => column(1), 2: () => column(2), 3: () => column(3),
  4: () => column(4), 5: () => column(5),
  n: () => mark(1), p: () => mark(-1), "?": () => keysHelp(),
};

document.addEventListener("keydown", (event) => {
  const typing = isFrom(event, "textarea, input:not([type=range]), [contenteditable]");
  if (typing || event.ctrlKey || event.altKey || event.metaKey || !ACTIONS[event.key]) return;
  if (event.key !== "?" && !page.activeView()?.shown) return;
  event.preventDefault();
  ACTIONS[event.key]();
});

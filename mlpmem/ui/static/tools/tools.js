// @ts-check
/* The header's buttons (tour, share, keys, light or dark), and a waiting run's place in the queue. */
/** @import { Props, Watch } from "../core/types.js" */
import { h, inside, setText } from "../core/dom.js";
import { keysHelp } from "../core/keys.js";
import { page } from "../core/state.js";
import { Share } from "./share.js";
import { Tour } from "./tour.js";

const PAUSE = 700; // milliseconds between requests for the place

function themeButton() {
  const dark = () => document.body.classList.contains("dark");
  const name = () => button.setAttribute("aria-label", dark() ? "Switch to light" : "Switch to dark");
  const button = h("button", { type: "button", class: "icon-button theme-button", on: {
    click: () => {
      document.body.classList.toggle("dark");
      name();
    } } }, "◐");
  name();
  return button;
}

/** Requests a run's place in the queue while it waits. @param {() => void} ask */
function watchQueue(ask) {
  const waits = () => page.runningView()?.head.kind === "waiting";
  const again = () => {
    if (!waits()) return;
    ask();
    window.setTimeout(again, PAUSE);
  };
  page.on("pending", () => window.setTimeout(again, PAUSE));
}

/** Adds a button that copies a snippet. @param {Element} snippet */
function addCopy(snippet) {
  const name = snippet.id.replace("snippet-", "");
  const button = h("button", { type: "button", class: "pane-tool copy", "aria-label": `Copy, ${name}`, on: {
    click: async () => {
      await navigator.clipboard.writeText(snippet.textContent ?? "").then(() => setText(button, "Copied"),
        () => window.getSelection()?.selectAllChildren(snippet)); // without permission, for Ctrl+C
      window.setTimeout(() => setText(button, "Copy"), 2000);
    } } }, "Copy");
  const box = h("div", { class: "snippet-box" });
  snippet.replaceWith(box);
  box.append(snippet, button);
}

/** Puts this page's address into the About tab's examples. @type {(element: Element) => void} */
export const mountAbout = (element) => {
  for (const node of element.querySelectorAll(".origin")) {
    setText(node, window.location.href.split(/[?#]/)[0]);
  }
  for (const node of element.querySelectorAll("pre.snippet")) addCopy(node);
};

/** events.open(text) sends a saved run to the server, events.ask() requests the place; null without a server.
 * @type {(element: Element, props: Props<{ ahead: number | null }>, watch: Watch,
 *   events: { open: (text: string) => void, ask: () => void } | null) => void} */
export const mountTools = (element, props, watch, events) => {
  const help = h("button", { type: "button", class: "icon-button help-button",
    "aria-label": "Keys (?)", on: { click: () => keysHelp() } }, "?");
  inside(element, ".tools-host").replaceChildren(h("div", { class: "tools" },
    new Tour().button, new Share(events?.open || null).root, help, themeButton()));
  if (!events) return;
  watchQueue(events.ask);
  watch("value", () => page.runningView()?.ahead(props.value?.ahead));
};

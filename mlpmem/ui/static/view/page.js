// @ts-check
/* Mounts the views, starts and stops runs. */
/** @import { Offer, Packed, Props, Records, Watch } from "../core/types.js" */
import { inside, isCalm, isFrom, setText, write } from "../core/dom.js";
import { RECORDS, introduce, page, unpack } from "../core/state.js";
import { drawer } from "../drawer/drawer.js";
import { TokenView } from "./view.js";

/** @type {(id: string | undefined) => void} */
const click = (id) => document.getElementById(id || "")?.click();
/** A view's buttons, by the prefix of its panes.
 * @type {{ [prefix: string]: { go: string, again: string, stop: string } }} */
const BUTTONS = {
  "pane-": { go: "generate", again: "generate", stop: "stop" },
  "inspect-pane-": { go: "inspect-score", again: "inspect-score", stop: "inspect-stop" },
  "chat-pane-": { go: "chat-send", again: "chat-retry", stop: "chat-stop" },
};
/** @type {(view: TokenView | null, name: "go" | "again" | "stop") => void} */
const press = (view, name) => click(BUTTONS[view?.prefix ?? ""]?.[name]);

/** Disables Stop unless its view runs; a moment later, because a disabled button's click is lost. */
const settleStops = () => window.setTimeout(() => {
  for (const view of page.views) {
    const stop = document.getElementById(BUTTONS[view.prefix]?.stop);
    if (stop instanceof HTMLButtonElement) stop.disabled = !view.running;
  }
});
for (const name of /** @type {const} */ (["pending", "ended", "view", "status"])) page.on(name, settleStops);

/** props.prefix starts the panes' ids; props.systems names the panes, or every run does.
 *  props.records has each system's measured accuracies. With ask(request) the panes have the buttons
 *  that need a model.
 *  @type {(element: Element, props: Props<Packed, { prefix: string, systems: string[], columns?: Offer[],
 *    records?: { [system: string]: Records } }>, watch: Watch, ask?: ((request: object) => void) | null) => void} */
export const mountView = (element, props, watch, ask = null) => {
  introduce(props.columns);
  Object.assign(RECORDS, props.records);
  const view = new TokenView(inside(element, ".view-host"), {
    prefix: props.prefix, systems: props.systems, follows: !props.systems.length, ask,
  });
  if (!drawer().root.isConnected) view.slot.append(drawer().root);
  watch("value", () => view.receive(unpack(props.value)));
  const first = unpack(props.value);
  if (first?.kind === "recorded") view.showcase = first;
  const linked = new URLSearchParams(window.location.search).has("q") && view.prefix === "pane-";
  document.body.toggleAttribute("data-linked", linked); // until the link's own question arrives
  if (linked) return;
  view.receive(first);
  if (first?.paced && !isCalm()) view.replay.start(); // once, at load
};

/** Generates the prompt on screen again at the bar's lambda; the box may have another prompt. */
export const again = () => {
  const view = page.activeView();
  const box = view?.prefix === "pane-" ? document.querySelector("#prompt textarea") : null;
  const prompt = view?.head.about.prompt;
  const typed = box instanceof HTMLTextAreaElement ? box.value.trim() : "";
  const same = prompt === typed || prompt === `Question: ${typed} Answer:`; // a bare question in its trained form
  if (!(box instanceof HTMLTextAreaElement) || !prompt || same || page.runningView()) {
    press(view, "again");
    return;
  }
  write(box, prompt);
  window.setTimeout(() => press(view, "again"), 80);
};

function leave() {
  const running = page.runningView();
  if (running) press(running, "stop");
  else if (document.body.hasAttribute("data-keying")) click("own-stop");
  else drawer().close();
}

/** Whether no run is in progress; otherwise the page says so. */
export const isFree = () => {
  const running = page.runningView();
  if (!running) return true;
  const here = page.activeView();
  const where = here === running ? "" : " on another tab";
  if (here) setText(here.alert, `${BUSY}${where}. Wait for it, or stop it with Esc.`);
  return false;
};

/** Allows one run at a time per visitor: during a run, starting another does nothing.
 * @param {Event} event */
function guard(event) {
  if (isFree()) return true;
  event.stopImmediatePropagation();
  event.preventDefault();
  return false;
}

const BUSY = "A run is in progress";
page.on("ended", () => {
  for (const { alert } of page.views) if (alert.textContent.startsWith(BUSY)) setText(alert, "");
});

/** @param {Event} event */
function start(event) {
  const view = page.activeView();
  if (page.status.state === "full" && view) {
    setText(view.alert, page.status.line ?? "");
    event.stopImmediatePropagation();
    event.preventDefault();
  } else if (page.status.ready && guard(event)) view?.pending();
}

document.addEventListener("click", (event) => {
  if (isFrom(event, "#generate, #inspect-score")) start(event);
  else if (isFrom(event, ".example, .surprise")) guard(event);
  else page.views.find((view) => isFrom(event, `#${BUTTONS[view.prefix].stop}`))?.halt();
}, true);

document.addEventListener("keydown", (event) => {
  const plain = event.key === "Enter" && !event.ctrlKey && !event.metaKey && !event.shiftKey;
  if (!plain || !isFrom(event, "#prompt textarea")) return;
  if (event.isComposing) event.stopImmediatePropagation(); // Enter confirms an input method's word
  else start(event);
}, true);

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    const view = page.activeView();
    if (!view?.shown) return; // a tab without runs
    event.preventDefault();
    press(view, "go");
  } else if (event.key === "Escape") {
    leave();
  }
});

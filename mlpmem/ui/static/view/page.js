// @ts-check
/* The page as a whole: mounts the views, starts and stops runs. */
import { setText, write } from "../core/dom.js";
import { RECORDS, introduce, page, unpack } from "../core/state.js";
import { drawer } from "../drawer/drawer.js";
import { TokenView } from "./view.js";

const click = (id) => document.getElementById(id)?.click();
const BUTTONS = { // of a view, by the prefix of its panes
  "pane-": { go: "generate", again: "generate", stop: "stop" },
  "inspect-pane-": { go: "inspect-score", again: "inspect-score", stop: "inspect-stop" },
  "chat-pane-": { go: "chat-send", again: "chat-retry", stop: "chat-stop" },
};
const press = (view, name) => click(BUTTONS[view?.prefix]?.[name]);

/** props.prefix starts the panes' ids; props.systems names them, or every run does. props.records
 *  has for a system the shares of new and of known facts that it was measured to get right.
 *  With ask(request) the panes offer what only a model can do. */
export const mountView = (element, props, watch, ask = null) => {
  introduce(props.columns);
  Object.assign(RECORDS, props.records);
  const view = new TokenView(element.querySelector(".view-host"), {
    prefix: props.prefix, systems: props.systems, follows: !props.systems.length, ask,
  });
  if (!drawer().root.isConnected) view.slot.append(drawer().root);
  watch("value", () => view.receive(unpack(props.value)));
  view.receive(unpack(props.value));
};

/** Generates again what is on screen, at the lambda of the bar: the box may hold another prompt. */
export const again = () => {
  const view = page.activeView();
  const box = view?.prefix === "pane-" ? document.querySelector("#prompt textarea") : null;
  const { prompt } = view?.head.about || {};
  const asked = box?.value.trim();
  const same = [asked, `Question: ${asked} Answer:`].includes(prompt); // a bare question got its form
  if (!box || !prompt || same || page.runningView()) {
    press(view, "again");
    return;
  }
  write(box, prompt);
  window.setTimeout(() => press(view, "again"), 80);
};

function escape() {
  const running = page.runningView();
  if (running) press(running, "stop");
  else if (document.body.hasAttribute("data-keying")) click("own-stop");
  else if (drawer().open) drawer().close();
}

/** One run at a time for a visitor: while one is under way, asking for another does nothing. */
function guard(event) {
  const running = page.runningView();
  if (!running) return true;
  event.stopImmediatePropagation();
  event.preventDefault();
  const here = page.activeView();
  if (here !== running) setText(here.alert, "A run is under way on another tab. Wait for it, or stop it with Esc.");
  return false;
}

function asked(event) {
  if (page.status.ready && guard(event)) page.activeView()?.pending();
}

document.addEventListener("click", (event) => {
  const { target } = event;
  if (target.closest?.("#generate, #inspect-score, #chat-send, #chat-retry")) asked(event);
  else if (target.closest?.(".example, .surprise")) guard(event);
  else page.views.find((view) => target.closest?.(`#${BUTTONS[view.prefix].stop}`))?.halt();
}, true);

document.addEventListener("keydown", (event) => {
  const plain = event.key === "Enter" && !event.ctrlKey && !event.metaKey && !event.shiftKey;
  if (!plain || !event.target.closest?.("#prompt textarea, #chat-input textarea")) return;
  if (event.isComposing) event.stopImmediatePropagation(); // it ends a word of an input method
  else asked(event);
}, true);

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    const view = page.activeView();
    if (!view?.shown) return; // a tab where nothing is generated
    event.preventDefault();
    press(view, "go");
  } else if (event.key === "Escape") {
    escape();
  }
});

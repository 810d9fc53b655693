// @ts-check
/* A button that copies a text and says so. */
import { h, setText } from "../core/dom.js";

const SHOWN = 1600; // milliseconds of "Copied"

/** Copies a text; without the clipboard's permission, by a hidden box. @param {string} text @returns {Promise<boolean>} */
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const box = h("textarea", { class: "unseen", "aria-hidden": "true", tabindex: "-1" });
    box.value = text;
    document.body.append(box);
    box.select();
    const done = document.execCommand("copy");
    box.remove();
    return done;
  }
}

/** @param {string} label what it copies @param {() => string} said @returns {HTMLButtonElement} */
export function copyButton(label, said) {
  const button = h("button", { type: "button", class: "chat-tool copy-button", "aria-label": label,
    on: { click: async () => {
      const focused = document.activeElement;
      setText(button, await copied(said()) ? "Copied" : "Not copied");
      if (focused instanceof HTMLElement) focused.focus();
      window.setTimeout(() => setText(button, "Copy"), SHOWN);
    } } }, "Copy");
  return button;
}

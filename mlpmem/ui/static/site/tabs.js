// @ts-check
/* The static site's row of tabs, as Gradio's would be. */
import { h, inside } from "../core/dom.js";

/** Makes a tab of every panel, and shows the first. @param {HTMLElement} root */
export const mountTabs = (root) => {
  const panels = /** @type {HTMLElement[]} */ ([...root.querySelectorAll("[role=tabpanel]")]);
  /** @param {number} chosen */
  const show = (chosen) => {
    for (const [i, panel] of panels.entries()) {
      panel.hidden = i !== chosen;
      tabs[i].setAttribute("aria-selected", String(i === chosen));
      tabs[i].classList.toggle("selected", i === chosen);
      tabs[i].tabIndex = i === chosen ? 0 : -1;
    }
  };
  const tabs = panels.map((panel, i) => h("button", { type: "button", role: "tab", on: { click: () => show(i) } },
    panel.getAttribute("aria-label") ?? ""));
  const row = inside(root, "[role=tablist]");
  row.replaceChildren(...tabs);
  row.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    const next = (tabs.indexOf(/** @type {HTMLButtonElement} */ (document.activeElement)) + by + tabs.length) % tabs.length;
    event.preventDefault();
    show(next);
    tabs[next].focus();
  });
  show(0);
};

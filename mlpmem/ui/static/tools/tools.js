/* The head's buttons: tour, share, keys, light or dark; and the place of a run that waits. */
(() => {
  "use strict";
  const M = (window.MLPMEM = window.MLPMEM || {});
  const PAUSE = 700; // milliseconds between two questions about the queue

  function themeButton() {
    const dark = () => document.body.classList.contains("dark");
    const name = () => button.setAttribute("aria-label", dark() ? "Switch to light" : "Switch to dark");
    const button = M.h("button", { type: "button", class: "icon-button theme-button", on: {
      click: () => {
        document.body.classList.toggle("dark");
        name();
      } } }, "◐");
    name();
    return button;
  }

  /** Asks for a run's place in the queue for as long as it waits. */
  function watchQueue(ask) {
    const waits = () => M.page.runningView()?.head.kind === "waiting";
    const again = () => {
      if (!waits()) return;
      ask();
      window.setTimeout(again, PAUSE);
    };
    M.page.on("pending", () => window.setTimeout(again, PAUSE));
  }

  /** The addresses in the About tab's examples are this page's own. */
  M.mountAbout = (element) => {
    for (const node of element.querySelectorAll(".origin")) {
      M.setText(node, window.location.href.split(/[?#]/)[0]);
    }
  };

  /** events.open(text) sends a saved run to the server, events.ask() asks for the queue. */
  M.mountTools = (element, props, watch, events) => {
    const help = M.h("button", { type: "button", class: "icon-button help-button",
      "aria-label": "Keys (?)", on: { click: () => M.keysHelp() } }, "?");
    element.querySelector(".tools-host").replaceChildren(M.h("div", { class: "tools" },
      new M.Tour().button, new M.Share(events?.open || null).root, help, themeButton()));
    if (!events?.ask) return;
    watchQueue(events.ask);
    watch("value", () => M.page.runningView()?.ahead(props.value?.ahead));
  };
})();

/* The page as a whole: mounts the views, and the keys that work everywhere. */
(() => {
  "use strict";
  const M = (window.MLPMEM = window.MLPMEM || {});
  const click = (id) => document.getElementById(id)?.click();
  const visible = (id) => document.getElementById(id)?.offsetParent != null;

  /** props.prefix starts the panes' ids; props.systems names them, or every run does. */
  M.mountView = (element, props, watch) => {
    const view = new M.TokenView(element.querySelector(".view-host"), {
      prefix: props.prefix, systems: props.systems, follows: !props.systems.length,
    });
    if (!M.drawer().root.isConnected) view.slot.append(M.drawer().root);
    watch("value", () => view.receive(M.unpack(props.value)));
    view.receive(M.unpack(props.value));
  };

  /** Generates again what is on screen, at the lambda of the bar. */
  M.again = () => click(visible("chat-retry") ? "chat-retry" : "generate");

  function escape() {
    const drawer = M.drawer();
    if (document.body.hasAttribute("data-running")) click(visible("chat-stop") ? "chat-stop" : "stop");
    else if (drawer.open) drawer.close();
  }

  /** One run at a time for a visitor: while one is under way, asking again does nothing. */
  function guard(event, asks) {
    if (!asks || !M.page.status.ready) return;
    if (document.body.hasAttribute("data-running")) {
      event.stopImmediatePropagation();
      event.preventDefault();
    } else {
      M.page.activeView()?.pending();
    }
  }

  document.addEventListener("click", (event) => {
    guard(event, event.target.closest?.("#generate, #chat-send, #chat-retry"));
  }, true);

  document.addEventListener("keydown", (event) => {
    const plain = event.key === "Enter" && !event.ctrlKey && !event.metaKey && !event.shiftKey;
    guard(event, plain && event.target.closest?.("#prompt textarea, #chat-input textarea"));
  }, true);

  document.addEventListener("click", (event) => {
    if (event.target.closest?.("[role=tab]")) window.setTimeout(() => M.page.emit("view"), 50);
  });

  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("textarea, input:not([type=range]), [contenteditable]");
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      click(visible("chat-send") ? "chat-send" : "generate");
    } else if (event.key === "Escape") {
      escape();
    } else if (!typing && !event.ctrlKey && !event.altKey && !event.metaKey) {
      if (event.key === "[") M.page.bar?.nudge(-0.05);
      if (event.key === "]") M.page.bar?.nudge(0.05);
    }
  });
})();

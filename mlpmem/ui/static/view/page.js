/* The page as a whole: mounts the views, starts and stops runs. */
(() => {
  "use strict";
  const M = (window.MLPMEM = window.MLPMEM || {});
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
  M.mountView = (element, props, watch, ask = null) => {
    M.introduce(props.columns);
    Object.assign(M.RECORDS, props.records);
    const view = new M.TokenView(element.querySelector(".view-host"), {
      prefix: props.prefix, systems: props.systems, follows: !props.systems.length, ask,
    });
    if (!M.drawer().root.isConnected) view.slot.append(M.drawer().root);
    watch("value", () => view.receive(M.unpack(props.value)));
    view.receive(M.unpack(props.value));
  };

  /** Generates again what is on screen, at the lambda of the bar: the box may hold another prompt. */
  M.again = () => {
    const view = M.page.activeView();
    const box = view?.prefix === "pane-" ? document.querySelector("#prompt textarea") : null;
    const { prompt } = view?.head.about || {};
    const asked = box?.value.trim();
    const same = [asked, `Question: ${asked} Answer:`].includes(prompt); // a bare question got its form
    if (!box || !prompt || same || M.page.runningView()) {
      press(view, "again");
      return;
    }
    M.write(box, prompt);
    window.setTimeout(() => press(view, "again"), 80);
  };

  function escape() {
    const running = M.page.runningView();
    if (running) press(running, "stop");
    else if (document.body.hasAttribute("data-keying")) click("own-stop");
    else if (M.drawer().open) M.drawer().close();
  }

  /** One run at a time for a visitor: while one is under way, asking for another does nothing. */
  function guard(event) {
    const running = M.page.runningView();
    if (!running) return true;
    event.stopImmediatePropagation();
    event.preventDefault();
    const here = M.page.activeView();
    if (here !== running) M.setText(here.alert, "A run is under way on another tab. Wait for it, or stop it with Esc.");
    return false;
  }

  function asked(event) {
    if (M.page.status.ready && guard(event)) M.page.activeView()?.pending();
  }

  document.addEventListener("click", (event) => {
    const { target } = event;
    if (target.closest?.("#generate, #inspect-score, #chat-send, #chat-retry")) asked(event);
    else if (target.closest?.(".example, .surprise")) guard(event);
    else M.page.views.find((view) => target.closest?.(`#${BUTTONS[view.prefix].stop}`))?.halt();
  }, true);

  document.addEventListener("keydown", (event) => {
    const plain = event.key === "Enter" && !event.ctrlKey && !event.metaKey && !event.shiftKey;
    if (!plain || !event.target.closest?.("#prompt textarea, #chat-input textarea")) return;
    if (event.isComposing) event.stopImmediatePropagation(); // it ends a word of an input method
    else asked(event);
  }, true);

  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      const view = M.page.activeView();
      if (!view?.shown) return; // a tab where nothing is generated
      event.preventDefault();
      press(view, "go");
    } else if (event.key === "Escape") {
      escape();
    }
  });
})();

/* The static site: the page's view over recorded runs, with nobody to ask. */
(() => {
  "use strict";
  const M = window.MLPMEM;
  const still = () => {}; // nothing changes from outside

  /** Shows {runs, examples, first, defaults}; the address may name a run and a lambda. */
  M.site = ({ runs, examples, first, defaults }) => {
    M.page.inspect = null;
    const at = (id) => document.getElementById(id);
    const dark = window.matchMedia("(prefers-color-scheme: dark)");
    document.body.classList.toggle("dark", dark.matches);
    const status = { state: "replay", line: "recorded runs; nothing is asked of a server",
      ready: false, waiting: "The datastore is not part of this recording.", defaults };
    M.mountStatus(at("status"), { value: status }, still);
    M.mountTools(at("tools"), {}, still, null);
    M.mountView(at("compare-view"), { prefix: "pane-", systems: M.SOURCES }, still);
    M.mountLambda(at("lambda-bar"), {});
    const [view] = M.page.views;
    let shown = 0;
    const show = (prompt) => {
      const run = runs.find((r) => r.prompt === prompt) || runs.find((r) => r.prompt === first) || runs[0];
      shown += 1;
      view.receive({ kind: "recorded", run: `recorded-${shown}`, ...run });
    };
    M.mountExamples(at("recordings"), { value: examples },
      (_, { index }) => show(examples[index].prompt));
    const query = new URLSearchParams(window.location.search);
    show(query.get("q"));
    const lambda = Number.parseFloat(query.get("lambda"));
    if (Number.isFinite(lambda)) M.page.bar.set(Math.min(1, Math.max(0, lambda)));
  };
})();

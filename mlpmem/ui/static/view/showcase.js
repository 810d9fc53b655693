// @ts-check
/* The bundle's recorded run for the tour: shown whatever was on screen, which comes back afterwards. */
/** @import { Shown, TokenView, ValueOf } from "../core/types.js" */
import { page } from "../core/state.js";
import { costScale } from "./cost.js";

/** What a visitor has on screen. @param {TokenView} view */
const keep = (view) => {
  if (view.replay.playing) view.replay.stop();
  const { head, tree } = view;
  /** @type {[string, Shown][]} */
  const traces = [...view.panes.values()].flatMap(({ system, trace }) => {
    const own = tree.current.get(system)?.trace ?? trace; // not the text of another lambda
    return own ? [[system, own]] : [];
  });
  return { traces, names: [...view.panes.keys()], finished: view.finished, asked: view.asked, own: view.own, run: view.run,
    about: { ...head.about, kind: head.kind ?? "", typed: head.typed }, badge: head.text, alert: view.alert.textContent,
    unticked: new Map(view.unticked), paced: view.replay.paced, lmbda: page.auto ? /** @type {const} */ ("auto") : page.lambda,
    tree: { nodes: tree.nodes, current: tree.current, past: tree.past, future: tree.future } };
};

/** @param {TokenView} view @param {ReturnType<typeof keep>} kept */
const giveBack = (view, kept) => {
  view.replay.cancel();
  view.tree.clear();
  view.run = kept.run;
  view.root.dataset.run = kept.run ?? "";
  view.head.show(kept.about, kept.badge);
  view.finished = null;
  view.asked = kept.asked;
  view.place(kept.names);
  view.restart(Object.fromEntries(kept.traces), kept.names);
  view.from(kept.own);
  view.replay.paced = kept.paced;
  Object.assign(view.tree, kept.tree);
  view.tree.render();
  view.unticked = kept.unticked;
  page.bar?.set(kept.lmbda);
  view.setRunning(false);
  if (kept.finished) view.complete(Object.fromEntries(kept.traces));
  else fillStopped(view, kept.traces);
  view.finished = kept.finished;
  view.alert.textContent = kept.alert;
  view.repaint();
};

/** Shows texts that were stopped. @param {TokenView} view @param {[string, Shown][]} traces */
const fillStopped = (view, traces) => {
  const scale = costScale(Object.fromEntries(traces));
  for (const [system, trace] of traces) {
    const pane = view.panes.get(system);
    if (trace.finish) pane?.finish(trace, scale);
    else {
      pane?.append(trace.steps);
      pane?.interrupt();
    }
  }
};

/** Shows the view's showcase at its own lambda. Returns what shows the visitor's run again, unless another one has come.
 * @param {TokenView} view @param {ValueOf<"recorded">} showcase */
export const stage = (view, showcase) => {
  const kept = keep(view);
  page.bar?.set(null);
  view.showRecorded(showcase);
  return () => {
    if (view.run === showcase.run && !view.running) giveBack(view, kept);
  };
};

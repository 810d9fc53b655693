// @ts-check
/* The static site's entry: the page's view of recorded runs, without a server. */
/** @import { Defaults, Example, Traces } from "./core/types.js" */
import { inside } from "./core/dom.js";
import { SOURCES } from "./core/mix.js";
import { mountExamples, mountStatus } from "./core/panels.js";
import { page } from "./core/state.js";
import { mountView } from "./view/page.js";
import { mountLambda } from "./tools/lambda.js";
import { mountTools } from "./tools/tools.js";

const still = () => {}; // its values never change

/** Shows {runs, examples, first, defaults}; the address may select a prompt and a lambda.
 * @param {{ runs: { prompt: string, traces: Traces }[], examples: Example[], first: string | null,
 *   defaults: Defaults }} recorded */
const site = ({ runs, examples, first, defaults }) => {
  /** @type {(id: string) => HTMLElement} */
  const at = (id) => inside(document.body, `#${id}`);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  document.body.classList.toggle("dark", dark.matches);
  const status = { state: "replay", line: "recorded runs, without a server",
    ready: false, waiting: "The datastore is not part of this recording.", defaults };
  mountStatus(at("status"), { value: status }, still);
  mountTools(at("tools"), {}, still, null);
  mountView(at("compare-view"), { prefix: "pane-", systems: SOURCES }, still);
  mountLambda(at("lambda-bar"), {});
  const [view] = page.views;
  let shown = 0;
  /** @param {string | null} prompt */
  const show = (prompt) => {
    const run = runs.find((r) => r.prompt === prompt) || runs.find((r) => r.prompt === first) || runs[0];
    shown += 1;
    view.receive({ kind: "recorded", run: `recorded-${shown}`, ...run });
  };
  mountExamples(at("recordings"), { value: examples },
    (_, { index }) => show(examples[index].prompt));
  const query = new URLSearchParams(window.location.search);
  show(query.get("q"));
  const lambda = Number.parseFloat(query.get("lambda") ?? "");
  if (Number.isFinite(lambda)) page.bar?.set(Math.min(1, Math.max(0, lambda)));
};

window.MLPMEM = { site };

// @ts-check
/* The static site's entry: the page's view without a server. Recorded runs play; the model answers in a worker. */
import { explainTerms } from "./core/glossary.js";
import { watchSources } from "./core/sources.js";
import { page } from "./core/state.js";
import { mountStatus } from "./core/panels.js";
import { mountGame } from "./tools/game.js";
import { mountLambda } from "./tools/lambda.js";
import { mountTools } from "./tools/tools.js";
import { openLinked } from "./chat/linked.js";
import { mountTitles } from "./tabs/complete.js";
import { mountChatTab } from "./site/chat.js";
import { Compare } from "./site/compare.js";
import { Desk, at } from "./site/desk.js";
import { packed } from "./site/slot.js";
import { mountTabs } from "./site/tabs.js";
import { mountInspectTab, mountOwnTab } from "./site/texts.js";
import { watchHover } from "./view/hover.js";

/** Shows the values that mlpmem/ui/recordings/replay.py writes; the address may select a prompt and a lambda.
 * @param {import("./site/desk.js").Values} values */
const site = (values) => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  document.body.classList.toggle("dark", dark.matches);
  explainTerms();
  watchSources();
  watchHover();
  const desk = new Desk(values);
  mountStatus(at("status"), desk.status.props, desk.status.watch, () => desk.load());
  mountTools(at("tools"), {}, () => {}, null);
  const compare = new Compare(desk);
  mountLambda(at("lambda-bar"), {});
  mountGame(at("game"), { value: values.rounds });
  if (values.live) {
    if (!values.live.chat) at("chat").closest("section")?.remove();
    mountTabs(at("tabs"));
    mountTitles(at("tabs"), { value: packed(values.titles) });
    mountInspectTab(desk);
    if (values.live.chat) {
      mountChatTab(desk);
      openLinked();
    }
    mountOwnTab(desk, () => desk.offer());
    desk.open();
  }
  let live = false;
  const offer = () => {
    if (live === document.body.hasAttribute("data-live")) return;
    live = !live;
    compare.offer();
  };
  compare.offer();
  page.on("status", offer);
  compare.restore();
};

window.MLPMEM = { page, site };

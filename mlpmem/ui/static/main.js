// @ts-check
/* The page's entry. Imports run downwards: core < drawer < view < circuit < tools < tabs < chat < this file. A lower
 * room calls a higher one only through functions set on core/state.js's `page`. mlpmem/ui/modules.py
 * bundles all modules into one script. */
import { candidateOf, mix, without } from "./core/mix.js";
import { percent } from "./core/dom.js";
import { explainTerms } from "./core/glossary.js";
import { mountExamples, mountFigures, mountStatus } from "./core/panels.js";
import { canRoute, page } from "./core/state.js";
import { watchSources } from "./core/sources.js";
import { mountProbe } from "./drawer/drawer.js";
import { mountView } from "./view/page.js";
import { watchHover } from "./view/hover.js";
import { mountCircuit } from "./circuit/circuit.js";
import { mountGame } from "./tools/game.js";
import { mountLambda } from "./tools/lambda.js";
import { linkOf, recordOf } from "./tools/share.js";
import { mountAbout, mountTools } from "./tools/tools.js";
import { mountChat } from "./chat/chat.js";
import { openLinked } from "./chat/linked.js";
import { mountTitles } from "./tabs/complete.js";
import { mountCorpus, mountOwn, readDocument } from "./tabs/corpus.js";
import { mountFiles } from "./tabs/files.js";
import { inspectText, mountInspect } from "./tabs/inspect.js";
import { mountTeach } from "./tabs/teach.js";

explainTerms();
watchSources();
watchHover();
openLinked();
page.inspect = inspectText;
page.read = readDocument;

/** The only global: the mount functions that Python's snippets call (components.py), then functions
 * for a console or a test. */
window.MLPMEM = {
  mountAbout, mountChat, mountCircuit, mountCorpus, mountExamples, mountFigures, mountFiles, mountGame, mountInspect, mountLambda, mountOwn,
  mountProbe, mountStatus, mountTeach, mountTitles, mountTools, mountView,
  page, candidateOf, canRoute, linkOf, mix, percent, recordOf, without,
};

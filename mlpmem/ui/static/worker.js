// @ts-check
/* The worker's entry: loads the model, then answers plans one after another (Said and Sent in live/types.d.ts). */
/** @import { Live, Said, Sent } from "./live/types.js" */
import { Answers } from "./live/answers.js";
import { chatFacts } from "./live/chat.js";
import { fetched } from "./live/files.js";
import { LiveError } from "./live/model/errors.js";
import { Model } from "./live/engine/fused.js";

const PERIOD = 100; // milliseconds between two reports of progress

/** @param {Said} said */
const say = (said) => self.postMessage(said);
/** @type {Answers | null} */
let answers = null;
/** @type {Promise<void>} */
let before = Promise.resolve(); // the job before
/** @type {Set<number>} */
const stopped = new Set();

/** @param {Live} live */
async function load(live) {
  let [told, last] = [0, 0]; // times of the last report and the last byte
  try {
    const { files, kept } = await fetched(live, self.location.href, (loaded, total) => {
      last = performance.now();
      if (last - told < PERIOD && loaded < total) return;
      told = last;
      say({ about: "files", loaded, total });
    });
    const model = await Model.of(live, files);
    answers = new Answers(model);
    say({ about: "ready", facts: { auto: [...model.routers.keys()], kernel: model.kernel !== null, kept,
      seconds: (performance.now() - last) / 1000, decoder: model.decoder.bytes, memory: model.memory?.bytes ?? 0, chat: chatFacts(model) } });
  } catch (error) {
    if (!(error instanceof LiveError)) console.error(error);
    say({ about: "lost", text: error instanceof LiveError ? error.message : "The model could not be started in this browser." });
  }
}

/** @param {Extract<Sent, { plan: any }>} job */
async function run({ job, plan }) {
  const isStopped = () => stopped.has(job);
  if (answers && !isStopped()) {
    for await (const value of answers.values(plan, isStopped)) if (!isStopped()) say({ about: "value", job, value });
  }
  stopped.delete(job);
  say({ about: "end", job });
}

self.addEventListener("message", (/** @type {MessageEvent<Sent>} */ { data }) => {
  if ("load" in data) load(data.load);
  else if ("stop" in data) stopped.add(data.stop);
  else before = before.then(() => run(data));
});

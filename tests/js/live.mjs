/* Runs the page's engine under node, for the tests in Python: one JSON request on stdin, one JSON answer on stdout.
 *
 * {live, folder, plain, tasks}: live is the listing that mlpmem/space/live.py writes, folder the site's. A task is
 * {encode, special}, {decode}, {hash}, {logs: ids}, {random: [seed, count]}, {half: numbers}, {plan}, {open: listing}, which gives the error, {keyed: text, most}, {gated: text}, {sentences: texts},
 * {chance: {seed, sizes, floats}}, {written: lists of bytes},
 * or {cut: folder, tasks}, which are for the tokenizer of a decoder's folder. */
import { readFileSync } from "node:fs";
import { join } from "node:path";

const room = "../../mlpmem/ui/static/live";
const { Model } = await import(`${room}/engine/fused.js`);
const { Answers } = await import(`${room}/answers.js`);
const { Store } = await import(`${room}/own/store.js`);
const { partsOf } = await import(`${room}/own/rows.js`);
const { Chance, uniform } = await import(`${room}/own/chance.js`);
const { passagesOf } = await import(`${room}/own/sentences.js`);
const { Twister } = await import(`${room}/engine/twister.js`);
const { Random } = await import(`${room}/engine/distributions.js`);
const { roundToHalf } = await import(`${room}/model/products/halves.js`);
const { TextStream, Tokenizer } = await import(`${room}/model/tokenizer.js`);

/** @type {{ live: any, folder: string, plain?: boolean, tasks: any[] }} */
const request = JSON.parse(readFileSync(0, "utf8"));

function files(live) {
  const named = Object.entries(live.files).map(([name, { parts }]) =>
    [name, new Uint8Array(Buffer.concat(parts.map((part) => readFileSync(join(request.folder, part)))))]);
  return new Map(named);
}

async function answer(task, model, answers) {
  if (task.cut) {
    const [file, config] = ["tokenizer", "tokenizer_config"].map((name) => JSON.parse(readFileSync(`${task.cut}/${name}.json`, "utf8")));
    return Promise.all(task.tasks.map((one) => answer(one, { tokenizer: new Tokenizer(file, config) }, answers)));
  }
  if (task.open) return Model.of(task.open, files(task.open)).then(() => null, (error) => error.message);
  if (task.encode) return task.encode.map((text) => model.tokenizer.encode(text, task.special));
  if (task.keyed) {
    const store = new Store(model, "text", task.most);
    let last = null;
    for await (last of store.build(task.keyed));
    return { ...last, bytes: store.bytes, tokens: store.tokens, note: store.note };
  }
  if (task.decode) return task.decode.map((ids) => model.tokenizer.decode(ids));
  if (task.gated) return gated(task.gated, model);
  if (task.sentences) return task.sentences.map((text) => passagesOf({ eos: new Set(), positions: 96, tokenizer: { encode: (part) => [part], eos: null } }, text, 1).map(([part]) => part));
  if (task.written) return task.written.map((bytes) => { const text = new TextStream(); return bytes.map((byte) => text.push(Uint8Array.of(byte))); });
  if (task.chance) return drawn(task.chance);
  if (task.hash) return await model.tokenizer.hash();
  if (task.half) return [...(() => { const a = Float32Array.from(task.half); roundToHalf(a); return a; })()];
  if (task.random) {
    const random = new Random(task.random[0]);
    return Array.from({ length: task.random[1] }, () => random.uniform());
  }
  if (task.logs) {
    const plain = ({ logs }) => Object.fromEntries(Object.entries(logs).map(([source, log]) => [source, [...log]]));
    const passes = model.read(task.logs, model.decoder.cache());
    return [...passes].flatMap((states) => model.positionsOf(states, answers.store, []).map(plain));
  }
  const values = [];
  for await (const value of answers.values({ run: "run", ...task.plan }, () => false)) values.push(value);
  return values;
}

/** Numbers, a choice and samples as Python's random draws them, then torch's uniform_. */
function drawn({ seed, sizes, floats }) {
  const chance = new Chance(seed);
  return { below: sizes.map((n) => chance.below(n)), choice: chance.choice(sizes), samples: sizes.map((n) => chance.sample([...Array(n).keys()], Math.ceil(n / 9))),
    uniform: uniform(new Twister(seed), floats, 0.25) };
}

/** What a text's store and gate give: the rows that the gate is fitted to, and lambda of each. */
async function gated(text, model) {
  const store = new Store(model, "text");
  for await (const _ of store.build(text));
  const fit = partsOf(model, store, 1);
  let step = fit.next();
  while (!step.done) step = fit.next();
  const lambdas = step.value.map(({ rows }) => rows.map((row) => 1 / (1 + Math.exp(-store.gate.logit(row)))));
  return { entries: store.entries, parts: store.parts, usual: store.search.usual, kinds: step.value.map(({ kind }) => kind),
    rows: step.value.map(({ rows }) => rows), lambdas };
}

/** Prints an answer and ends, although a message channel is open. */
const print = (value) => process.stdout.write(JSON.stringify(value), () => process.exit(0));

try {
  const model = await Model.of(request.live, files(request.live), request.plain);
  const answers = new Answers(model);
  const results = [];
  for (const task of request.tasks) results.push(await answer(task, model, answers));
  print({ kernel: model.kernel !== null, results });
} catch (error) {
  print({ error: error.message, stack: error.stack });
}

/* A small GPT-2 and its memory: the log-probs that Python writes into gpt2.json (tests/gpt2_numbers.py). */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { logSoftmax } from "../../mlpmem/ui/static/live/engine/distributions.js";
import { Decoder } from "../../mlpmem/ui/static/live/model/decoder.js";
import { decoderOf } from "../../mlpmem/ui/static/live/model/families.js";
import { Memory, checkMemory } from "../../mlpmem/ui/static/live/model/memory.js";
import { Arena, compiled } from "../../mlpmem/ui/static/live/model/products/products.js";
import { Weights } from "../../mlpmem/ui/static/live/model/weights/weights.js";

const { config, memory: memoryConfig, ids, logs } = JSON.parse(readFileSync(new URL("gpt2.json", import.meta.url), "utf8"));
const { n_embd: D, n_inner: inner, n_layer: layers, n_positions: positions, vocab_size: V } = config;

/** The half of k / 1024, |k| below 1024. */
function half(k) {
  if (k === 0) return 0;
  const exponent = Math.floor(Math.log2(Math.abs(k)));
  return (k < 0 ? 0x8000 : 0) | ((exponent + 5) << 10) | ((Math.abs(k) / 2 ** exponent - 1) * 1024);
}

/** The formula's weights in a file of safetensors; sizes are [name, shape]. */
function weightsOf(sizes) {
  const header = {};
  const data = [];
  for (const [name, shape] of sizes) {
    const count = shape.reduce((all, one) => all * one, 1);
    const seed = [...name].reduce((sum, character) => sum + character.charCodeAt(0), 0);
    header[name] = { dtype: "F16", shape, data_offsets: [2 * data.length, 2 * (data.length + count)] };
    for (let i = 0; i < count; i += 1) data.push(half((i * 131 + seed * 17) % 1009 - 504));
  }
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return new Weights(new Uint8Array(Buffer.concat([length, text, Buffer.from(Uint16Array.from(data).buffer)])), "the file");
}

/** A layer's weights of two dimensions are (in, out), as GPT-2's Conv1D has them. */
const linear = (name, into, out) => [[`${name}.weight`, [into, out]], [`${name}.bias`, [out]]];
const norm = (name) => [[`${name}.weight`, [D]], [`${name}.bias`, [D]]];
const ffn = (at) => [...linear(`${at}.mlp.c_fc`, D, inner), ...linear(`${at}.mlp.c_proj`, inner, D)];
const each = (parts) => Array.from({ length: layers }, (_, l) => parts(l)).flat();
const DECODER = [["transformer.wte.weight", [V, D]], ["transformer.wpe.weight", [positions, D]], ...norm("transformer.ln_f"),
  ...each((l) => [`transformer.h.${l}`].flatMap((at) => [...norm(`${at}.ln_1`), ...norm(`${at}.ln_2`), ...ffn(at),
    ...linear(`${at}.attn.c_attn`, D, 3 * D), ...linear(`${at}.attn.c_proj`, D, D)]))];
const MEMORY = [["lm_head.weight", [V, D]], ...norm("ln_f"), ...each((l) => [...norm(`h.${l}.ln_1`), ...ffn(`h.${l}`)])];

function opened(kernel) {
  const { family, shape } = decoderOf(config);
  checkMemory(memoryConfig, shape, "");
  const arena = new Arena(kernel, Decoder.room(family, shape, 0) + Memory.room(memoryConfig));
  const decoder = new Decoder(family, shape, weightsOf(DECODER), arena, memoryConfig.depth);
  const memory = new Memory(memoryConfig, weightsOf(MEMORY), decoder);
  assert(arena.taken <= arena.bytes, `${arena.taken} of ${arena.bytes} bytes`);
  return { decoder, memory };
}

/** Asserts the log-probs at rows from a position on. */
function same({ decoder, memory }, states, from) {
  for (const [name, logits] of [["lm", decoder.logits(states.features)], ["memory", memory.logits(states.hidden)]]) {
    for (let r = 0; r < states.features.length / D; r += 1) {
      const found = logSoftmax(logits.subarray(r * V, (r + 1) * V));
      for (const [i, wanted] of logs[name][from + r].entries()) {
        assert(Math.abs(found[i] - wanted) < 1e-5, `${name}, row ${from + r}, token ${i}: ${wanted}, got ${found[i]}`);
      }
    }
  }
}

for (const [name, kernel] of [["the kernel", compiled()], ["plain loops", null]]) {
  test(`a GPT-2 gives Python's log-probs at all its positions, by ${name}`, () => {
    const model = opened(kernel);
    assert.equal(ids.length, positions);
    const cache = model.decoder.cache();
    same(model, model.decoder.forward(ids, ids.map(() => cache)), 0);
  });

  test(`one token after the other gives the same, in a fork too, by ${name}`, () => {
    const model = opened(kernel);
    const cache = model.decoder.cache();
    const other = [...ids.slice(0, 4), 5, 6];
    for (const [i, id] of ids.slice(0, 4).entries()) same(model, model.decoder.forward([id], [cache]), i);
    const fork = cache.fork();
    for (const id of other.slice(4)) model.decoder.forward([id], [fork]);
    for (const [i, id] of ids.slice(4).entries()) same(model, model.decoder.forward([id], [cache]), i + 4);
    assert.deepEqual([cache.length, fork.length], [10, 6]);
  });
}

test("a matrix is held as halves by the kernel, and biases as floats", () => {
  const { decoder } = opened(compiled());
  const [{ q, k, v, ffn: { gate, up } }] = decoder.layers;
  for (const { weight, bias } of [q, k, v, up]) assert(weight instanceof Uint16Array && bias instanceof Float32Array);
  assert.deepEqual([q, k, v].map(({ weight, bias }) => [weight.length, bias.length]), [[D * D, D], [D * D, D], [D * D, D]]);
  assert.equal(gate, null);
});

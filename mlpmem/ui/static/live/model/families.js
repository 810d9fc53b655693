// @ts-check
/* The families of decoders and memories that run here; one that is not here stays a replay, with a sentence.
 *
 * A family is a row: what its weights are called, and how its config names the sizes. What it computes follows from the row.
 * A norm with biases is a LayerNorm, one without is a root-mean-square norm. An FFN with a gate is SwiGLU, one without has
 * GELU's tanh form. Without a table of positions they are rotary. A memory has the layers' names without `body` before them.
 *
 * Letters: D hidden size, H heads, G key-value heads, C numbers per head, V vocabulary. */
import { must } from "./errors.js";

/** @typedef {{ [name: string]: any }} Config of config.json
 * @typedef {{ layers: number, D: number, H: number, G: number, C: number, inner: number, V: number, eps: number, theta: number,
 *   positions: number, tied: boolean }} Shape of a decoder; theta is that of rotary positions, and 0 without
 * @typedef {{ body: string, table: string, places: string, layers: string, norms: [string, string], last: string, qkv: string[],
 *   out: string, gate: string, up: string, down: string, biased: boolean, transposed: boolean, sizes: (config: Config) => Shape,
 *   others: (config: Config) => [unknown, string][] }} Family `places` is the table of positions, `norms` stand before attention and
 *   FFN; a weight is `transposed` if it is stored (in, out); `others` are conditions that do not run, with their names */

/** @type {Family} */
const LLAMA = {
  body: "model", table: "embed_tokens", places: "", layers: "layers", norms: ["input_layernorm", "post_attention_layernorm"],
  last: "norm", qkv: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], out: "self_attn.o_proj",
  gate: "mlp.gate_proj", up: "mlp.up_proj", down: "mlp.down_proj", biased: false, transposed: false,
  sizes: (config) => {
    const { hidden_size: D, num_attention_heads: H } = config;
    return { layers: config.num_hidden_layers, D, H, G: config.num_key_value_heads ?? H, C: config.head_dim ?? D / H,
      inner: config.intermediate_size, V: config.vocab_size, eps: config.rms_norm_eps, theta: ropeOf(config).rope_theta ?? 10000,
      positions: config.max_position_embeddings, tied: Boolean(config.tie_word_embeddings) };
  },
  others: (config) => [
    [config.hidden_act !== "silu", `with the activation ${config.hidden_act}`],
    [config.attention_bias || config.mlp_bias, "with biases"],
    [!["default", undefined].includes(ropeOf(config).rope_type), `with ${ropeOf(config).rope_type} positions`],
  ],
};
const GELUS = ["gelu_new", "gelu_pytorch_tanh"]; // names of the tanh form

/** @type {Family} */
const GPT2 = {
  body: "transformer", table: "wte", places: "wpe", layers: "h", norms: ["ln_1", "ln_2"], last: "ln_f", qkv: ["attn.c_attn"],
  out: "attn.c_proj", gate: "", up: "mlp.c_fc", down: "mlp.c_proj", biased: true, transposed: true,
  sizes: (config) => {
    const { n_embd: D, n_head: H } = config;
    return { layers: config.n_layer, D, H, G: H, C: D / H, inner: config.n_inner ?? 4 * D, V: config.vocab_size,
      eps: config.layer_norm_epsilon, theta: 0, positions: config.n_positions, tied: config.tie_word_embeddings ?? true };
  },
  others: (config) => [
    [!GELUS.includes(config.activation_function), `with the activation ${config.activation_function}`],
    [config.scale_attn_weights === false || config.scale_attn_by_inverse_layer_idx, "with attention of another scale"],
    [config.add_cross_attention, "with attention to another text"],
  ],
};

/** @type {{ [name: string]: Family }} */
const FAMILIES = { llama: LLAMA, gpt2: GPT2 };

/** What a config says of rotary positions. @param {Config} config @returns {{ rope_type?: string, rope_theta?: number }} */
function ropeOf(config) {
  return config.rope_parameters ?? { rope_type: config.rope_scaling?.rope_type, rope_theta: config.rope_theta };
}

/** A family by its name; throws a LiveError for one that does not run here. @param {string} name @param {string} part of the bundle */
export function familyOf(name, part) {
  const known = Object.keys(FAMILIES).join(" and ");
  must(Object.hasOwn(FAMILIES, name), `This bundle's ${part} is of the family ${name}, which does not run in the browser; ${known} do.`);
  return FAMILIES[name];
}

/** A decoder's family, and the sizes in its config; throws a LiveError for a decoder that does not run here.
 * @param {Config} config @returns {{ family: Family, shape: Shape }} */
export function decoderOf(config) {
  const family = familyOf(config.model_type, "decoder");
  const shape = family.sizes(config);
  /** @type {[unknown, string][]} */
  const others = [...family.others(config), [shape.C % 4, "with heads whose size is not a multiple of 4"]];
  const other = others.find(([wrong]) => wrong);
  must(!other, `This bundle's decoder is ${other?.[1]}, which does not run in the browser.`);
  return { family, shape };
}

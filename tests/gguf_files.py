"""Small GGUF files, written with the gguf package as llama.cpp's converter would write them."""

import re
from pathlib import Path

import gguf
import numpy as np
import torch

ARCHITECTURES = {  # transformers' model_type -> llama.cpp's name
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "phi3": "phi3",
    "gemma2": "gemma2", "gemma3_text": "gemma3", "gpt2": "gpt2", "mistral": "llama",
    "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "stablelm": "stablelm", "falcon": "falcon",
    "bloom": "bloom",
}  # fmt: skip
TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}<s>"


def write(
    path: Path, decoder, kind: str = "F32", template: str = "", split: str = "default", **more
) -> Path:
    """Write a tiny decoder as GGUF, its matrices in a kind of block; more are added values."""
    model = decoder.model
    config = model.config
    family = config.model_type
    writer = gguf.GGUFWriter(path, ARCHITECTURES[family])
    _add_shape(writer, config)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    _add_tokenizer(writer, decoder.tokenizer, config.vocab_size, split)
    if template:
        writer.add_chat_template(template)
    for name, (add, value) in more.items():
        getattr(writer, add)(name, value)
    architecture = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == ARCHITECTURES[family])
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, weight in _stored(model).items():
        base, _, part = name.rpartition(".")
        own = names.get_name(base) or names.get_name(base.removeprefix("transformer."))
        assert own, f"llama.cpp has no name for {name}"
        _add(writer, f"{own}.{part}", weight, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_shape(writer: gguf.GGUFWriter, config) -> None:
    """Add what llama.cpp's converter writes of a config's numbers."""
    heads, hidden = config.num_attention_heads, config.hidden_size
    inner = "ffn_hidden_size" if config.model_type == "falcon" else "intermediate_size"
    writer.add_context_length(getattr(config, "max_position_embeddings", hidden))
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(getattr(config, inner, None) or 4 * hidden)
    writer.add_head_count(heads)
    for name in ("layer_norm_epsilon", "layer_norm_eps"):
        if hasattr(config, name):
            writer.add_layer_norm_eps(getattr(config, name))
    kv_heads = getattr(config, "num_key_value_heads", heads)
    if config.model_type == "falcon":
        kv_heads = config.num_kv_heads if config.new_decoder_architecture else 1
    if config.model_type != "gpt2":
        writer.add_head_count_kv(kv_heads)
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        size = getattr(config, "head_dim", hidden // heads)
        writer.add_key_length(size)
        writer.add_rope_dimension_count(size)
        writer.add_rope_freq_base(rope_of(config)["rope_theta"])
    if config.model_type == "stablelm":
        part = config.rope_parameters["partial_rotary_factor"]
        writer.add_rope_dimension_count(int(part * (hidden // heads)))
    if hasattr(config, "moe_intermediate_size"):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if hasattr(config, "shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def rope_of(config) -> dict:
    """Return the rotation of layers that attend to everything."""
    return config.rope_parameters.get("full_attention", config.rope_parameters)


def _stored(model) -> dict[str, np.ndarray]:
    """Return the weights as llama.cpp keeps them, by the names that its converter reads."""
    config, found = model.config, {}
    for name, weight in model.state_dict().items():
        tied = name == "lm_head.weight" and config.tie_word_embeddings
        if tied or name.endswith((".attn.bias", "masked_bias")):
            continue
        if name.endswith("experts.gate_up_proj"):
            gate, up = weight.chunk(2, dim=1)
            base = name.removesuffix("gate_up_proj")
            found |= {f"{base}gate_proj.weight": gate, f"{base}up_proj.weight": up}
        elif name.endswith("experts.down_proj"):
            found[f"{name}.weight"] = weight
        elif match := re.fullmatch(r"(.*layernorm)\.norms\.\d+(\.weight)", name):
            heads = found.get(match[1] + match[2], weight[:0].view(0, len(weight)))
            found[match[1] + match[2]] = torch.cat([heads, weight[None]])
        else:
            found[name] = _as_stored(config, name, weight)
    return {name: weight.float().contiguous().numpy() for name, weight in found.items()}


def _as_stored(config, name: str, weight: torch.Tensor) -> torch.Tensor:
    """Return a weight in llama.cpp's order."""
    family = config.model_type
    if family in ("llama", "mistral") and name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = config.num_attention_heads if ".q_" in name else config.num_key_value_heads
        halves = weight.view(heads, 2, -1, weight.shape[1])
        return halves.transpose(1, 2).reshape(weight.shape)
    if "query_key_value" in name:
        kv_heads = config.num_attention_heads
        if family == "falcon":
            kv_heads = config.num_kv_heads if config.new_decoder_architecture else 1
        per_head = config.num_attention_heads // kv_heads
        groups = weight.view(kv_heads, per_head + 2, -1, *weight.shape[1:])
        parts = groups.split([per_head, 1, 1], dim=1)
        return torch.cat([part.reshape(-1, *weight.shape[1:]) for part in parts])
    if family.startswith("gemma") and name.endswith("norm.weight"):
        return weight + 1
    if family == "gpt2" and ".h." in name and weight.dim() == 2:
        return weight.T
    return weight[0] if name.endswith("shared_expert_gate.weight") else weight


def _add(writer: gguf.GGUFWriter, name: str, weight: np.ndarray, kind: str) -> None:
    """Add a tensor; matrices in a kind of block."""
    number = gguf.GGMLQuantizationType[kind]
    if weight.ndim < 2 or kind == "F32":
        writer.add_tensor(name, weight)
        return
    blocks = random_blocks(weight, kind) if kind in SCALES else gguf.quants.quantize(weight, number)
    writer.add_tensor(name, blocks, raw_dtype=number)


# kind of block that the package cannot write -> [(first byte of a float16, its value)]
SCALES = {
    "Q4_K": [(0, 4e-4), (2, 3e-3)],
    "Q5_K": [(0, 2e-4), (2, 3e-3)],
    "Q6_K": [(208, 1e-4)],
}


def random_blocks(weight: np.ndarray, kind: str) -> np.ndarray:
    """Return random blocks for a weight's shape, with numbers of about 0.1 around 0.

    Any bytes are valid, except those of the float16 scales.
    """
    size, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    rng = np.random.default_rng(weight.size)
    shape = *weight.shape[:-1], weight.shape[-1] // size
    blocks = rng.integers(0, 256, (*shape, width), dtype=np.uint8)
    for at, scale in SCALES[kind]:
        scales = (scale * rng.uniform(0.8, 1.2, (*shape, 1))).astype(np.float16)
        blocks[..., at : at + 2] = scales.view(np.uint8)
    return blocks.reshape(*weight.shape[:-1], -1)


def _add_tokenizer(writer: gguf.GGUFWriter, words, vocab: int, split: str) -> None:
    """Add a byte-level tokenizer."""
    pieces = words.convert_ids_to_tokens(list(range(len(words))))
    pieces += [f"[PAD{i}]" for i in range(len(pieces), vocab)]
    special = set(words.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(pieces)
    writer.add_token_types([3 if i in special else 1 for i in range(len(pieces))])
    writer.add_token_merges(["t h", "th e", "Ġ the", "i n", "a n"])
    writer.add_bos_token_id(words.bos_token_id)
    writer.add_eos_token_id(words.eos_token_id)
    writer.add_add_bos_token(True)

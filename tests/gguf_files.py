"""Small GGUF files, written with the gguf package as llama.cpp's converter would write them."""

from pathlib import Path

import gguf
import numpy as np
import torch

ARCHITECTURES = {  # transformers' model_type -> llama.cpp's name
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "phi3": "phi3",
    "gemma2": "gemma2", "gemma3_text": "gemma3", "gpt2": "gpt2",
}  # fmt: skip
TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}<s>"


def write(path: Path, decoder, kind: str = "F32", template: str = "", **more) -> Path:
    """Write a tiny decoder as GGUF, its matrices in a kind of block; more are added values."""
    model = decoder.model
    config = model.config
    family = config.model_type
    writer = gguf.GGUFWriter(path, ARCHITECTURES[family])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(
        4 * config.hidden_size if family == "gpt2" else config.intermediate_size
    )
    writer.add_head_count(config.num_attention_heads)
    if family == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(rope_of(config)["rope_theta"])
        size = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
        writer.add_key_length(size)
        writer.add_rope_dimension_count(size)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    _add_tokenizer(writer, decoder.tokenizer, config.vocab_size)
    if template:
        writer.add_chat_template(template)
    for name, (add, value) in more.items():
        getattr(writer, add)(name, value)
    architecture = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == ARCHITECTURES[family])
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and tied or name.endswith((".attn.bias", "masked_bias")):
            continue
        base, _, part = name.rpartition(".")
        _add(writer, f"{names.get_name(base)}.{part}", _stored(config, name, weight), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rope_of(config) -> dict:
    """Return the rotation of layers that attend to everything."""
    return config.rope_parameters.get("full_attention", config.rope_parameters)


def _stored(config, name: str, weight: torch.Tensor) -> np.ndarray:
    """Return a weight as llama.cpp keeps it."""
    weight = weight.float()
    if config.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = config.num_attention_heads if ".q_" in name else config.num_key_value_heads
        halves = weight.view(heads, 2, -1, weight.shape[1])
        weight = halves.transpose(1, 2).reshape(weight.shape)
    if config.model_type.startswith("gemma") and name.endswith("norm.weight"):
        weight = weight + 1
    if config.model_type == "gpt2" and ".h." in name and weight.dim() == 2:
        weight = weight.T
    return weight.contiguous().numpy()


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


def _add_tokenizer(writer: gguf.GGUFWriter, words, vocab: int) -> None:
    """Add a byte-level tokenizer."""
    pieces = words.convert_ids_to_tokens(list(range(len(words))))
    pieces += [f"[PAD{i}]" for i in range(len(pieces), vocab)]
    special = set(words.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    writer.add_token_types([3 if i in special else 1 for i in range(len(pieces))])
    writer.add_token_merges(["t h", "th e", "Ġ the", "i n", "a n"])
    writer.add_bos_token_id(words.bos_token_id)
    writer.add_eos_token_id(words.eos_token_id)
    writer.add_add_bos_token(True)

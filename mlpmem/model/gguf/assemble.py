"""A decoder from a GGUF file: transformers' model and tokenizer.

A family is a function in CONFIGS, from llama.cpp's metadata to a transformers config; TOP and
LEAVES translate names. Weights become dense a few rows at a time, so a file is never held twice.
Linear layers keep the location of their blocks, which 4-bit products read.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlpmem.errors import MlpMemError
from mlpmem.model.gguf.reader import (
    Blocks,
    Header,
    Place,
    dense_rows,
    one_line,
    plain,
    read_header,
    wrong,
)
from mlpmem.model.gguf.vocabulary import read_tokenizer


def load_gguf(path: str | Path, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """Return a transformers model with weights in dtype, and its tokenizer.

    Quantised linear layers get an attribute `blocks`, their Blocks.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    header = read_header(path)
    if header.architecture not in CONFIGS:
        raise MlpMemError(
            f"decoder: {header.path.name} has the family {header.architecture!r}; GGUF files must "
            f"be of {', '.join(CONFIGS)}. Use a transformers folder, or another model"
        )
    if header.get("expert_count"):
        raise MlpMemError(
            f"decoder: {header.path.name} is a mixture of experts, which is not read from GGUF "
            "files. Use its transformers folder, or another model"
        )
    _check_layers(header)
    try:
        model_type, values = CONFIGS[header.architecture](header)
        config = CONFIG_MAPPING[model_type](**values, **_common(header), dtype=dtype)
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        with torch.device("meta"):
            skeleton = model_class(config)  # without memory
    except MlpMemError:
        raise
    except Exception as error:  # a config's checks raise errors of many kinds
        raise wrong(header.path, f"its configuration: {one_line(error)}") from error
    expected = skeleton.state_dict()
    names = {name: _name(model_type, name) for name in expected}
    if config.tie_word_embeddings:
        names.pop("lm_head.weight", None)
    _check(header, model_type, names, expected)
    _check_frequencies(header, skeleton)
    tokenizer = read_tokenizer(header)
    state = {name: _weight(header, source, model_type, dtype) for name, source in names.items()}
    model = model_class.from_pretrained(None, config=config, state_dict=state, dtype=dtype)
    state.clear()
    _set_frequencies(model, header)
    model.generation_config.eos_token_id = _ends(header) or None
    for name, layer in model.named_modules():
        source = names.get(f"{name}.weight")
        if type(layer) is nn.Linear and source and header.places[source].kind.bits:
            place = header.places[source]
            layer.blocks = Blocks(header.path, place, _order(header, model_type, source))
    return model, tokenizer


def _common(header: Header) -> dict[str, Any]:
    """Return the config values of every family."""
    rows = (
        header.places["token_embd.weight"].shape[0] if "token_embd.weight" in header.places else 0
    )
    special = {name: header.values.get(f"tokenizer.ggml.{name}") for name in IDS}
    return {
        "vocab_size": rows,
        "bos_token_id": special["bos_token_id"],
        "eos_token_id": special["eos_token_id"],
        "pad_token_id": special["padding_token_id"],
        "tie_word_embeddings": "output.weight" not in header.places,
    }


IDS = ("bos_token_id", "eos_token_id", "padding_token_id")
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


def _ends(header: Header) -> list[int]:
    """Return the token ids that end a text or a turn."""
    ids = (header.values.get(f"tokenizer.ggml.{name}") for name in ENDS)
    return sorted({i for i in ids if isinstance(i, int)})


def _llama(header: Header, model_type: str = "llama", **more: Any) -> tuple[str, dict[str, Any]]:
    """Return model_type and config values of a Llama-shaped family."""
    heads, hidden = header.get("attention.head_count"), header.get("embedding_length")
    if not all(isinstance(x, int) and x > 0 for x in (heads, hidden)):
        raise wrong(header.path, "its hidden size or number of heads is missing")
    size = header.get("attention.key_length") or hidden // heads
    values = {
        "max_position_embeddings": header.get("context_length"),
        "num_hidden_layers": header.get("block_count"),
        "hidden_size": hidden,
        "intermediate_size": header.get("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": header.get("attention.head_count_kv", heads),
        "head_dim": size,
        "rms_norm_eps": header.get("attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(header),
        **more,
    }
    if model_type == "llama":
        values["attention_bias"] = "blk.0.attn_q.bias" in header.places
    return model_type, {name: value for name, value in values.items() if value is not None}


def _rope(header: Header) -> dict[str, Any]:
    """Return the parameters of the rotation."""
    rope = {"rope_type": "default", "rope_theta": header.get("rope.freq_base", 10_000.0)}
    kind, factor = header.get("rope.scaling.type", "none"), header.get("rope.scaling.factor")
    if kind in ("linear", "yarn") and factor:
        rope |= {"rope_type": kind, "factor": factor}
    original = header.get("rope.scaling.original_context_length")
    if kind == "yarn" and original:
        rope["original_max_position_embeddings"] = original
    return rope


def _phi3(header: Header) -> tuple[str, dict[str, Any]]:
    """Return Phi-3's config values; long contexts have their own factors."""
    _, values = _llama(header, "phi3", sliding_window=header.get("attention.sliding_window"))
    original = header.get("rope.scaling.original_context_length")
    if "rope_factors_long.weight" in header.places and original:
        factors = {
            f"{which}_factor": plain(header, f"rope_factors_{which}.weight").tolist()
            for which in ("long", "short")
        }
        values["rope_parameters"] |= {"rope_type": "longrope", **factors}
        values["original_max_position_embeddings"] = original
    whole = values.pop("head_dim")
    size = header.get("rope.dimension_count", whole)
    if not isinstance(size, int) or not 1 < size <= whole:
        raise wrong(header.path, f"it rotates {size!r:.40} of {whole} numbers per head")
    values["rope_parameters"]["partial_rotary_factor"] = size / whole
    return "phi3", values


def _gemma(header: Header, model_type: str) -> tuple[str, dict[str, Any]]:
    """Return Gemma 2's or 3's config values; their config classes set the layers' windows."""
    _, values = _llama(header, model_type)
    window = header.get("attention.sliding_window")
    values |= {"sliding_window": window} if window else {}
    # divisor of the scores: the hidden size per head in the 27B models, else the head size
    largest = values["num_hidden_layers"] in LARGEST
    heads = values["num_attention_heads"]
    values["query_pre_attn_scalar"] = (
        values["hidden_size"] // heads if largest else values["head_dim"]
    )
    if model_type == "gemma2":
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            values[name] = header.get(name, SOFTCAPS[name])
    else:
        local = {"rope_type": "default", "rope_theta": 10_000.0}
        values["rope_parameters"] = {
            "full_attention": values["rope_parameters"],
            "sliding_attention": local,
        }
    return model_type, values


LARGEST = (46, 62)  # layers of Gemma 2 27B and Gemma 3 27B
SOFTCAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}


def _gpt2(header: Header) -> tuple[str, dict[str, Any]]:
    values = {
        "n_positions": header.get("context_length"),
        "n_layer": header.get("block_count"),
        "n_embd": header.get("embedding_length"),
        "n_inner": header.get("feed_forward_length"),
        "n_head": header.get("attention.head_count"),
        "layer_norm_epsilon": header.get("attention.layer_norm_epsilon"),
    }
    return "gpt2", {name: value for name, value in values.items() if value is not None}


CONFIGS: dict[str, Callable[[Header], tuple[str, dict[str, Any]]]] = {
    "llama": _llama,
    "qwen2": lambda header: _llama(header, "qwen2"),
    "qwen3": lambda header: _llama(header, "qwen3"),
    "phi3": _phi3,
    "gemma2": lambda header: _gemma(header, "gemma2"),
    "gemma3": lambda header: _gemma(header, "gemma3_text"),
    "gpt2": _gpt2,
}

TOP = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
}
LEAVES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
FACTORS = "rope_freqs.weight"  # of the rotation's frequencies
LAYER = re.compile(r"(?:model\.layers|transformer\.h)\.(\d+)\.(.+)")


def _name(model_type: str, name: str) -> str:
    """Return the name in a GGUF file for a name of transformers."""
    base, _, part = name.rpartition(".")
    if not (match := LAYER.fullmatch(base)):
        return f"{TOP.get(base, base)}.{part}"
    leaf = LEAVES.get(match[2], match[2])
    if model_type.startswith("gemma") and match[2] == "post_attention_layernorm":
        leaf = "post_attention_norm"  # in other families, this norm comes before the FFN
    return f"blk.{match[1]}.{leaf}.{part}"


def stored(header: Header, model_type: str, names: Iterable[str]) -> dict[str, Place]:
    """Return the location of each of transformers' weights, by its name."""
    return {name: header.places[_name(model_type, name)] for name in names}


def _check_layers(header: Header) -> None:
    """Raise MlpMemError unless a file has at least a tensor per layer: no model is built before."""
    count, most = header.get("block_count"), len(header.places)
    if not isinstance(count, int) or not 1 <= count <= most:
        raise wrong(header.path, f"it has {most} tensors, the header says {count!r:.40} layers")


def _check(
    header: Header, model_type: str, names: Mapping[str, str], expected: Mapping[str, Tensor]
) -> None:
    """Raise MlpMemError unless every weight exists in its expected shape."""
    missing = sorted(source for source in names.values() if source not in header.places)
    if missing:
        raise wrong(header.path, f"it lacks {len(missing)} tensors, such as {missing[0]}")
    for name, source in names.items():
        shape, needed = list(header.places[source].shape), list(expected[name].shape)
        if _is_transposed(model_type, source, needed):
            needed.reverse()
        if shape != needed:
            raise wrong(header.path, f"{source} is {shape}, the header says {needed}")


def _order(header: Header, model_type: str, name: str) -> Tensor | None:
    """Return the order of a tensor's rows in transformers, None if it is the file's order.

    The file orders Llama's queries and keys for a rotation of neighbours: (heads, size / 2, 2).
    """
    leaf = name.split(".")[-2]
    if model_type != "llama" or leaf not in ("attn_q", "attn_k"):
        return None
    heads = header.get("attention.head_count")
    if leaf == "attn_k":
        heads = header.get("attention.head_count_kv", heads)
    rows = torch.arange(header.places[name].shape[0])
    return rows.view(heads, -1, 2).transpose(1, 2).reshape(-1)


def _weight(header: Header, name: str, model_type: str, dtype: torch.dtype) -> Tensor:
    """Return a weight in transformers' layout and in dtype."""
    weight = torch.empty(header.places[name].shape, dtype=dtype)
    for first, rows in dense_rows(header, name):
        if model_type.startswith("gemma") and name.endswith("norm.weight"):
            rows = rows - 1  # files store 1 + weight
        weight.view(-1, weight.shape[-1])[first : first + len(rows)] = rows
    if (order := _order(header, model_type, name)) is not None:
        weight = weight[order]
    return weight.T.contiguous() if _is_transposed(model_type, name, weight.shape) else weight


def _is_transposed(model_type: str, name: str, shape: Sequence[int]) -> bool:
    """Return whether transformers holds a weight as (inputs, outputs); files never do."""
    return model_type == "gpt2" and name.startswith("blk.") and len(shape) == 2


def _check_frequencies(header: Header, model: nn.Module) -> None:
    """Raise MlpMemError unless a file's factors fit the rotation's frequencies."""
    if FACTORS in header.places:
        found = header.places[FACTORS].shape
        needed = tuple(model.get_decoder().rotary_emb.inv_freq.shape)
        if found != needed:
            raise wrong(header.path, f"{FACTORS} is {list(found)}, and must be {list(needed)}")


def _set_frequencies(model: nn.Module, header: Header) -> None:
    """Divide the rotation's frequencies by the file's factors, as Llama 3 needs."""
    if FACTORS in header.places:
        model.get_decoder().rotary_emb.inv_freq /= plain(header, FACTORS)

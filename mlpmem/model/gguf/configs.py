"""Config values of each family, from llama.cpp's metadata in a GGUF file.

A family is a function in CONFIGS. What a file does not state in its metadata, its tensors show:
biases, norms, and whether the head is tied to the table.
"""

from collections.abc import Callable
from typing import Any

from mlpmem.model.gguf.reader import Header, plain, wrong


def _llama(header: Header, model_type: str = "llama", **more: Any) -> tuple[str, dict[str, Any]]:
    """Return model_type and config values of a Llama-shaped family."""
    heads, hidden = header.get("attention.head_count"), header.get("embedding_length")
    if not all(isinstance(x, int) and x > 0 for x in (heads, hidden)):
        raise wrong(header.path, "its hidden size or number of heads is missing")
    kv_heads = header.get("attention.head_count_kv", heads)
    if not isinstance(kv_heads, int) or kv_heads < 1 or heads % kv_heads:
        raise wrong(header.path, f"it has {kv_heads!r:.40} key heads for {heads} heads")
    size = header.get("attention.key_length") or hidden // heads
    if not isinstance(size, int) or size < 2 or size % 2:  # pairs of numbers are rotated
        raise wrong(header.path, f"its heads have {size!r:.40} numbers, an even number is needed")
    values = {
        "max_position_embeddings": header.get("context_length"),
        "num_hidden_layers": header.get("block_count"),
        "hidden_size": hidden,
        "intermediate_size": header.get("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": size,
        "rms_norm_eps": header.get("attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(header),
        **more,
    }
    if model_type == "llama":
        values["attention_bias"] = "blk.0.attn_q.bias" in header.places
    return model_type, {name: value for name, value in values.items() if value is not None}


def _experts(header: Header, model_type: str) -> tuple[str, dict[str, Any]]:
    """Return a mixture's config values. Qwen 3 makes the chosen experts' weights add up to 1."""
    count, used = header.get("expert_count"), header.get("expert_used_count")
    if not isinstance(count, int) or not isinstance(used, int) or not 1 <= used <= count:
        raise wrong(header.path, f"it uses {used!r:.40} of {count!r:.40} experts per token")
    more = {
        "num_experts": count,
        "num_experts_per_tok": used,
        "moe_intermediate_size": header.get("expert_feed_forward_length"),
        "shared_expert_intermediate_size": header.get("expert_shared_feed_forward_length"),
        "norm_topk_prob": model_type == "qwen3_moe",
    }
    return _llama(header, model_type, **more)


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
    _set_rotated(header, values)
    return "phi3", values


def _set_rotated(header: Header, values: dict[str, Any]) -> None:
    """Set the part of a head that is rotated; its size is the hidden size per head."""
    del values["head_dim"]
    whole = values["hidden_size"] // values["num_attention_heads"]
    size = header.get("rope.dimension_count", whole)
    if not isinstance(size, int) or not 1 < size <= whole or size % 2:
        raise wrong(header.path, f"it rotates {size!r:.40} of {whole} numbers per head")
    values["rope_parameters"]["partial_rotary_factor"] = size / whole


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


def _stablelm(header: Header) -> tuple[str, dict[str, Any]]:
    """Return StableLM's config values. Without a norm before it, the FFN is beside attention."""
    _, values = _llama(header, "stablelm")
    _set_rotated(header, values)
    first = "blk.0."
    return "stablelm", values | {
        "layer_norm_eps": header.get("attention.layer_norm_epsilon", 1e-5),
        "use_qkv_bias": f"{first}attn_q.bias" in header.places,
        "qk_layernorm": f"{first}attn_q_norm.weight" in header.places,
        "use_parallel_residual": f"{first}ffn_norm.weight" not in header.places,
    }


def _falcon(header: Header) -> tuple[str, dict[str, Any]]:
    """Return Falcon's config values: one key head in the 7B, else groups, with one norm or two."""
    _, values = _llama(header)
    kv_heads = values["num_key_value_heads"]
    two = "blk.0.attn_norm_2.weight" in header.places
    shared = (
        "max_position_embeddings", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "rope_parameters",
    )  # fmt: skip
    return "falcon", {name: values[name] for name in shared if name in values} | {
        "num_kv_heads": kv_heads,
        "new_decoder_architecture": two or kv_heads != 1,
        "num_ln_in_parallel_attn": 1 + two,
        "bias": "blk.0.attn_qkv.bias" in header.places,
        "ffn_hidden_size": values.get("intermediate_size"),
        "layer_norm_epsilon": header.get("attention.layer_norm_epsilon", 1e-5),
    }


def _bloom(header: Header) -> tuple[str, dict[str, Any]]:
    """Return Bloom's config values; every head has its own keys."""
    _, values = _llama(header, "bloom")
    heads, kv_heads = values["num_attention_heads"], values["num_key_value_heads"]
    if kv_heads != heads:
        raise wrong(header.path, f"it has {kv_heads} key heads for {heads} heads")
    return "bloom", {
        "hidden_size": values["hidden_size"],
        "n_layer": values["num_hidden_layers"],
        "n_head": heads,
        "layer_norm_epsilon": header.get("attention.layer_norm_epsilon", 1e-5),
    }


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
    "qwen2moe": lambda header: _experts(header, "qwen2_moe"),
    "qwen3moe": lambda header: _experts(header, "qwen3_moe"),
    "stablelm": _stablelm,
    "falcon": _falcon,
    "bloom": _bloom,
}
MIXTURES = ("qwen2moe", "qwen3moe")

"""Decoder families: where each has its layers, and the kind of its memory.

A new family is a row of FAMILIES, which names modules of transformers' model. All code about
families reads these rows. There is no torch here, because a row is read before any weight.

The FFN's input is usually the residual stream after the FFN's own norm. With parallel attention and
FFN, it is the layer's input after that norm (gpt_neox, some falcon) or after one shared norm (phi,
gptj, other falcon). olmo2 normalises the FFN's output, so its FFN reads the residual stream itself.
In a mixture of experts, it is the input of router and experts.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpmem.errors import MlpMemError
from mlpmem.formats import read_json

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Family:
    """Where a decoder's FFNs are, the kind of its memory, and its special cases."""

    layers: str  # dotted path from the causal LM to its list of layers
    memory: str  # "gpt2" (LayerNorm, GELU) or "llama" (RMSNorm, SwiGLU)
    ffn: str = "mlp"  # in a layer, the module whose input is the hidden state
    norm: str = "post_attention_layernorm"  # in a layer, the norm before it; "" if it varies
    norm_offset: float = 0.0  # added to a norm's stored weight before it multiplies
    table: str = "embed_tokens"  # last name of the input embeddings
    head: str = "lm_head"  # last name of the output head, stored unless tied to the table
    transposed: bool = False  # whether linear weights are stored (in, out)
    short_pass: str = ""  # name of its hand-written pass in decoder.PASSES
    alibi: bool = False  # whether attention uses row positions; a config's `alibi` overrides
    divisor: str = ""  # config field that divides the logits
    softcap: str = ""  # config field with the bound of the logits (tanh), or None
    text_part: str = ""  # of a multimodal config, the field with the decoder's config
    published_lmbda: float = 0.0  # of memories published in this family's layout, else 0


GPT2_H = Family("transformer.h", "gpt2", table="word_embeddings")
LLAMA = Family("model.layers", "llama")
FAST_LLAMA = replace(LLAMA, short_pass="llama")
PUBLISHED = replace(FAST_LLAMA, published_lmbda=0.5)
GEMMA = replace(FAST_LLAMA, norm_offset=1.0)
GEMMA2 = replace(GEMMA, norm="pre_feedforward_layernorm", softcap="final_logit_softcapping")
FAMILIES = {
    "gpt2": Family(
        "transformer.h", "gpt2", norm="ln_2", table="wte", transposed=True, short_pass="gpt2",
        published_lmbda=0.25,
    ),
    "gptj": replace(GPT2_H, norm="ln_1", table="wte"),
    "bloom": replace(GPT2_H, alibi=True),
    "falcon": replace(GPT2_H, norm=""),
    "gpt_neox": Family("gpt_neox.layers", "gpt2", table="embed_in", head="embed_out"),
    "opt": Family("model.decoder.layers", "gpt2", ffn="fc1", norm="final_layer_norm"),
    "phi": Family("model.layers", "gpt2", norm="input_layernorm"),
    "phi3": FAST_LLAMA,
    "llama": PUBLISHED,
    "mistral": PUBLISHED,
    "qwen2": PUBLISHED,
    "qwen3": PUBLISHED,
    "smollm3": LLAMA,
    "granite": replace(LLAMA, divisor="logits_scaling"),
    "stablelm": LLAMA,
    "olmo2": replace(LLAMA, norm=""),
    "mixtral": LLAMA,
    "qwen2_moe": LLAMA,
    "qwen3_moe": LLAMA,
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA2,
    "gemma3": replace(GEMMA2, text_part="text_config"),
}  # fmt: skip
HEADS = frozenset(row.head for row in FAMILIES.values())


def family_of(model_type: Any) -> Family:
    """Return the row of a transformers model_type; MlpMemError for one without a row."""
    if (name := str(model_type)[:80]) not in FAMILIES:
        raise MlpMemError(
            f"decoder family {name!r} is not known; known are {', '.join(FAMILIES)}. Use one of "
            "these. If its layers have an FFN after a norm, you can add a row in "
            f'mlpmem/model/families.py, such as "{name}": Family("model.layers", "llama", '
            'ffn="mlp"): the path to the list of layers, the kind of memory, and the module in a '
            "layer whose input is the normalised state"
        )
    return FAMILIES[name]


def family_in(folder: Path) -> Family | None:
    """Return the family that a folder's config.json names, None if that cannot be read.

    MlpMemError for a family without a row.
    """
    try:
        row = read_json(folder / "config.json")
    except (OSError, ValueError):  # reported when the decoder is loaded
        return None
    return family_of(row.get("model_type")) if isinstance(row, dict) else None


def layers_of(model: "nn.Module", family: Family) -> "nn.ModuleList":
    """Return the decoder's layers, first to last."""
    return model.get_submodule(family.layers)


def ffn_at(model: "nn.Module", family: Family, depth: int) -> "nn.Module":
    """Return the FFN whose input is captured at depth (0 is the first layer, -1 the last)."""
    layers = layers_of(model, family)
    if not -len(layers) <= depth < len(layers):
        raise MlpMemError(
            f"depth {depth} is outside this decoder's {len(layers)} layers; "
            f"use {-len(layers)} to {len(layers) - 1}, where -1 is the last"
        )
    return layers[depth].get_submodule(family.ffn)


def uses_alibi(config: Any, family: Family) -> bool:
    """Return whether attention uses row positions (ALiBi), so that a row holds one text only."""
    return bool(getattr(config, "alibi", family.alibi))


def logit_divisor(config: Any, family: Family) -> float:
    """Return the divisor from the head's products to logits, usually 1."""
    return float(getattr(config, family.divisor)) if family.divisor else 1.0


def logit_bound(config: Any, family: Family) -> float | None:
    """Return the bound of the logits (tanh), None if there is none."""
    return getattr(config, family.softcap, None) if family.softcap else None

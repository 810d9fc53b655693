"""Decoder families: where each keeps its layers and what the memory made for it looks like.

A new family is a row of FAMILIES. The row names things of transformers' model; nothing is copied,
and whoever needs to know a family asks its row. No torch here: a row is read before any weight.

What enters the FFN is usually the residual stream behind the FFN's own norm. Where attention and
FFN stand side by side, it is the layer's input behind that norm (gpt_neox, some falcon), or behind
one norm that both share (phi, gptj, other falcon). olmo2 norms what leaves its FFN, so its FFN
reads the residual stream itself. In a mixture of experts it is what router and experts read.
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
    """Where a decoder's FFNs are, which blocks its memory is built of, and what is special."""

    layers: str  # dotted path from the causal LM to its list of layers
    memory: str  # "gpt2" (LayerNorm, GELU) or "llama" (RMSNorm, SwiGLU)
    ffn: str = "mlp"  # in a layer, the module whose input is the hidden state
    norm: str = "post_attention_layernorm"  # in a layer, what gives that input; "" if no one norm
    norm_offset: float = 0.0  # added to a norm's stored weight before it multiplies
    table: str = "embed_tokens"  # last name of the input embeddings
    head: str = "lm_head"  # last name of the output head, stored unless tied to the table
    transposed: bool = False  # whether linear weights are stored (in, out)
    short_pass: str = ""  # the hand-written pass for it, of decoder.PASSES
    alibi: bool = False  # whether attention counts places in the row; a config's `alibi` overrides
    divisor: str = ""  # config field by which logits are divided
    softcap: str = ""  # config field of the bound that logits are bent to, unless it is None
    text_part: str = ""  # of a multimodal config, the field that holds the decoder's own
    published_lmbda: float = 0.0  # of memories published in this family's layout, 0 if none are


GPT2_H = Family("transformer.h", "gpt2", table="word_embeddings")
LLAMA = Family("model.layers", "llama")
WRITTEN = replace(LLAMA, short_pass="llama")
PUBLISHED = replace(WRITTEN, published_lmbda=0.5)
GEMMA = replace(WRITTEN, norm_offset=1.0)
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
    "phi3": WRITTEN,
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
            "these, or, if its layers hold an FFN behind a norm, add a row in "
            f'mlpmem/model/families.py, such as "{name}": Family("model.layers", "llama", '
            'ffn="mlp"): where the list of layers is, which memory, and the module in a layer '
            "whose input is the normed state"
        )
    return FAMILIES[name]


def family_in(folder: Path) -> Family | None:
    """Return the row of the family that a folder's config.json names, None if it cannot be read.

    MlpMemError for a family without a row.
    """
    try:
        row = read_json(folder / "config.json")
    except (OSError, ValueError):  # whoever reads it says what is wrong
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


def counts_places(config: Any, family: Family) -> bool:
    """Return whether a decoder attends by places in a row (ALiBi), so that rows hold one text."""
    return bool(getattr(config, "alibi", family.alibi))


def logit_divisor(config: Any, family: Family) -> float:
    """Return what the head's products are divided by to give logits, usually 1."""
    return float(getattr(config, family.divisor)) if family.divisor else 1.0


def logit_bound(config: Any, family: Family) -> float | None:
    """Return the bound that logits are bent to, None if they are not."""
    return getattr(config, family.softcap, None) if family.softcap else None

"""Decoder families: where each keeps its layers and what the memory made for it looks like.

A new family is a row of FAMILIES. The row names things of transformers' model; nothing is copied.
Where attention and FFN stand side by side (gpt_neox, phi), what enters the FFN is the layer's input
behind the FFN's own norm (gpt_neox) or behind the one norm that both share (phi).
"""

from dataclasses import dataclass

from torch import nn

from mlpmem.errors import MlpMemError


@dataclass(frozen=True)
class Family:
    """Where a decoder's FFNs are and which blocks its memory is built of."""

    layers: str  # dotted path from the causal LM to its list of layers
    memory: str  # "gpt2" (LayerNorm, GELU) or "llama" (RMSNorm, SwiGLU)
    ffn: str = "mlp"  # in a layer, the module whose input is the post-norm hidden state


FAMILIES = {
    "gpt2": Family("transformer.h", "gpt2"),
    "gpt_neox": Family("gpt_neox.layers", "gpt2"),
    "opt": Family("model.decoder.layers", "gpt2", ffn="fc1"),
    "phi": Family("model.layers", "gpt2"),
    "phi3": Family("model.layers", "llama"),
    "llama": Family("model.layers", "llama"),
    "mistral": Family("model.layers", "llama"),
    "qwen2": Family("model.layers", "llama"),
    "qwen3": Family("model.layers", "llama"),
    "gemma": Family("model.layers", "llama"),
    "gemma2": Family("model.layers", "llama"),
    "gemma3_text": Family("model.layers", "llama"),
}


def family_of(model_type: str) -> Family:
    """Return the row of a transformers model_type; MlpMemError for one without a row."""
    if model_type not in FAMILIES:
        raise MlpMemError(
            f"decoder family {model_type!r} is not known; known are {', '.join(FAMILIES)}. "
            "If its layers hold an FFN behind a norm, add a row in mlpmem/model/families.py, "
            f'such as "{model_type}": Family("model.layers", "llama", ffn="mlp"): where the list '
            "of layers is, which memory, and the module in a layer whose input is the normed state"
        )
    return FAMILIES[model_type]


def layers_of(model: nn.Module, family: Family) -> nn.ModuleList:
    """Return the decoder's layers, first to last."""
    return model.get_submodule(family.layers)


def ffn_at(model: nn.Module, family: Family, depth: int) -> nn.Module:
    """Return the FFN whose input is captured at depth (0 is the first layer, -1 the last)."""
    layers = layers_of(model, family)
    if not -len(layers) <= depth < len(layers):
        raise MlpMemError(
            f"depth {depth} is outside this decoder's {len(layers)} layers; "
            f"use {-len(layers)} to {len(layers) - 1}, where -1 is the last"
        )
    return layers[depth].get_submodule(family.ffn)

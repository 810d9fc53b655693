"""Memories as the authors publish them, at tiny size, and what they must answer, in plain torch."""

import json
import math

import torch
from safetensors.torch import save_file

D, V, BLOCKS = 32, 263, 3  # of tiny.py: the decoder these belong to is one of its own


def norm_weights(name: str, bias: bool) -> dict[str, torch.Tensor]:
    found = {f"{name}.weight": 1 + torch.randn(D) * 0.1}
    return found | ({f"{name}.bias": torch.randn(D) * 0.1} if bias else {})


def gpt2_weights(inner: int = 4 * D) -> dict[str, torch.Tensor]:
    """Return weights under the names of the released GPT-2 memories."""
    weights = norm_weights("ln_f", True) | {"lm_head.weight": torch.randn(V, D)}
    for i in range(BLOCKS):
        weights |= norm_weights(f"h.{i}.ln_1", True)
        for name, shape in (("c_fc", (D, inner)), ("c_proj", (inner, D))):
            weights[f"h.{i}.mlp.{name}.weight"] = torch.randn(shape) * 0.3
            weights[f"h.{i}.mlp.{name}.bias"] = torch.randn(shape[1]) * 0.3
    return weights


def mistral_weights(inner: int = 20) -> dict[str, torch.Tensor]:
    """Return weights under the names of the released Mistral memory."""
    weights = norm_weights("norm", False) | {"lm_head.weight": torch.randn(V, D)}
    for i in range(BLOCKS):
        weights |= norm_weights(f"layers.{i}.input_layernorm", False)
        for name, shape in (("gate", (inner, D)), ("up", (inner, D)), ("down", (D, inner))):
            weights[f"layers.{i}.mlp.{name}_proj.weight"] = torch.randn(shape) * 0.3
    return weights


def plain_gpt2(weights: dict, x: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """Return the logits of the published GPT-2 architecture, in float64."""
    w = {name: weight.double() for name, weight in weights.items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    for i in range(BLOCKS):
        inner = norm(x, f"h.{i}.ln_1") @ w[f"h.{i}.mlp.c_fc.weight"] + w[f"h.{i}.mlp.c_fc.bias"]
        cubed = math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)
        inner = 0.5 * inner * (1 + torch.tanh(cubed))
        x = x + inner @ w[f"h.{i}.mlp.c_proj.weight"] + w[f"h.{i}.mlp.c_proj.bias"]
    return norm(x, "ln_f") @ w["lm_head.weight"].T


def plain_mistral(weights: dict, x: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """Return the logits of the published Mistral architecture, in float64."""
    w = {name: weight.double() for name, weight in weights.items()}

    def norm(x, name):
        return x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps) * w[f"{name}.weight"]

    for i in range(BLOCKS):
        inner = norm(x, f"layers.{i}.input_layernorm")
        gate = inner @ w[f"layers.{i}.mlp.gate_proj.weight"].T
        inner = gate / (1 + torch.exp(-gate)) * (inner @ w[f"layers.{i}.mlp.up_proj.weight"].T)
        x = x + inner @ w[f"layers.{i}.mlp.down_proj.weight"].T
    return norm(x, "norm") @ w["lm_head.weight"].T


GPT2_CONFIG = {"model_type": "gpt2", "n_layer": BLOCKS, "n_embd": D, "vocab_size": V, "n_head": 2}
MISTRAL_CONFIG = {
    "model_type": "mistral",
    "num_hidden_layers": BLOCKS,
    "hidden_size": D,
    "intermediate_size": 20,
    "vocab_size": V,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
}
RELEASED = {
    "gpt2": (GPT2_CONFIG, gpt2_weights, plain_gpt2),
    "mistral": (MISTRAL_CONFIG, mistral_weights, plain_mistral),
    "llama": (MISTRAL_CONFIG | {"model_type": "llama"}, mistral_weights, plain_mistral),
}


KINDS = ("safetensors", "safetensors, sharded", "bin", "bin, sharded")


def write_weights(folder, weights: dict, kind: str) -> None:
    """Write weights as the released repositories do: whole, sharded, or a .bin."""
    save, whole = {
        "safetensors": (save_file, "model.safetensors"),
        "bin": (torch.save, "pytorch_model.bin"),
    }[kind.removesuffix(", sharded")]
    if "sharded" not in kind:
        save(weights, folder / whole)
        return
    names, (stem, suffix) = sorted(weights), whole.split(".")
    files = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    table = {name: files[i % 2] for i, name in enumerate(names)}
    for file in files:
        save({name: weights[name] for name in names if table[name] == file}, folder / file)
    (folder / f"{whole}.index.json").write_text(json.dumps({"weight_map": table}))


def write_memory(folder, family: str, kind: str = "safetensors", **config) -> dict:
    """Write a published memory's folder, flat; return its weights."""
    base, make, _ = RELEASED[family]
    folder.mkdir(parents=True, exist_ok=True)
    weights = make()
    (folder / "config.json").write_text(json.dumps(base | config))
    write_weights(folder, weights, kind)
    return weights

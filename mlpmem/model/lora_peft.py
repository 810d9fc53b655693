"""LoRA with extensions, merged by peft: DoRA, biases, saved modules, embeddings, experts.

peft is imported only here, and only if an adapter needs it. It gets a new configuration with only
the fields below, and none that names a model, a file or a class.
"""

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mlpmem.errors import MlpMemError

# field -> its type; peft merges each of them
FIELDS: dict[str, type | tuple[type, ...]] = {
    "use_dora": bool,
    "bias": str,
    "lora_bias": bool,
    "modules_to_save": list,
    "trainable_token_indices": (list, dict),
    "target_parameters": list,
}
PREFIX = "base_model.model."
FACTOR = re.compile(r"\.(lora_[A-Za-z_]+)(\.default)?(\.weight|\.bias)?$")
NAME = re.compile(r"[\w.]{1,256}")  # of a module, because peft uses it as a regular expression
PEFT_MISSING = 'the package peft is not installed; pip install peft, or pip install -e ".[train]"'


@dataclass(frozen=True)
class Scaling:
    """Ranks and scales of an adapter's configuration; a layer is found by its path."""

    rank: int
    alpha: float
    ranks: Mapping[str, int]  # by peft's pattern, a regular expression for the end of a path
    alphas: Mapping[str, float]
    rooted: bool  # whether alpha is divided by the square root of the rank

    def of(self, path: str) -> tuple[int, float]:
        """Return a layer's rank and the scale of its B @ A."""
        rank, alpha = _first(self.ranks, path, self.rank), _first(self.alphas, path, self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.rooted else rank)


def _first(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    """Return the value of the first pattern that matches a path's end, as in peft."""
    matches = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path))
    return next(matches, default)


def is_set(name: str, row: Mapping[str, Any]) -> bool:
    """Return whether a field of FIELDS differs from peft's default."""
    return row.get(name) not in (None, False, "none", [], {})


def can_restart(start: Any) -> bool:
    """Return whether peft can compute an adapter's initial factors from the decoder's weights."""
    return isinstance(start, str) and bool(re.fullmatch(r"olora|pissa(_niter_\d{1,2})?", start))


def merged(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    scaling: "Scaling",
    extras: Mapping[str, Any],
    name: str,
) -> nn.Module:
    """Return a model with an adapter merged by peft. model must be a copy; its tensors stay as is.

    extras are fields of FIELDS and init_lora_weights; name is the folder's, for messages.
    MlpMemError if peft is missing or cannot merge the adapter.
    """
    try:
        import peft
    except ImportError as error:
        raise MlpMemError(
            f"adapter: {name} uses {', '.join(extras)}, which peft merges; {PEFT_MISSING}"
        ) from error
    _check(extras, name)
    _copy_parameters(model, tensors, everything=can_restart(extras.get("init_lora_weights")))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about training and tied weights, which do not apply
            config = _config(peft, model, tensors, scaling, extras)
            wrapped = peft.PeftModel(model, config, autocast_adapter_dtype=False).eval()
            _fill(peft, wrapped, tensors)
            result = wrapped.merge_and_unload(safe_merge=True)
    except MlpMemError:
        raise
    except Exception as error:  # peft and torch raise errors of many kinds
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise MlpMemError(
            f"adapter: {name} cannot be used: peft does not merge it into this decoder ({first}). "
            "Use it with the decoder it was trained on"
        ) from error
    if not all(weight.isfinite().all() for weight in result.parameters()):
        raise MlpMemError(
            f"adapter: {name} cannot be used: a merged weight would have infinity or NaN; train it "
            "again"
        )
    return result.eval().requires_grad_(False)


def _check(extras: Mapping[str, Any], name: str) -> None:
    """Raise MlpMemError for a field of the wrong type, or invalid module names."""
    for field, value in extras.items():
        wrong_type = field in FIELDS and not isinstance(value, FIELDS[field])
        entries = value if isinstance(value, list | dict) else ()
        names = [entry for entry in entries if not isinstance(entry, int)]
        if wrong_type or not all(isinstance(n, str) and NAME.fullmatch(n) for n in names):
            raise MlpMemError(
                f"adapter: {name} cannot be used: its {field} is {str(value)[:80]!r}, which peft "
                "does not write; download the adapter or train it again"
            )


def _copy_parameters(model: nn.Module, tensors: Mapping[str, Tensor], everything: bool) -> None:
    """Give every module its own parameters, so that a merge changes no other model.

    They share memory with the originals, except where peft writes in place: biases, weights stored
    complete in the adapter, and with `everything` (initial factors from the weights) all of them.
    """
    replaced = {name.removeprefix(PREFIX) for name in tensors}
    for path, module in model.named_modules():
        for key, weight in list(module.named_parameters(recurse=False)):
            data = weight.data
            if f"{path}.{key}" in replaced or data.dim() < 2 or everything:
                data = data.clone()
            setattr(module, key, nn.Parameter(data, requires_grad=False))


def _config(
    peft: Any,
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    scaling: "Scaling",
    extras: Mapping[str, Any],
) -> Any:
    """Return peft's configuration; the tensors' names determine the layers."""
    from transformers.pytorch_utils import Conv1D

    paths = {FACTOR.sub("", n).removeprefix(PREFIX) for n in tensors if FACTOR.search(n)}
    kinds, modules = nn.Linear | Conv1D | nn.Embedding, dict(model.named_modules())
    layers = sorted(path for path in paths if isinstance(modules.get(path), kinds))
    return peft.LoraConfig(
        r=scaling.rank,
        lora_alpha=scaling.alpha,
        rank_pattern=dict(scaling.ranks),
        alpha_pattern=dict(scaling.alphas),
        use_rslora=scaling.rooted,
        target_modules=layers or None,
        **{"init_lora_weights": True, **extras},
    )


def _fill(peft: Any, wrapped: Any, tensors: Mapping[str, Tensor]) -> None:
    """Load an adapter's tensors into peft's wrapper; ValueError if one does not fit."""
    result = peft.set_peft_model_state_dict(wrapped, dict(tensors))
    added = ("lora_", "modules_to_save", "trainable_tokens")
    missing = [name for name in result.missing_keys if any(part in name for part in added)]
    if wrong := [*result.unexpected_keys, *missing]:
        raise ValueError(f"{wrong[0][:100]} is unknown or missing")
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if any(part in name for part in added) and not weight.isfinite().all():
                raise ValueError(f"{name[:100]} contains infinity or NaN")

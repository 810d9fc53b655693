"""LoRA beyond the plain kind, merged by peft: DoRA, biases, saved modules, embeddings, experts.

peft is imported here and only where an adapter needs it. It sees a configuration made anew of the
fields below; everything that names a model, a file or a class stays outside.
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

# field -> what it must be; peft merges each of them
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
NAME = re.compile(r"[\w.]{1,256}")  # of a module: peft would take it for a regular expression
PEFT_MISSING = 'the package peft is not installed; pip install peft, or pip install -e ".[train]"'


@dataclass(frozen=True)
class Scaling:
    """What an adapter's configuration says of ranks and scales, each layer by its path."""

    rank: int
    alpha: float
    ranks: Mapping[str, int]  # by a pattern of peft: a regular expression of a path's end
    alphas: Mapping[str, float]
    rooted: bool  # whether alpha is divided by the rank's root

    def of(self, path: str) -> tuple[int, float]:
        """Return a layer's rank and what its B @ A is multiplied with."""
        rank, alpha = _first(self.ranks, path, self.rank), _first(self.alphas, path, self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.rooted else rank)


def _first(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    """Return the value of the first pattern that a path ends with, as peft finds it."""
    ends = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path))
    return next(ends, default)


def is_set(name: str, row: Mapping[str, Any]) -> bool:
    """Return whether a configuration has one of FIELDS at another value than peft's default."""
    return row.get(name) not in (None, False, "none", [], {})


def begins(start: Any) -> bool:
    """Return whether peft finds what an adapter began from in the decoder's weights alone."""
    return isinstance(start, str) and bool(re.fullmatch(r"olora|pissa(_niter_\d{1,2})?", start))


def merged(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    scaling: "Scaling",
    extras: Mapping[str, Any],
    name: str,
) -> nn.Module:
    """Return a model with an adapter merged by peft; it must be a copy, whose tensors stay.

    extras are the fields of FIELDS, and how the factors begin; name is the folder's, for messages.
    MlpMemError where peft is missing or cannot use the adapter.
    """
    try:
        import peft
    except ImportError as error:
        raise MlpMemError(
            f"adapter: {name} uses {', '.join(extras)}, which peft merges; {PEFT_MISSING}"
        ) from error
    _check(extras, name)
    _own(model, tensors, everything=begins(extras.get("init_lora_weights")))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of training, and of tied weights: each is own here
            config = _config(peft, model, tensors, scaling, extras)
            wrapped = peft.PeftModel(model, config, autocast_adapter_dtype=False).eval()
            _fill(peft, wrapped, tensors)
            made = wrapped.merge_and_unload(safe_merge=True)
    except MlpMemError:
        raise
    except Exception as error:  # peft and torch raise errors of many kinds
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise MlpMemError(
            f"adapter: {name} cannot be used: peft does not merge it into this decoder ({first}). "
            "Use it with the decoder it was trained on"
        ) from error
    if not all(weight.isfinite().all() for weight in made.parameters()):
        raise MlpMemError(
            f"adapter: {name} cannot be used: a weight would hold what is no number; make it again"
        )
    return made.eval().requires_grad_(False)


def _check(extras: Mapping[str, Any], name: str) -> None:
    """Raise MlpMemError for a field of another type, or names that are no module's."""
    for field, value in extras.items():
        wrong = field in FIELDS and not isinstance(value, FIELDS[field])
        names = value if isinstance(value, list | dict) else ()
        texts = [n for n in names if not isinstance(n, int)]
        if wrong or not all(isinstance(n, str) and NAME.fullmatch(n) for n in texts):
            raise MlpMemError(
                f"adapter: {name} cannot be used: its {field} is {str(value)[:80]!r}, which peft "
                "does not write; download it or make it again"
            )


def _own(model: nn.Module, tensors: Mapping[str, Tensor], everything: bool) -> None:
    """Give every module parameters of its own, so that a merge changes no other model.

    They share memory with the given ones but where peft writes in place: biases, weights that an
    adapter's file holds whole, and everything where peft finds what the adapter began from.
    """
    whole = {name.removeprefix(PREFIX) for name in tensors}
    for path, module in model.named_modules():
        for key, weight in list(module.named_parameters(recurse=False)):
            data = weight.data
            if f"{path}.{key}" in whole or data.dim() < 2 or everything:
                data = data.clone()
            setattr(module, key, nn.Parameter(data, requires_grad=False))


def _config(
    peft: Any,
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    scaling: "Scaling",
    extras: Mapping[str, Any],
) -> Any:
    """Return peft's configuration: which layers follows from the tensors' names alone."""
    from transformers.pytorch_utils import Conv1D

    paths = {FACTOR.sub("", n).removeprefix(PREFIX) for n in tensors if FACTOR.search(n)}
    kinds, named = nn.Linear | Conv1D | nn.Embedding, dict(model.named_modules())
    layers = sorted(path for path in paths if isinstance(named.get(path), kinds))
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
    """Put an adapter's tensors into peft's wrapper; MlpMemError unless each has its place."""
    result = peft.set_peft_model_state_dict(wrapped, dict(tensors))
    added = ("lora_", "modules_to_save", "trainable_tokens")
    missing = [name for name in result.missing_keys if any(part in name for part in added)]
    if wrong := [*result.unexpected_keys, *missing]:
        raise ValueError(f"{wrong[0][:100]} has no place or is missing")
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if any(part in name for part in added) and not weight.isfinite().all():
                raise ValueError(f"{name[:100]} holds what is no number")

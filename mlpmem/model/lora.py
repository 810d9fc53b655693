"""LoRA adapters of a decoder, in peft's folder layout: added, saved, and merged when loaded.

A decoder with a merged adapter is an ordinary decoder and costs no more to serve. Packed weights
cannot change: beside them, the adapter's low-rank products are computed in float32. Plain LoRA is
merged here without peft, with each layer's own rank and alpha; `lora_peft.py` merges extensions
with peft. Only two local files of a folder are read: a configuration, and tensors with matching
shapes. Names of models, classes or paths in them are ignored.
"""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlpmem.errors import MlpMemError
from mlpmem.fast.packed import AdaptedLinear, PackedLinear
from mlpmem.formats import is_number, read_json
from mlpmem.model import lora_peft
from mlpmem.model.checkpoints import read_bin
from mlpmem.model.decoder import Decoder
from mlpmem.model.families import family_of
from mlpmem.model.lora_peft import Scaling

CONFIG, WEIGHTS, BIN = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
CONFIG_BYTES = 256 * 2**10
MOST_RANK = 4096
MOST_PATTERNS, MOST_REPEATS = 4096, 2  # patterns of an adapter; repetitions within a pattern
# Fields without effect on a merge, because the tensors' names and shapes determine it.
IGNORED = {
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform",
    "lora_dropout", "megatron_core", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "target_modules", "task_type",
}  # fmt: skip
READ = {
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern",
    "init_lora_weights",
}  # fmt: skip
# initialisations that leave the decoder's weights unchanged
STARTS = (True, False, "gaussian", "orthogonal", "eva")
PREFIX, FACTORS = "base_model.model.", ("lora_A", "lora_B")


def add_adapter(model: nn.Module, rank: int) -> Any:
    """Add adapters to a model's linear layers in place; return peft's wrapper.

    Only the adapters get gradients. Their second factor starts at zero, so outputs do not change.
    """
    peft = _peft()
    transposed = family_of(model.config.model_type).transposed
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", fan_in_fan_out=transposed
    )
    return peft.get_peft_model(model, config, autocast_adapter_dtype=False)


def save_adapter(wrapped: Any, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors with the adapter in float16."""
    from safetensors.torch import save_file

    tensors = _peft().get_peft_model_state_dict(wrapped)
    config = wrapped.peft_config["default"]
    config.base_model_name_or_path = ""  # no path of this machine
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    stored = {name: w.detach().to("cpu", torch.float16).contiguous() for name, w in tensors.items()}
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})


def load_adapter(decoder: Decoder, folder: str | Path) -> Decoder:
    """Return a decoder with an adapter; `decoder` stays unchanged.

    The adapter is merged into plain weights and stands beside packed ones. Unchanged weights are
    shared. MlpMemError if the folder holds anything but LoRA, or LoRA of another decoder, or needs
    peft and peft is not installed.
    """
    folder = Path(folder)
    row, tensors = _read_config(folder), _read_tensors(folder)
    scaling, extras = _scaling(folder, row), _extras(folder, row, tensors)
    packed = [layer for layer in decoder.model.modules() if isinstance(layer, PackedLinear)]
    if packed and extras:
        raise _packed(folder)
    result = copy.copy(decoder)
    result.fast_pass = None  # it refers to the other model
    shared = [*decoder.model.parameters(), *decoder.model.buffers(), *packed]
    result.model = copy.deepcopy(decoder.model, {id(tensor): tensor for tensor in shared})
    if extras:
        result.model = lora_peft.merged(result.model, tensors, scaling, extras, folder.name)
        return result
    for path, pair in _pairs(folder, tensors):
        _put(result.model, decoder, path, pair, scaling.of(path), folder)
    result.use_fast_pass()
    return result


def _read_config(folder: Path) -> dict:
    """Return adapter_config.json; MlpMemError unless it exists and is of LoRA."""
    path = folder / CONFIG
    if not path.is_file() or not any((folder / name).is_file() for name in (WEIGHTS, BIN)):
        raise MlpMemError(
            f"adapter: {folder} lacks {CONFIG} or {WEIGHTS}; give a folder that peft saved, or "
            "train one with `python -m train finetuned RECIPE`"
        )
    try:
        row = read_json(path, CONFIG_BYTES)
    except (OSError, ValueError) as error:
        raise _refused(folder, f"its {CONFIG} cannot be read ({str(error)[:100]})") from error
    if not isinstance(row, dict) or row.get("peft_type") != "LORA":
        raise _refused(folder, "its peft_type must be LORA")
    return row


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return an adapter's tensors by name, from safetensors or else a .bin file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    name = WEIGHTS if (folder / WEIGHTS).is_file() else BIN
    try:
        return load_file(folder / name) if name == WEIGHTS else read_bin(folder / name)
    except (OSError, ValueError, SafetensorError) as error:
        raise _refused(folder, f"its {name} cannot be read ({str(error)[:100]})") from error


def _scaling(folder: Path, row: Mapping) -> Scaling:
    """Return ranks and scales of a configuration; MlpMemError for invalid ones."""
    rank, alpha = row.get("r", 8), row.get("lora_alpha", 8)
    ranks, alphas = row.get("rank_pattern") or {}, row.get("alpha_pattern") or {}
    for name, patterns in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
        if not isinstance(patterns, dict) or not all(map(_is_quick, patterns)):
            raise _refused(folder, f"its {name} must be an object of simple module names")
        if len(patterns) > MOST_PATTERNS:
            raise _refused(folder, f"its {name} must have at most {MOST_PATTERNS} entries")
    for value in (rank, *ranks.values()):
        if type(value) is not int or not 0 < value <= MOST_RANK:
            raise _refused(
                folder, f"a rank must be an integer from 1 to {MOST_RANK}; got {str(value)[:40]!r}"
            )
    if not all(map(is_number, (alpha, *alphas.values()))):
        raise _refused(folder, "lora_alpha must be a number")
    return Scaling(rank, alpha, ranks, alphas, row.get("use_rslora") is True)


def _is_quick(pattern: str) -> bool:
    """Return whether a regular expression is valid and fast on a module's path."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    repeats = len(re.findall(r"[*+{]", pattern))
    return len(pattern) <= 256 and repeats <= MOST_REPEATS and not re.search(r"\)[*+{]", pattern)


def _extras(folder: Path, row: Mapping, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the fields that need peft; none for plain LoRA of linear layers.

    MlpMemError for an unknown field, or one that peft cannot merge.
    """
    extras = {name: row[name] for name in lora_peft.FIELDS if lora_peft.is_set(name, row)}
    unknown = sorted(
        n for n, v in row.items() if v and n not in IGNORED | READ | {*lora_peft.FIELDS}
    )
    if unknown:
        raise _refused(folder, f"it uses {', '.join(unknown)[:100]}, which is not supported")
    start = row.get("init_lora_weights", True)
    if not isinstance(start, str | bool) or start not in STARTS:
        if not lora_peft.can_restart(start):
            raise _refused(
                folder,
                "it changes the decoder's initial weights; convert it with peft (save_pretrained, "
                "with path_initial_model_for_weight_conversion)",
            )
        extras["init_lora_weights"] = start
    if not extras and not all(map(_is_factor, tensors)):
        extras["init_lora_weights"] = True  # for an embedding, or complete weights
    return extras


def _is_factor(name: str) -> bool:
    """Return whether a tensor is one of the two factors of a linear layer."""
    return name.removesuffix(".weight").rpartition(".")[2] in FACTORS


def _packed(folder: Path) -> MlpMemError:
    """Return the error for an adapter that changes more than linear layers' low-rank parts."""
    return MlpMemError(
        f"adapter: {folder.name} uses an extension of LoRA, which cannot stand beside packed "
        "weights; load the decoder without dtype (python app.py: without --dtype)"
    )


def _pairs(folder: Path, tensors: Mapping[str, Tensor]) -> list[tuple[str, tuple[Tensor, Tensor]]]:
    """Return (module, (A (r, in), B (out, r))) of every adapted layer."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        path, _, factor = name.removesuffix(".weight").rpartition(".")
        if not path.startswith(PREFIX) or factor not in FACTORS:
            raise _refused(folder, f"it has {name[:100]!r}, which is not a LoRA factor")
        layers.setdefault(path.removeprefix(PREFIX), {})[factor] = tensor
    if not layers or any(len(factors) != 2 for factors in layers.values()):
        raise _refused(folder, "a layer lacks one of its two factors")
    return [(path, (f["lora_A"], f["lora_B"])) for path, f in layers.items()]


@torch.no_grad()
def _put(
    model: nn.Module,
    decoder: Decoder,
    path: str,
    pair: tuple[Tensor, Tensor],
    scaling: tuple[int, float],
    folder: Path,
) -> None:
    """Add scale * B @ A to a layer of model, whose base is decoder's layer.

    scaling is (rank in the configuration, scale).
    """
    from transformers.pytorch_utils import Conv1D

    rank, scale = scaling
    layer = dict(decoder.model.named_modules()).get(path)
    if not isinstance(layer, nn.Linear | Conv1D | PackedLinear):
        raise _unfit(folder, f"it changes {path[:100]!r}, which is not one of its linear layers")
    is_packed, transposed = isinstance(layer, PackedLinear), isinstance(layer, Conv1D)
    device = decoder.device if is_packed else layer.weight.device
    down, up = (factor.to(device, torch.float32) for factor in pair)
    shape = layer.shape if is_packed else tuple(layer.weight.shape)
    shape = shape[::-1] if transposed else shape  # (out, in)
    is_pair = down.dim() == up.dim() == 2 and down.shape[0] == up.shape[1]
    if not is_pair or (up.shape[0], down.shape[1]) != shape:
        shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
        raise _unfit(folder, f"{path} has weight {shape}, its factors {shapes}")
    if down.shape[0] != rank:
        raise _refused(folder, f"{path} has factors of rank {down.shape[0]}, {CONFIG} says {rank}")
    added = scale * (up @ down)
    if not is_packed:
        added = (layer.weight.T if transposed else layer.weight).float() + added
    if not torch.isfinite(added).all():
        raise _refused(folder, f"{path} would have infinity or NaN")
    if is_packed:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, AdaptedLinear(layer, down, scale * up))
        return
    weight = (added.T if transposed else added).to(layer.weight.dtype).contiguous().clone()
    model.get_submodule(path).weight = nn.Parameter(weight, requires_grad=False)


def _refused(folder: Path, why: str) -> MlpMemError:
    return MlpMemError(
        f"adapter: {folder.name} cannot be used: {why}. It must be LoRA saved by peft; download or "
        "train it again"
    )


def _unfit(folder: Path, why: str) -> MlpMemError:
    """Return the error for an adapter of another decoder."""
    return MlpMemError(
        f"adapter: {folder.name} does not fit this decoder ({why}); use it with the decoder it "
        "was trained on"
    )


def _peft():
    """Return the package peft; MlpMemError if it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise MlpMemError(
            "training LoRA needs the package peft, which is not installed; "
            'pip install peft, or pip install -e ".[train]"'
        ) from error
    return peft

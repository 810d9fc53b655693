"""LoRA adapters of a decoder, in peft's own folder layout: put on, kept, and merged when read.

A merged adapter is a decoder like any other: it costs nothing more to serve, and whatever takes a
decoder takes it. peft is needed to make an adapter, never to read one: a folder from anywhere is
two local files, a configuration of plain LoRA and tensors whose shapes fit. Names in it of models,
classes or places are not followed.
"""

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlpmem.errors import MlpMemError
from mlpmem.fast.packed import PackedLinear
from mlpmem.formats import is_number, parse_json
from mlpmem.model.decoder import Decoder
from mlpmem.model.families import family_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CONFIG_BYTES = 256 * 2**10
MOST_RANK = 4096
# Fields that change nothing of what is merged: the tensors' own names and shapes say it.
FREE = {
    "base_model_name_or_path", "ensure_weight_tying", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core",
    "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules",
    "task_type",
}  # fmt: skip
READ = {"peft_type", "r", "lora_alpha", "use_rslora", "bias", "init_lora_weights"}
PREFIX, FACTORS = "base_model.model.", ("lora_A", "lora_B")


def add_adapter(model: nn.Module, rank: int) -> Any:
    """Return peft's wrapper of a model whose linear layers now have adapters, in place.

    Only these ask for gradients. Their second factor begins at zero, so nothing is changed yet.
    """
    peft = _peft()
    transposed = family_of(model.config.model_type).transposed
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", fan_in_fan_out=transposed
    )
    return peft.get_peft_model(model, config, autocast_adapter_dtype=False)


def save_adapter(wrapped: Any, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors, its weights alone, in float16."""
    from safetensors.torch import save_file

    tensors = _peft().get_peft_model_state_dict(wrapped)
    config = wrapped.peft_config["default"]
    config.base_model_name_or_path = ""  # no path of this machine
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    kept = {name: w.detach().to("cpu", torch.float16).contiguous() for name, w in tensors.items()}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})


def load_adapter(decoder: Decoder, folder: str | Path) -> Decoder:
    """Return `decoder` with an adapter merged into its weights; the given one stays as it is.

    Only the changed weights are new, all others are shared. MlpMemError for a folder that holds
    anything but plain LoRA, or one of another decoder.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise MlpMemError(
            f"adapter: {folder} lacks {CONFIG} or {WEIGHTS}; give a folder that peft saved, or "
            "make one with `python -m train finetuned RECIPE`"
        )
    scale = _scale(folder)
    merged = {path: _merged(decoder, path, pair, scale, folder) for path, pair in _pairs(folder)}
    kept = [*decoder.model.parameters(), *decoder.model.buffers()]
    made = copy.copy(decoder)
    made.model = copy.deepcopy(decoder.model, {id(tensor): tensor for tensor in kept})
    for path, weight in merged.items():
        made.model.get_submodule(path).weight = nn.Parameter(weight, requires_grad=False)
    return made


def _scale(folder: Path) -> float:
    """Return what B @ A is multiplied with; MlpMemError unless the configuration is plain LoRA."""
    path = folder / CONFIG
    try:
        if path.stat().st_size > CONFIG_BYTES:
            raise ValueError(f"it has over {CONFIG_BYTES} bytes")
        row = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _refused(folder, f"its {CONFIG} cannot be read ({str(error)[:100]})") from error
    if not isinstance(row, dict) or row.get("peft_type") != "LORA":
        raise _refused(folder, "it is not of peft_type LORA")
    rank, alpha = row.get("r"), row.get("lora_alpha", 8)
    if type(rank) is not int or not 0 < rank <= MOST_RANK:
        raise _refused(folder, f"its rank r is no whole number from 1 to {MOST_RANK}")
    if not is_number(alpha):
        raise _refused(folder, "its lora_alpha is no number")
    start = row.get("init_lora_weights", True)
    if row.get("bias", "none") != "none" or (start not in (True, False, "gaussian")):
        raise _refused(folder, "it changes biases, or the weights it begins from")
    odd = sorted(name for name, v in row.items() if v and name not in FREE | READ)
    if odd:
        raise _refused(folder, f"it uses {', '.join(odd)[:100]}, which plain LoRA does not")
    return alpha / (math.sqrt(rank) if row.get("use_rslora") is True else rank)


def _pairs(folder: Path) -> list[tuple[str, tuple[Tensor, Tensor]]]:
    """Return (module, (A (r, in), B (out, r))) of every adapted layer."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise _refused(folder, f"its {WEIGHTS} cannot be read ({str(error)[:100]})") from error
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        path, _, factor = name.removesuffix(".weight").rpartition(".")
        if not path.startswith(PREFIX) or factor not in FACTORS:
            raise _refused(folder, f"it holds {name[:100]!r}, which is no factor of LoRA")
        found.setdefault(path.removeprefix(PREFIX), {})[factor] = tensor
    if not found or any(len(factors) != 2 for factors in found.values()):
        raise _refused(folder, "a layer lacks one of its two factors")
    return [(path, (f["lora_A"], f["lora_B"])) for path, f in found.items()]


@torch.inference_mode()
def _merged(
    decoder: Decoder, path: str, pair: tuple[Tensor, Tensor], scale: float, folder: Path
) -> Tensor:
    """Return a layer's weight plus scale * B @ A, in the weight's own dtype and layout."""
    from transformers.pytorch_utils import Conv1D

    layer = dict(decoder.model.named_modules()).get(path)
    if isinstance(layer, PackedLinear):
        raise MlpMemError(
            f"adapter: {folder.name} cannot be merged into packed weights; load the decoder "
            "without dtype (python app.py: without --dtype)"
        )
    if not isinstance(layer, nn.Linear | Conv1D):
        raise _unfit(folder, f"it changes {path[:100]!r}, which is no linear layer of it")
    down, up = (factor.to(layer.weight.device, torch.float32) for factor in pair)
    transposed = isinstance(layer, Conv1D)
    weight = layer.weight.T if transposed else layer.weight  # (out, in)
    fits = down.dim() == up.dim() == 2 and down.shape[0] == up.shape[1]
    if not fits or (up.shape[0], down.shape[1]) != tuple(weight.shape):
        shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
        raise _unfit(folder, f"{path} has weight {tuple(weight.shape)}, its factors {shapes}")
    changed = weight.float() + scale * (up @ down)
    if not torch.isfinite(changed).all():
        raise _refused(folder, f"{path} would hold what is no number")
    return (changed.T if transposed else changed).to(weight.dtype).contiguous().clone()


def _refused(folder: Path, why: str) -> MlpMemError:
    """Return the error for an adapter that is not used."""
    return MlpMemError(
        f"adapter: {folder.name} cannot be used: {why}. Plain LoRA is read, of linear layers "
        "alone; download it or make it again"
    )


def _unfit(folder: Path, why: str) -> MlpMemError:
    """Return the error for an adapter of another decoder."""
    return MlpMemError(
        f"adapter: {folder.name} does not fit this decoder ({why}); use it with the decoder it "
        "was trained on"
    )


def _peft():
    """Return the package peft; MlpMemError where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise MlpMemError(
            "making LoRA needs the package peft, which is not installed; "
            'pip install peft, or pip install -e ".[train]"'
        ) from error
    return peft

"""LoRA adapters of a decoder, in peft's own folder layout: put on, kept, and merged when read.

A merged adapter is a decoder like any other: it costs nothing more to serve, and whatever takes a
decoder takes it. peft is needed here alone, and only when an adapter is made or read.
"""

from pathlib import Path
from typing import Any

from torch import nn

from mlpmem.decoder import Decoder
from mlpmem.errors import MlpMemError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def add_adapter(model: nn.Module, rank: int) -> Any:
    """Return peft's wrapper of a model whose linear layers now have adapters, in place.

    Only these ask for gradients. Their second factor begins at zero, so nothing is changed yet.
    """
    peft = _peft()
    transposed = any(type(module).__name__ == "Conv1D" for module in model.modules())  # GPT-2's
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", fan_in_fan_out=transposed
    )
    return peft.get_peft_model(model, config, autocast_adapter_dtype=False)


def save_adapter(wrapped: Any, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors; the decoder's weights are not in."""
    from safetensors.torch import save_file

    tensors = _peft().get_peft_model_state_dict(wrapped)
    config = wrapped.peft_config["default"]
    config.base_model_name_or_path = ""  # no path of this machine
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    kept = {name: weight.detach().cpu().contiguous() for name, weight in tensors.items()}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})


def load_adapter(decoder: Decoder, folder: str | Path) -> Decoder:
    """Return `decoder` itself with an adapter merged into its weights; MlpMemError for none."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise MlpMemError(
            f"adapter: {folder} lacks {CONFIG} or {WEIGHTS}; give a folder that peft saved, or "
            "make one with `python -m train finetuned RECIPE`"
        )
    try:
        wrapped = _peft().PeftModel.from_pretrained(decoder.model, str(folder))
    except (ValueError, RuntimeError) as error:
        raise MlpMemError(
            f"adapter: {folder.name} does not fit this decoder ({str(error)[:200]}); use it with "
            "the decoder it was trained on"
        ) from error
    decoder.model = wrapped.merge_and_unload().eval().requires_grad_(False)
    return decoder


def adapter_bytes(folder: str | Path) -> int:
    """Return the size of an adapter's weights on disk."""
    return (Path(folder) / WEIGHTS).stat().st_size


def _peft():
    """Return the package peft; MlpMemError where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise MlpMemError(
            "LoRA needs the package peft, which is not installed; "
            'pip install peft, or pip install -e ".[train]"'
        ) from error
    return peft

"""The folder that `model.py` saves and loads: decoder/, memory/ or datastore/, each in its format.

It reads and writes parts and checks what loaders ask for; who drives the model is not its concern.
"""

from pathlib import Path
from typing import Any

import torch

from mlpmem.api import Model
from mlpmem.engine.settings import Settings, check_lmbda
from mlpmem.errors import MlpMemError
from mlpmem.fast.devices import AUTO
from mlpmem.formats import parse_json
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.retriever import RETRIEVERS, make_retriever

# what loaders pass along and a folder on disk has no use for
NO_MATTER = {"adapter_kwargs", "cache_dir", "force_download", "local_files_only", "revision"}
NO_MATTER |= {"subfolder", "token"}


def write_parts(fused: Model, folder: Path) -> None:
    """Write the parts a model has, and its tokenizer beside them and with the decoder."""
    if fused.store is not None and kind_of(fused) is None:
        raise MlpMemError(
            f"save_pretrained: {type(fused.retriever).__name__} is none of the searches a "
            f"folder can name ({', '.join(RETRIEVERS)}); attach one of these"
        )
    folder.mkdir(parents=True, exist_ok=True)
    fused.decoder.model.save_pretrained(folder / "decoder")
    for place in (folder, folder / "decoder"):
        fused.decoder.tokenizer.save_pretrained(place)
    if fused.memory is not None:
        fused.memory.save(folder / "memory")
    if fused.store is not None:
        fused.datastore.save(folder / "datastore")


def read_parts(folder: Path, config: Any, dtype: Any, device_map: Any) -> Model:
    """Return the model of a folder's parts, as its config uses them; see hf.MlpMemoryLMConfig."""
    place = {"dtype": _dtype(dtype), "device": _device(device_map)}
    check_lmbda(config.lmbda)
    settings = Settings(
        lmbda={"memory": config.lmbda, "knn": config.lmbda},
        k=config.k,
        knn_temperature=config.knn_temperature,
        memory_temperature=config.memory_temperature,
    )
    decoder = Decoder.load(folder / "decoder", depth=config.depth, **place)
    memory = Memory.load(folder / "memory", **place) if config.system == "memory" else None
    fused = Model(decoder, memory, settings, folder.name)
    if config.system == "knn":
        store = Datastore.load(folder / "datastore")
        fused.attach_datastore(store, make_retriever(config.retriever, store.keys))
    return fused


def kind_of(fused: Model) -> str | None:
    """Return the name of a model's search, None where it has none of those known."""
    return next((k for k, c in RETRIEVERS.items() if type(fused.retriever) is c), None)


def check_folder(folder: Path, options: dict[str, Any]) -> None:
    """Raise MlpMemError where the folder is none, or an option asks for what is not done here."""
    if not (folder / "config.json").is_file():
        raise MlpMemError(
            f"from_pretrained: {str(folder)!r} is no folder with a config.json; give one that "
            "`python -m mlpmem.hf FOLDER` or save_pretrained wrote"
        )
    asked = sorted(name for name, value in options.items() if value and name not in NO_MATTER)
    if asked:
        raise MlpMemError(
            f"from_pretrained: {', '.join(asked)} is not known here; a folder is read with config, "
            "dtype and device_map alone, and runs no code of its own"
        )


def check_target(folder: Path) -> None:
    """Raise MlpMemError where a folder holds anything but what was written there before."""
    if folder.is_file() or folder.is_dir() and any(folder.iterdir()) and not _is_ours(folder):
        raise MlpMemError(
            f"{folder} is there and holds something else; give a new folder, or an empty one"
        )


def _is_ours(folder: Path) -> bool:
    """Return whether a folder's config.json is one of hf.py's."""
    try:
        row = parse_json((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(row, dict) and row.get("model_type") == "mlp_memory_lm"


def _dtype(given: torch.dtype | str | None) -> torch.dtype:
    """Return a dtype or the one of a name; float32 for None and "auto"."""
    if given in (None, "auto"):
        return torch.float32
    found = getattr(torch, given, None) if isinstance(given, str) else given
    if not isinstance(found, torch.dtype):
        raise MlpMemError(f'from_pretrained: dtype is {given!r}; give one such as "bfloat16"')
    return found


def _device(device_map: Any) -> str | torch.device:
    """Return the one device of a device_map, or "auto"; MlpMemError for maps of other kinds."""
    if device_map == AUTO:
        return AUTO
    if isinstance(device_map, dict) and set(device_map) == {""}:
        device_map = device_map[""]
    if isinstance(device_map, dict) or device_map in ("balanced", "sequential"):
        raise MlpMemError(
            f"from_pretrained: device_map is {device_map!r}; give one device, such as "
            '"cuda", or "auto" for every GPU there is'
        )
    return torch.device("cpu" if device_map is None else device_map)

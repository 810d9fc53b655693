"""Save and load the folder of `model.py`: decoder/, and memory/ or datastore/.

This module also checks the options of transformers' loaders.
"""

from pathlib import Path
from typing import Any

import torch

from mlpmem.api import Model
from mlpmem.engine.settings import Settings, check_lmbda
from mlpmem.errors import MlpMemError
from mlpmem.fast.devices import AUTO
from mlpmem.formats import HUB_ID, SMALL, read_json
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.retriever import RETRIEVERS, make_retriever

# from_pretrained's options: for the Hub, and those without effect on our folders
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
IGNORED = {
    "adapter_kwargs", "code_revision", "from_flax", "from_tf", "low_cpu_mem_usage", "mirror",
    "offload_buffers", "offload_folder", "offload_state_dict", "proxies", "resume_download",
    "tqdm_class", "trust_remote_code", "use_safetensors", "weights_only", "_commit_hash",
    "_fast_init", "_from_auto", "_from_pipeline",
}  # fmt: skip
KNOWN = (
    "config and its values, generation_config, dtype, device_map, attn_implementation, subfolder, "
    f"{', '.join(HUB_OPTIONS)} and output_loading_info"
)
MAPS = (AUTO, "balanced", "balanced_low_0", "sequential")  # all over every GPU
PARTS = ("decoder", "memory", "datastore")


def write_parts(fused: Model, folder: Path) -> None:
    """Write a model's parts; its tokenizer goes into the folder and into decoder/."""
    if fused.store is not None and kind_of(fused) is None:
        raise MlpMemError(
            f"save_pretrained: the retriever must be one of {', '.join(RETRIEVERS)}; got "
            f"{type(fused.retriever).__name__}. Attach one of these"
        )
    folder.mkdir(parents=True, exist_ok=True)
    fused.decoder.model.save_pretrained(folder / "decoder")
    for target in (folder, folder / "decoder"):
        fused.decoder.tokenizer.save_pretrained(target)
    if fused.memory is not None:
        fused.memory.save(folder / "memory")
    if fused.store is not None:
        fused.datastore.save(folder / "datastore")


def find_folder(source: str | Path, subfolder: str = "", **hub_options: Any) -> Path:
    """Return the folder of a path or Hub id, downloaded if needed.

    hub_options are those of HUB_OPTIONS. MlpMemError for a folder without config.json.
    """
    folder = Path(source)
    if not folder.is_dir() and HUB_ID.fullmatch(str(source)):
        folder = _download(str(source), subfolder, hub_options)
    inner = folder / subfolder
    if ".." in Path(subfolder).parts or not (inner / "config.json").is_file():
        raise MlpMemError(
            f"from_pretrained: {str(inner)!r} is not a folder with a config.json; give one that "
            "`python -m mlpmem.hf FOLDER` or save_pretrained wrote"
        )
    return inner


def _download(hub_id: str, subfolder: str, hub_options: dict[str, Any]) -> Path:
    """Return the folder of a Hub id after downloading the needed files."""
    from huggingface_hub import snapshot_download

    prefix = f"{subfolder}/" if subfolder else ""
    names = [f"{prefix}{name}" for name in (*SMALL, *(f"{part}/**" for part in PARTS))]
    options = {name: value for name, value in hub_options.items() if value is not None}
    try:
        return Path(snapshot_download(hub_id, allow_patterns=names, **options))
    except Exception as error:  # the client's transport raises errors of its own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise MlpMemError(
            f"from_pretrained: {hub_id!r} is not a local folder and cannot be downloaded "
            f"({first}); check the path, or the id, its revision and the network"
        ) from error


def read_parts(
    folder: Path, config: Any, dtype: Any, device_map: Any, attention: str | None = None
) -> Model:
    """Return the model of a folder's parts for its config, an MlpMemoryLMConfig.

    attention is transformers' attn_implementation; None leaves the default.
    """
    options = {"dtype": _dtype(dtype, folder), "device": _device(device_map)}
    check_lmbda(config.lmbda)
    settings = Settings(
        lmbda={"memory": config.lmbda, "knn": config.lmbda},
        k=config.k,
        knn_temperature=config.knn_temperature,
        memory_temperature=config.memory_temperature,
    )
    decoder = Decoder.load(folder / "decoder", depth=config.depth, **options)
    if attention is not None:
        _use_attention(decoder, attention)
    memory = Memory.load(folder / "memory", **options) if config.system == "memory" else None
    fused = Model(decoder, memory, settings, folder.name)
    if config.system == "knn":
        store = Datastore.load(folder / "datastore")
        fused.attach_datastore(store, make_retriever(config.retriever, store.keys))
    return fused


def kind_of(fused: Model) -> str | None:
    """Return the name of a model's retriever in RETRIEVERS, None if it has no name."""
    return next((k for k, c in RETRIEVERS.items() if type(fused.retriever) is c), None)


def check_options(options: dict[str, Any]) -> None:
    """Raise MlpMemError for an option that is not supported."""
    unknown = sorted(name for name, value in options.items() if value and name not in IGNORED)
    if unknown:
        raise MlpMemError(
            f"from_pretrained: {', '.join(unknown)} is not supported; use only {KNOWN}"
        )


def _use_attention(decoder: Decoder, name: str) -> None:
    """Set a decoder's attention by name; MlpMemError if it does not support it."""
    try:
        decoder.model.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        raise MlpMemError(
            f"from_pretrained: attn_implementation is {name!r}, which this decoder does not "
            f"support here ({str(error).splitlines()[0][:200]}); use sdpa or eager"
        ) from error


def check_target(folder: Path) -> None:
    """Raise MlpMemError unless a folder is empty, missing, or written by this program."""
    if folder.is_file() or folder.is_dir() and any(folder.iterdir()) and not _is_ours(folder):
        raise MlpMemError(
            f"{folder} already exists and holds other files; give a new or empty folder"
        )


def _is_ours(folder: Path) -> bool:
    """Return whether a folder's config.json was written by this program."""
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == "mlp_memory_lm"


def _dtype(requested: torch.dtype | str | None, folder: Path) -> torch.dtype:
    """Return a dtype, also by name: float32 for None, the stored one for "auto"."""
    if requested == AUTO:
        try:
            config = read_json(folder / "decoder" / "config.json")
            requested = config.get("dtype") or config.get("torch_dtype")
        except (OSError, ValueError, AttributeError):  # reported when the decoder is loaded
            requested = None
    if requested is None:
        return torch.float32
    name = requested.removeprefix("torch.") if isinstance(requested, str) else ""
    dtype = getattr(torch, name, None) if name else requested
    if not isinstance(dtype, torch.dtype):
        raise MlpMemError(
            f'from_pretrained: dtype must be a torch dtype such as "bfloat16"; got {requested!r}'
        )
    return dtype


def _device(device_map: Any) -> str | torch.device:
    """Return the device of a device_map, or "auto"; MlpMemError for other maps."""
    if isinstance(device_map, str) and device_map in MAPS:
        return AUTO
    if isinstance(device_map, dict) and len(set(device_map.values())) == 1:
        (device_map,) = set(device_map.values())
    try:
        return torch.device("cpu" if device_map is None else device_map)
    except (RuntimeError, TypeError) as error:
        raise MlpMemError(
            f'from_pretrained: device_map must be one device, such as "cuda", or "auto" for '
            f"every GPU; got {device_map!r}"
        ) from error

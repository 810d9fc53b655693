"""The folder that `model.py` saves and loads: decoder/, memory/ or datastore/, each in its format.

It reads and writes parts, and checks what transformers' loaders require.
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

# from_pretrained's options: where a folder comes from, and what makes no difference to one of ours
PLACES = ("cache_dir", "force_download", "local_files_only", "revision", "token")
NO_MATTER = {
    "adapter_kwargs", "code_revision", "from_flax", "from_tf", "low_cpu_mem_usage", "mirror",
    "offload_buffers", "offload_folder", "offload_state_dict", "proxies", "resume_download",
    "tqdm_class", "trust_remote_code", "use_safetensors", "weights_only", "_commit_hash",
    "_fast_init", "_from_auto", "_from_pipeline",
}  # fmt: skip
KNOWN = (
    "config and its values, generation_config, dtype, device_map, attn_implementation, subfolder, "
    f"{', '.join(PLACES)} and output_loading_info"
)
MAPS = (AUTO, "balanced", "balanced_low_0", "sequential")  # over every GPU there is
PARTS = ("decoder", "memory", "datastore")


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


def find_folder(source: str | Path, subfolder: str = "", **places: Any) -> Path:
    """Return the folder of a path or Hub id, downloaded if need be; MlpMemError where it is none.

    places are options of PLACES.
    """
    folder = Path(source)
    if not folder.is_dir() and HUB_ID.fullmatch(str(source)):
        folder = _downloaded(str(source), subfolder, places)
    inner = folder / subfolder
    if ".." in Path(subfolder).parts or not (inner / "config.json").is_file():
        raise MlpMemError(
            f"from_pretrained: {str(inner)!r} is no folder with a config.json; give one that "
            "`python -m mlpmem.hf FOLDER` or save_pretrained wrote"
        )
    return inner


def _downloaded(hub_id: str, subfolder: str, places: dict[str, Any]) -> Path:
    """Return the folder of a Hub id with the files that such a folder has."""
    from huggingface_hub import snapshot_download

    at = f"{subfolder}/" if subfolder else ""
    names = [f"{at}{name}" for name in (*SMALL, *(f"{part}/**" for part in PARTS))]
    places = {name: value for name, value in places.items() if value is not None}
    try:
        return Path(snapshot_download(hub_id, allow_patterns=names, **places))
    except Exception as error:  # the client's transport raises errors of its own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise MlpMemError(
            f"from_pretrained: {hub_id!r} is not a local folder and cannot be downloaded "
            f"({first}); check the path, or the id, its revision and the network"
        ) from error


def read_parts(
    folder: Path, config: Any, dtype: Any, device_map: Any, attention: str | None = None
) -> Model:
    """Return the model of a folder's parts, as its config uses them; see hf.MlpMemoryLMConfig.

    attention is a name of transformers' attn_implementation, the model's own for None.
    """
    place = {"dtype": _dtype(dtype, folder), "device": _device(device_map)}
    check_lmbda(config.lmbda)
    settings = Settings(
        lmbda={"memory": config.lmbda, "knn": config.lmbda},
        k=config.k,
        knn_temperature=config.knn_temperature,
        memory_temperature=config.memory_temperature,
    )
    decoder = Decoder.load(folder / "decoder", depth=config.depth, **place)
    if attention is not None:
        _use_attention(decoder, attention)
    memory = Memory.load(folder / "memory", **place) if config.system == "memory" else None
    fused = Model(decoder, memory, settings, folder.name)
    if config.system == "knn":
        store = Datastore.load(folder / "datastore")
        fused.attach_datastore(store, make_retriever(config.retriever, store.keys))
    return fused


def kind_of(fused: Model) -> str | None:
    """Return the name of a model's search, None where it has none of those known."""
    return next((k for k, c in RETRIEVERS.items() if type(fused.retriever) is c), None)


def check_options(options: dict[str, Any]) -> None:
    """Raise MlpMemError where an option asks for what is not done here."""
    asked = sorted(name for name, value in options.items() if value and name not in NO_MATTER)
    if asked:
        raise MlpMemError(
            f"from_pretrained: {', '.join(asked)} is not known here; a folder is read with {KNOWN}"
        )


def _use_attention(decoder: Decoder, name: str) -> None:
    """Have a decoder attend by the implementation of a name; MlpMemError where it has none."""
    try:
        decoder.model.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        raise MlpMemError(
            f"from_pretrained: attn_implementation is {name!r}, which this decoder does not have "
            f"here ({str(error).splitlines()[0][:200]}); use sdpa or eager"
        ) from error


def check_target(folder: Path) -> None:
    """Raise MlpMemError where a folder holds anything but what was written there before."""
    if folder.is_file() or folder.is_dir() and any(folder.iterdir()) and not _is_ours(folder):
        raise MlpMemError(
            f"{folder} is there and holds something else; give a new folder, or an empty one"
        )


def _is_ours(folder: Path) -> bool:
    """Return whether a folder's config.json is one of hf.py's."""
    try:
        row = read_json(folder / "config.json")
    except (OSError, ValueError):
        return False
    return isinstance(row, dict) and row.get("model_type") == "mlp_memory_lm"


def _dtype(given: torch.dtype | str | None, folder: Path) -> torch.dtype:
    """Return a dtype or the one of a name: float32 for None, the stored one for "auto"."""
    if given == AUTO:
        try:
            row = read_json(folder / "decoder" / "config.json")
            given = row.get("dtype") or row.get("torch_dtype")
        except (OSError, ValueError, AttributeError):  # whoever reads it says what is wrong
            given = None
    if given is None:
        return torch.float32
    name = given.removeprefix("torch.") if isinstance(given, str) else ""
    found = getattr(torch, name, None) if name else given
    if not isinstance(found, torch.dtype):
        raise MlpMemError(f'from_pretrained: dtype is {given!r}; give one such as "bfloat16"')
    return found


def _device(device_map: Any) -> str | torch.device:
    """Return the one device of a device_map, or "auto"; MlpMemError for maps of other kinds."""
    if isinstance(device_map, str) and device_map in MAPS:
        return AUTO
    if isinstance(device_map, dict) and len(set(device_map.values())) == 1:
        (device_map,) = set(device_map.values())
    try:
        return torch.device("cpu" if device_map is None else device_map)
    except (RuntimeError, TypeError) as error:
        raise MlpMemError(
            f"from_pretrained: device_map is {device_map!r}; give one device, such as "
            '"cuda", or "auto" for every GPU there is'
        ) from error

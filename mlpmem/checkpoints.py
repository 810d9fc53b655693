"""Folders of memories: our own, and the layouts the authors published.

Published folders hold a base family's config.json with the layer count overwritten, flat or in
`knn_generator/` beside mlp_memory_config.json; weights are safetensors, whole or sharded, or a
pytorch_model.bin, read with weights_only. What they do not say (depth, lmbda, temperature) is
supplied here.
"""

from pathlib import Path

import torch
from torch import Tensor

from mlpmem.errors import MlpMemError
from mlpmem.memory import MODEL_TYPE, Memory, MemoryConfig
from mlpmem.plain import parse_json

# model_type: names of (layers, D, FFN, norm eps), memory family, lmbda the authors use
PUBLISHED = {
    "gpt2": (("n_layer", "n_embd", "n_inner", "layer_norm_epsilon"), "gpt2", 0.25),
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3"),
        (("num_hidden_layers", "hidden_size", "intermediate_size", "rms_norm_eps"), "llama", 0.5),
    ),
}


def save_memory(memory: Memory, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write config.json and model.safetensors (in dtype if given) into folder."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: weight.detach().to("cpu", dtype or weight.dtype).contiguous()
        for name, weight in memory.state_dict().items()
        if not (memory.config.tied_head and name == "lm_head.weight")
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(memory.config.to_json(), encoding="utf-8")


def load_memory(
    path_or_id: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    depth: int | None = None,
    lmbda: float | None = None,
    temperature: float | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Memory:
    """Return a memory in eval mode, frozen; depth, lmbda and temperature override the folder's.

    A folder is read as it is; anything else is a hub id. MlpMemError says what is missing or wrong.
    """
    top = Path(path_or_id)
    if not top.is_dir():
        top = _download(str(path_or_id), revision, local_files_only)
    folder = top / "knn_generator" if (top / "knn_generator").is_dir() else top
    given = {"depth": depth, "lmbda": lmbda, "temperature": temperature}
    row = _config_row(top, folder) | {k: v for k, v in given.items() if v is not None}
    config = MemoryConfig.from_dict(row)
    with torch.device("meta"):
        memory = Memory(config)
    weights = _read_weights(folder)
    _check_weights(memory, weights, folder)
    weights = {name: weight.to(device, dtype) for name, weight in weights.items()}
    memory.load_state_dict(weights, assign=True)
    return memory.eval().requires_grad_(False)


def _config_row(top: Path, folder: Path) -> dict:
    """Return MemoryConfig values from our own or a base family's config.json."""
    row = _read_json(folder / "config.json")
    if row.get("model_type") == MODEL_TYPE:
        return row
    if str(row.get("model_type")) not in PUBLISHED:
        raise MlpMemError(
            f"memory: {folder.name}/config.json has model_type {row.get('model_type')!r}; "
            f"known are {MODEL_TYPE}, {', '.join(PUBLISHED)}. Is this a memory's folder?"
        )
    (layers, hidden, inner, eps), family, lmbda = PUBLISHED[row["model_type"]]
    extra = top / "mlp_memory_config.json"
    extra = _read_json(extra) if extra.exists() else {}
    whole = family == "gpt2" and isinstance(row.get(hidden), int)
    four_times = 4 * row[hidden] if whole else None  # what GPT-2's n_inner means where it is null
    found = {
        "num_layers": row.get(layers),
        "hidden_size": row.get(hidden),
        "intermediate_size": row.get(inner) or four_times,
        "vocab_size": row.get("vocab_size"),
        "norm_eps": row.get(eps),
    }
    found = {name: value for name, value in found.items() if value is not None}
    depth = extra.get("layer_position", -1)
    return found | {"family": family, "depth": depth, "lmbda": lmbda, "temperature": 1.0}


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of the first kind of weight file that folder holds."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    try:
        shards = sorted(set(_read_json(index)["weight_map"].values())) if index.exists() else []
        if (folder / "model.safetensors").exists():
            return load_file(folder / "model.safetensors")
        if shards:
            # a shard is a plain name: nothing outside the folder is read
            return {k: v for s in shards for k, v in load_file(folder / Path(s).name).items()}
        if (folder / "pytorch_model.bin").exists():
            return _read_bin(folder / "pytorch_model.bin")
    except MlpMemError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MlpMemError(
            f"memory: the weights in {folder.name} cannot be read ({str(error)[:200]}); "
            "the file is incomplete or altered, download or export it again"
        ) from error
    raise MlpMemError(
        f"memory: {folder.name} holds no weights; expected model.safetensors, "
        "model.safetensors.index.json with its shards, or pytorch_model.bin"
    )


def _read_bin(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .bin file; ValueError where it holds anything else."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of modules that are not imported here
        raise ValueError("it is no file of tensors alone, and nothing else is read") from error
    if not isinstance(found, dict) or not all(isinstance(w, Tensor) for w in found.values()):
        raise ValueError("it holds something else than named tensors")
    return found


def _check_weights(memory: Memory, weights: dict[str, Tensor], folder: Path) -> None:
    """Raise MlpMemError unless names and shapes are exactly the config's."""
    wanted = {name: weight.shape for name, weight in memory.state_dict().items()}
    missing, extra = sorted(wanted.keys() - weights), sorted(weights.keys() - wanted)
    shapes = [
        f"{name} is {list(weights[name].shape)}, config.json says {list(shape)}"
        for name, shape in wanted.items()
        if name in weights and weights[name].shape != shape
    ]
    complaints = [f"{len(missing)} names missing such as {missing[0]}"] if missing else []
    complaints += [f"{len(extra)} unknown names such as {extra[0]}"] if extra else []
    complaints += shapes[:1]
    if complaints:
        raise MlpMemError(
            f"memory: the weights in {folder.name} do not fit its config.json: "
            f"{'; '.join(complaints)}. Is this a memory's folder, whole and of the family it names?"
        )


def _read_json(path: Path) -> dict:
    """Return a JSON object; MlpMemError where the file is missing or is none."""
    try:
        row = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MlpMemError(
            f"memory: cannot read {path.parent.name}/{path.name} ({error}); "
            "download or export the memory again"
        ) from error
    if not isinstance(row, dict):
        raise MlpMemError(f"memory: {path.name} is not a JSON object; export the memory again")
    return row


def _download(hub_id: str, revision: str | None, local_files_only: bool) -> Path:
    """Return the local folder of a hub repository; MlpMemError where it cannot be had."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                hub_id,
                revision=revision,
                local_files_only=local_files_only,
                allow_patterns=["*.json", "*.safetensors", "*.bin"],
            )
        )
    except (OSError, ValueError) as error:
        raise MlpMemError(
            f"memory: {hub_id!r} is no folder here and cannot be downloaded "
            f"({str(error).splitlines()[0][:200]}); check the path, or the id and the network"
        ) from error

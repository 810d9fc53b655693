"""Folders of memories: our own, and the layouts the authors published.

Published folders have a base family's config.json with the memory's layer count, either at the top
or in `knn_generator/` next to mlp_memory_config.json. Weights are safetensors or pytorch_model.bin
(read with weights_only), in one file or shards; their names may have the prefix `knn_generator.`
if the decoder's weights are there too. This module supplies missing values (depth, lmbda,
temperature).
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mlpmem.errors import MlpMemError
from mlpmem.formats import MEMORY_TYPE, NESTED, read_json
from mlpmem.model.families import FAMILIES

PUBLISHED = {name: row for name, row in FAMILIES.items() if row.published_lmbda}
ACTIVATIONS = {"gpt2": "gelu_new", "llama": "silu"}  # of the memories of a family


def memory_folder(top: Path) -> Path:
    """Return the folder of the memory itself, also inside a bundle or a training run."""
    for inner in (top / NESTED, top / "memory"):
        if inner.is_dir() and (inner.name == NESTED or not (top / "config.json").is_file()):
            return inner
    return top


def config_values(top: Path, folder: Path) -> dict:
    """Return MemoryConfig values from our own or a base family's config.json."""
    row = _read_json(folder / "config.json")
    if row.get("model_type") == MEMORY_TYPE:
        return row
    if str(row.get("model_type")) not in PUBLISHED:
        raise MlpMemError(
            f"memory: {folder.name}/config.json has model_type {row.get('model_type')!r}; "
            f"known are {MEMORY_TYPE}, {', '.join(PUBLISHED)}. Check that this is a memory's folder"
        )
    from transformers import CONFIG_MAPPING

    published = PUBLISHED[row["model_type"]]
    family, activation = published.memory, ACTIVATIONS[published.memory]
    row.pop("layer_types", None)  # of the base's layers, which are more or fewer
    try:  # config.json may leave out values that are the class's defaults
        base = CONFIG_MAPPING[row["model_type"]](**row)
    except Exception as error:  # the class's checks raise errors of many kinds
        raise MlpMemError(
            f"memory: {folder.name}/config.json is not a valid {row['model_type']} configuration "
            f"({str(error).splitlines()[0][:200]}); download the memory again"
        ) from error
    gpt2 = family == "gpt2"
    used = base.activation_function if gpt2 else base.hidden_act
    if used != activation:
        raise MlpMemError(
            f"memory: {folder.name}/config.json has the activation {used!r}; memories of the "
            f"family {family} must have {activation!r}. Check that this is a memory's folder"
        )
    extra = top / "mlp_memory_config.json"
    return {
        "family": family,
        "num_layers": base.num_hidden_layers,
        "hidden_size": base.hidden_size,
        # published GPT-2 memories ignore n_inner: the width is always 4 D
        "intermediate_size": 4 * base.hidden_size if gpt2 else base.intermediate_size,
        "vocab_size": base.vocab_size,
        "norm_eps": base.layer_norm_epsilon if gpt2 else base.rms_norm_eps,
        "depth": _read_json(extra).get("layer_position", -1) if extra.exists() else -1,
        "lmbda": published.published_lmbda,
        "temperature": 1.0,
    }


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder, from safetensors or else .bin files."""
    from safetensors import SafetensorError

    readers = {"model.safetensors": _read_safetensors, "pytorch_model.bin": read_bin}
    try:
        for name, read in readers.items():
            if (folder / name).exists():
                return _unwrapped(read(folder / name))
            if (folder / f"{name}.index.json").exists():
                return _unwrapped(_read_shards(folder, f"{name}.index.json", read))
    except MlpMemError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MlpMemError(
            f"memory: the weights in {folder.name} cannot be read ({str(error)[:200]}); "
            "the file is incomplete or altered; download or export it again"
        ) from error
    raise MlpMemError(
        f"memory: {folder.name} has no weights; it needs model.safetensors or pytorch_model.bin, "
        "or the .index.json of one of them with its shards"
    )


def _read_shards(
    folder: Path, index: str, read: Callable[[Path], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Return the tensors of all shards that an index lists."""
    table = _read_json(folder / index).get("weight_map")
    if not isinstance(table, dict):
        raise ValueError(f"{index} lists no shards")
    # only the file names are used, so nothing outside the folder is read
    shards = sorted({Path(str(shard)).name for shard in table.values()})
    return {name: weight for shard in shards for name, weight in read(folder / shard).items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def read_bin(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .bin file; ValueError if it holds anything else."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of modules that are not imported here
        raise ValueError("only files with nothing but tensors are read") from error
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise ValueError("it must hold only named tensors")
    return weights


def _unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return only the memory's tensors of a training state that may also hold the decoder's."""
    prefix = f"{NESTED}."
    own = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
    return own or weights


def _read_json(path: Path) -> dict:
    """Return a JSON object; MlpMemError if the file is missing or holds anything else."""
    try:
        row = read_json(path)
    except (OSError, ValueError) as error:
        raise MlpMemError(
            f"memory: cannot read {path.parent.name}/{path.name} ({error}); "
            "check that this is a memory's folder, or download or export it again"
        ) from error
    if not isinstance(row, dict):
        raise MlpMemError(f"memory: {path.name} is not a JSON object; export the memory again")
    return row

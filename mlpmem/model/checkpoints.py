"""Folders of memories: our own, and the layouts the authors published.

Published folders hold a base family's config.json with the layer count overwritten, flat or in
`knn_generator/` beside mlp_memory_config.json; weights are safetensors or pytorch_model.bin, read
with weights_only, whole or sharded, and may stand behind `knn_generator.` beside a decoder's. What
they do not say (depth, lmbda, temperature) is supplied here.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mlpmem.errors import MlpMemError
from mlpmem.formats import MEMORY_TYPE, NESTED, read_json
from mlpmem.model.families import FAMILIES

PUBLISHED = {name: row for name, row in FAMILIES.items() if row.published_lmbda}
ACTIVATIONS = {"gpt2": "gelu_new", "llama": "silu"}  # the only one that memories of a kind have


def _inner(top: Path) -> Path:
    """Return where a folder's memory stands: in it, or within a bundle or a run of training."""
    for inner in (top / NESTED, top / "memory"):
        if inner.is_dir() and (inner.name == NESTED or not (top / "config.json").is_file()):
            return inner
    return top


def _config_row(top: Path, folder: Path) -> dict:
    """Return MemoryConfig values from our own or a base family's config.json."""
    row = _read_json(folder / "config.json")
    if row.get("model_type") == MEMORY_TYPE:
        return row
    if str(row.get("model_type")) not in PUBLISHED:
        raise MlpMemError(
            f"memory: {folder.name}/config.json has model_type {row.get('model_type')!r}; "
            f"known are {MEMORY_TYPE}, {', '.join(PUBLISHED)}. Is this a memory's folder?"
        )
    from transformers import CONFIG_MAPPING

    published = PUBLISHED[row["model_type"]]
    family, activation = published.memory, ACTIVATIONS[published.memory]
    row.pop("layer_types", None)  # of the base's layers, whose number is another
    try:  # the family's own class knows its defaults, which config.json may leave out
        base = CONFIG_MAPPING[row["model_type"]](**row)
    except Exception as error:  # its checks raise errors of their own
        raise MlpMemError(
            f"memory: {folder.name}/config.json is no configuration of {row['model_type']} "
            f"({str(error).splitlines()[0][:200]}); download the memory again"
        ) from error
    gpt2 = family == "gpt2"
    used = base.activation_function if gpt2 else base.hidden_act
    if used != activation:
        raise MlpMemError(
            f"memory: {folder.name}/config.json asks for the activation {used!r}; memories of the "
            f"family {family} have {activation!r} alone. Is this a memory's folder?"
        )
    extra = top / "mlp_memory_config.json"
    return {
        "family": family,
        "num_layers": base.num_hidden_layers,
        "hidden_size": base.hidden_size,
        # published GPT-2 memories have four times the width whatever n_inner says
        "intermediate_size": 4 * base.hidden_size if gpt2 else base.intermediate_size,
        "vocab_size": base.vocab_size,
        "norm_eps": base.layer_norm_epsilon if gpt2 else base.rms_norm_eps,
        "depth": _read_json(extra).get("layer_position", -1) if extra.exists() else -1,
        "lmbda": published.published_lmbda,
        "temperature": 1.0,
    }


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of the first kind of weight file that folder holds."""
    from safetensors import SafetensorError

    kinds = {"model.safetensors": _read_safetensors, "pytorch_model.bin": _read_bin}
    try:
        for name, read in kinds.items():
            if (folder / name).exists():
                return _unwrapped(read(folder / name))
            if (folder / f"{name}.index.json").exists():
                return _unwrapped(_read_shards(folder, f"{name}.index.json", read))
    except MlpMemError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MlpMemError(
            f"memory: the weights in {folder.name} cannot be read ({str(error)[:200]}); "
            "the file is incomplete or altered, download or export it again"
        ) from error
    raise MlpMemError(
        f"memory: {folder.name} holds no weights; expected model.safetensors or pytorch_model.bin, "
        "or the .index.json of one of them with its shards"
    )


def _read_shards(
    folder: Path, index: str, read: Callable[[Path], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Return the tensors of all shards an index names."""
    table = _read_json(folder / index).get("weight_map")
    if not isinstance(table, dict):
        raise ValueError(f"{index} names no shards")
    # a shard is a plain name: nothing outside the folder is read
    shards = sorted({Path(str(shard)).name for shard in table.values()})
    return {name: weight for shard in shards for name, weight in read(folder / shard).items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file."""
    from safetensors.torch import load_file

    return load_file(path)


def _read_bin(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .bin file; ValueError where it holds anything else."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of modules that are not imported here
        raise ValueError("it is no file of tensors alone, and nothing else is read") from error
    if not isinstance(found, dict) or not all(isinstance(w, Tensor) for w in found.values()):
        raise ValueError("it holds something else than named tensors")
    return found


def _unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the memory's own tensors, out of a training state that holds its decoder's too."""
    wrapped = f"{NESTED}."
    own = {n.removeprefix(wrapped): w for n, w in weights.items() if n.startswith(wrapped)}
    return own or weights


def _read_json(path: Path) -> dict:
    """Return a JSON object; MlpMemError where the file is missing or is none."""
    try:
        row = read_json(path)
    except (OSError, ValueError) as error:
        raise MlpMemError(
            f"memory: cannot read {path.parent.name}/{path.name} ({error}); "
            "is this a memory's folder? If it is, download or export it again"
        ) from error
    if not isinstance(row, dict):
        raise MlpMemError(f"memory: {path.name} is not a JSON object; export the memory again")
    return row

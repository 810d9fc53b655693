"""Checks of files of unknown origin: JSON values, and the kinds of folder that can be loaded.

This file says how a decoder, an adapter and a memory are told apart, and which files of a
repository are read. It needs no torch.
"""

import json
import re
import sys
from collections.abc import Iterable
from fnmatch import fnmatch
from numbers import Real
from pathlib import Path
from typing import Any

from mlpmem.errors import MlpMemError

MEMORY_TYPE = "mlp_memory"  # model_type in a memory's config.json
NESTED = "knn_generator"  # subfolder of a memory that was saved with its decoder's name
PUBLISHED_MEMORY = ("mlp_memory_config.json", NESTED)
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
STORE_FILES = ("manifest.json", "store.safetensors")  # of a saved datastore of one's own text
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
SMALL = ("*.json", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model")
WEIGHTS = (  # only the first kind found is read; a repository may hold all of them
    "model.safetensors",
    "model-*-of-*.safetensors",
    "pytorch_model.bin",
    "pytorch_model-*-of-*.bin",
)


GGUF, MAGIC = ".gguf", b"GGUF"  # the end of a name, the first bytes of a file


def is_gguf(source: str | Path) -> bool:
    """Return whether a decoder is given as a GGUF file."""
    return str(source).lower().endswith(GGUF) and Path(source).is_file()


def check_gguf(source: str | Path) -> None:
    """Raise MlpMemError if a decoder's path looks like a GGUF file, but cannot be read as one.

    Without this, a file that is missing would be taken for a Hub id.
    """
    path = Path(source)
    inside = sorted(p.name for p in path.glob("*") if is_gguf(p)) if path.is_dir() else []
    if inside and not (path / "config.json").exists():
        raise MlpMemError(
            f"decoder: {str(source)!r} is a folder of GGUF files; give one of them, such as "
            f"{path / inside[0]}"
        )
    if path.is_file() and not is_gguf(path):
        with path.open("rb") as file:
            if file.read(4) == MAGIC:
                raise MlpMemError(
                    f"decoder: {str(source)!r} is a GGUF file under another name; rename it so "
                    f"that it ends with {GGUF}"
                )
    if path.suffix.lower() == GGUF and not path.is_dir() and not is_gguf(path):
        what = "is not a file" if path.exists() else "does not exist"
        raise MlpMemError(f"decoder: {str(source)!r} {what}; check the path of the GGUF file")


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; ValueError if it is not JSON, or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


JSON_BYTES = 2**26  # far more than a configuration, an index or a list of titles has


def read_json(path: Path, most: int = JSON_BYTES) -> Any:
    """Return the value of a JSON file; OSError or ValueError where it cannot be read.

    A pipe or a device in its place is not opened, nor is a file of more than `most` bytes.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path.name} is not a file")
    if (size := path.stat().st_size) > most:
        raise ValueError(f"{path.name} has {size} bytes, over the {most} bytes that are read")
    return parse_json(path.read_text(encoding="utf-8"))


def check_kinds(folder: Path, what: str) -> None:
    """Raise MlpMemError where a folder holds a pipe or a device: to open one may take forever."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.exists() and not path.is_file() and not path.is_dir():
            raise MlpMemError(
                f"{what}: {folder.name}/{path.name} is neither a file nor a folder, but a pipe, a "
                "socket or a device; remove it, or download the folder again"
            )


def valid(text: str) -> str:
    """Return text with U+FFFD for every lone surrogate: JSON can name one, UTF-8 cannot hold it."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def is_number(value: Any) -> bool:
    """Return whether a value is a number that a finite float can hold; true and false are not."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    # nan fails the comparison; math.isfinite would raise for an integer that is too large
    return real and abs(value) <= sys.float_info.max


def is_saved_store(source: str | Path) -> bool:
    """Return whether a path names a saved datastore: a .zip, or a folder with its two files."""
    source = Path(source)
    if source.is_dir():
        return all((source / name).is_file() for name in STORE_FILES)
    return source.suffix.lower() == ".zip" and source.is_file()


def kind_of(folder: Path) -> str:
    """Return what a folder holds: "decoder", "adapter" or "memory"; MlpMemError for any other."""
    if (folder / ADAPTER_FILES[0]).is_file():
        return "adapter"
    if any((folder / name).exists() for name in PUBLISHED_MEMORY):
        return "memory"
    try:
        row = read_json(folder / "config.json")
    except (OSError, ValueError) as error:
        raise MlpMemError(
            f"column: {folder} must hold a decoder (config.json), LoRA ({ADAPTER_FILES[0]}) or a "
            "memory; check the path"
        ) from error
    is_memory = isinstance(row, dict) and row.get("model_type") == MEMORY_TYPE
    return "memory" if is_memory or _without_attention(folder) else "decoder"


def _without_attention(folder: Path) -> bool:
    """Return whether a folder's safetensors hold layers, none of them attention.

    This marks published memories without a subfolder: their config.json names the base family.
    """
    from safetensors import SafetensorError, safe_open

    names: set[str] = set()
    for path in filter(Path.is_file, folder.glob("*.safetensors")):
        try:
            with safe_open(path, "np") as file:
                names.update(file.keys())
        except (OSError, SafetensorError):  # the reader of the weights says what is wrong
            return False
    return bool(names) and not any("att" in name for name in names)


def wanted(names: Iterable[str]) -> list[str]:
    """Return the files of a repository to read: configuration, tokenizer, one kind of weights."""
    names, files = sorted(names), []
    for folder in ("", f"{NESTED}/"):
        here = [name for name in names if name.rpartition("/")[0] == folder[:-1]]
        relative = {name: name.removeprefix(folder) for name in here}
        files += [n for n in here if any(fnmatch(relative[n], pattern) for pattern in SMALL)]
        kinds = ([n for n in here if fnmatch(relative[n], pattern)] for pattern in WEIGHTS)
        files += next(filter(None, kinds), [])
    return files

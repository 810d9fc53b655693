"""What files of unknown origin are: JSON values, and the kinds of folder that can be loaded.

No torch here. Open this file to see how a decoder, an adapter and a memory are told apart, and
which files of a repository are read.
"""

import json
import sys
from collections.abc import Iterable
from fnmatch import fnmatch
from numbers import Real
from pathlib import Path
from typing import Any

from mlpmem.errors import MlpMemError

MEMORY_TYPE = "mlp_memory"  # what a memory's config.json calls itself
NESTED = "knn_generator"  # where a memory stands that was saved together with its decoder's name
PUBLISHED_MEMORY = ("mlp_memory_config.json", NESTED)
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
SMALL = ("*.json", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model")
WEIGHTS = (  # the first kind that is there is read; a repository may hold all of them
    "model.safetensors",
    "model-*-of-*.safetensors",
    "pytorch_model.bin",
    "pytorch_model-*-of-*.bin",
)


GGUF = ".gguf"


def is_gguf(source: str | Path) -> bool:
    """Return whether a decoder is given as a GGUF file."""
    return str(source).lower().endswith(GGUF) and Path(source).is_file()


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; ValueError where it is none, or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def valid(text: str) -> str:
    """Return text with U+FFFD for every lone surrogate, which JSON can name and UTF-8 not hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number; true and false are none, nor what no float holds.

    math.isfinite raises for an integer that is too large.
    """
    plain = isinstance(value, Real) and not isinstance(value, bool)
    return plain and abs(value) <= sys.float_info.max  # nan is not less


def kind_of(folder: Path) -> str:
    """Return "decoder", "adapter" or "memory", which a folder holds; MlpMemError for any other."""
    if (folder / ADAPTER_FILES[0]).is_file():
        return "adapter"
    if any((folder / name).exists() for name in PUBLISHED_MEMORY):
        return "memory"
    try:
        row = parse_json((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MlpMemError(
            f"column: {folder} is no folder of a decoder (config.json), of LoRA "
            f"({ADAPTER_FILES[0]}) or of a memory; check the path"
        ) from error
    mine = isinstance(row, dict) and row.get("model_type") == MEMORY_TYPE
    return "memory" if mine or _without_attention(folder) else "decoder"


def _without_attention(folder: Path) -> bool:
    """Return whether a folder's safetensors hold layers, and none of them attends.

    So it is with published memories that lie flat: their config.json is their base family's.
    """
    from safetensors import SafetensorError, safe_open

    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "np") as file:
                names.update(file.keys())
        except (OSError, SafetensorError):  # whoever reads it says what is wrong
            return False
    return bool(names) and not any("att" in name for name in names)


def wanted(names: Iterable[str]) -> list[str]:
    """Return the files that are read of a repository: configuration, tokenizer, one weight kind."""
    names, found = sorted(names), []
    for folder in ("", f"{NESTED}/"):
        here = [name for name in names if name.rpartition("/")[0] == folder[:-1]]
        plain = {name: name.removeprefix(folder) for name in here}
        found += [n for n in here if any(fnmatch(plain[n], pattern) for pattern in SMALL)]
        kinds = ([n for n in here if fnmatch(plain[n], pattern)] for pattern in WEIGHTS)
        found += next(filter(None, kinds), [])
    return found

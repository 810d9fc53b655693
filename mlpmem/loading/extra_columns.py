"""Extra columns, given as folders (NAME=FOLDER): which there are, and what each folder holds.

Its files tell whether a folder is an adapter of the model's decoder (LoRA), another memory for it,
or another decoder. Nothing is loaded here, and torch is not needed; `registry.py` makes systems.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpmem.errors import MlpMemError
from mlpmem.formats import ADAPTER_FILES, is_number, kind_of
from mlpmem.loading.manifest import AGAIN

NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
OWN = (
    "lm",
    "memory",
    "knn",
    "mixed",
    "rag",
    "rag_memory",
    "auto",
    "auto_knn",
    "auto_mixed",
    "fused",
)
MOST_LABEL = 160  # characters


@dataclass(frozen=True)
class ExtraColumn:
    """One column by its folder."""

    name: str
    folder: Path
    kind: str  # "decoder", "adapter" or "memory"
    label: str = ""  # none: made of kind and name
    seconds: float = 0.0  # what making it took beyond the decoder
    lmbda: float | None = None  # of a memory; None: its own


def extra_column(text: str) -> ExtraColumn:
    """Return the column of "NAME=FOLDER"; MlpMemError says what is wrong with it."""
    name, _, place = text.partition("=")
    if not place:
        raise MlpMemError(f"column {text[:80]!r}: give NAME=FOLDER")
    check_name(name)
    return ExtraColumn(name, Path(place), kind_of(Path(place)))


def check_name(name: str) -> None:
    """Raise MlpMemError unless a column may be called so: it becomes a folder, an id, a label."""
    if not NAME.fullmatch(name) or name in OWN:
        raise MlpMemError(
            f"column {name[:40]!r}: a name has small letters, digits and _, begins with a letter, "
            f"and is none of {', '.join(OWN)}; give another"
        )


def bundled(folder: Path, manifest: Mapping[str, Any]) -> list[ExtraColumn]:
    """Return the adapters that a bundle's manifest lists; none where it lists none.

    Their files are among those whose hashes the manifest gives. MlpMemError for what is malformed.
    """
    listed = manifest.get("adapters", {})
    if not isinstance(listed, dict):
        raise _malformed(folder, "its list is no object")
    found = []
    for name, row in listed.items():
        if not NAME.fullmatch(name) or name in OWN or not isinstance(row, dict):
            raise _malformed(folder, f"{name[:40]!r} is no name, or no object")
        label, seconds = row.get("label", ""), row.get("seconds", 0.0)
        took = is_number(seconds) and seconds >= 0
        if not isinstance(label, str) or len(label) > MOST_LABEL or not took:
            raise _malformed(folder, f"label or seconds of {name!r} cannot be")
        if missing := [f for f in ADAPTER_FILES if f"adapters/{name}/{f}" not in manifest["files"]]:
            raise _malformed(folder, f"{name!r} lacks {', '.join(missing)}")
        found.append(
            ExtraColumn(name, folder / "adapters" / name, "adapter", label, float(seconds))
        )
    return found


def _malformed(folder: Path, why: str) -> MlpMemError:
    """Return the error for adapters that a manifest lists wrongly."""
    return MlpMemError(f"bundle {folder.name}: its adapters cannot be used ({why}); {AGAIN}")

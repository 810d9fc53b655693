"""Extra columns, given as folders (NAME=FOLDER).

A folder's files show whether it holds a LoRA adapter of the model's decoder, another memory for it,
or another decoder. This module loads no weights and needs no torch; `registry.py` builds systems.
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
    name: str
    folder: Path
    kind: str  # "decoder", "adapter" or "memory"
    label: str = ""  # "" for a default label
    seconds: float = 0.0  # training time beyond the decoder's
    lmbda: float | None = None  # of a memory; None: the memory's default


def extra_column(text: str) -> ExtraColumn:
    """Return the column of "NAME=FOLDER"; MlpMemError if it is malformed."""
    name, _, folder = text.partition("=")
    if not folder:
        raise MlpMemError(f"column {text[:80]!r}: give NAME=FOLDER")
    check_name(name)
    return ExtraColumn(name, Path(folder), kind_of(Path(folder)))


def check_name(name: str) -> None:
    """Raise MlpMemError unless name is valid: it becomes a folder, an HTML id and a label."""
    if not NAME.fullmatch(name) or name in OWN:
        raise MlpMemError(
            f"column name {name[:40]!r} must begin with a small letter, have at most 32 small "
            f"letters, digits and _, and differ from {', '.join(OWN)}; give another"
        )


def bundled(folder: Path, manifest: Mapping[str, Any]) -> list[ExtraColumn]:
    """Return the adapters that a bundle's manifest lists.

    MlpMemError for a malformed entry, or one whose files the manifest does not list.
    """
    listed = manifest.get("adapters", {})
    if not isinstance(listed, dict):
        raise _malformed(folder, "'adapters' must be a JSON object")
    columns = []
    for name, row in listed.items():
        if not NAME.fullmatch(name) or name in OWN or not isinstance(row, dict):
            raise _malformed(folder, f"the name or entry of {name[:40]!r} is invalid")
        label, seconds = row.get("label", ""), row.get("seconds", 0.0)
        valid_seconds = is_number(seconds) and seconds >= 0
        if not isinstance(label, str) or len(label) > MOST_LABEL or not valid_seconds:
            raise _malformed(folder, f"the label or seconds of {name!r} are invalid")
        if missing := [f for f in ADAPTER_FILES if f"adapters/{name}/{f}" not in manifest["files"]]:
            raise _malformed(folder, f"{name!r} lacks {', '.join(missing)}")
        columns.append(
            ExtraColumn(name, folder / "adapters" / name, "adapter", label, float(seconds))
        )
    return columns


def _malformed(folder: Path, why: str) -> MlpMemError:
    return MlpMemError(f"bundle {folder.name}: its adapters cannot be used ({why}); {AGAIN}")

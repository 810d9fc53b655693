"""A run's checkpoint: master weights, optimizer state and progress in one file, with their hash.

A checkpoint is written to a temporary file and renamed, and the previous one is kept. If the newest
is damaged, training resumes from the previous one. If both are, they are renamed and an error says
so. A checkpoint does not depend on the number of processes, so a resumed run may have another.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mlpmem.errors import MlpMemError
from train.files import print_line
from train.fit.optimizer import MasterOptimizer

DAMAGED = ".damaged"  # suffix of a file that cannot be used
READ_ERRORS = (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)


@dataclass
class Progress:
    """A run's progress; checkpoints have these fields by name."""

    step: int = 0  # the next one
    history: list[dict] = field(default_factory=list)  # one dict per log line
    seconds: float = 0.0  # used so far, including killed runs
    usual: list[float] = field(default_factory=list)  # recent losses, see LossMonitor


def previous(path: Path) -> Path:
    """Return the path of the previous checkpoint."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def checkpoint_files(path: Path) -> list[Path]:
    """Return the paths of a checkpoint, the previous one and damaged ones, existing or not."""
    both = [path, previous(path)]
    return both + [file.with_name(file.name + DAMAGED) for file in both]


def discard(path: Path) -> None:
    """Delete a checkpoint, the previous one and damaged ones."""
    for file in checkpoint_files(path):
        file.unlink(missing_ok=True)


def save_checkpoint(path: Path, optimizer: MasterOptimizer, progress: Progress) -> None:
    """Write master weights, optimizer state and progress; the newest becomes the previous one."""
    previous(path).unlink(missing_ok=True)  # at most two files at once, because they are large
    temporary = _write(path, optimizer.state(), {"progress": json.dumps(asdict(progress))})
    if path.is_file():
        os.replace(path, previous(path))
    _rename(temporary, path)


def load_checkpoint(path: Path, optimizer: MasterOptimizer, label: str) -> Progress:
    """Restore the optimizer and return the progress; without a checkpoint, that of a new run.

    MlpMemError if all checkpoints are damaged.
    """
    existing = [file for file in (path, previous(path)) if file.is_file()]
    fault = ""
    for file in existing:
        try:
            tensors, metadata = read_tensors(file)
            progress = Progress(**json.loads(metadata["progress"]))
            optimizer.restore(tensors)
        except READ_ERRORS as error:
            fault = fault or f"{file.name} is damaged ({_first_line(error)})"
            continue
        if file != path:
            fault = fault or f"{path.name} is missing"
            print_line(f"{label}: {fault}; resumes from {file.name} at step {progress.step + 1}")
        return progress
    if existing:
        raise mark_damaged(existing, label, fault)
    return Progress()


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors with their hash, completely or not at all."""
    _rename(_write(path, tensors, {}), path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's tensors and metadata; one of READ_ERRORS if the file is damaged."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if metadata.get("sha256", sha256 := _hash(tensors)) != sha256:
        raise ValueError("its tensors do not have the sha256 in its metadata")
    return tensors, metadata


def mark_damaged(paths: Iterable[Path], label: str, fault: str) -> MlpMemError:
    """Rename files that cannot be used; return the error with the next step."""
    existing = [path for path in paths if path.is_file()]
    for path in existing:
        os.replace(path, path.with_name(path.name + DAMAGED))
    names = ", ".join(path.name + DAMAGED for path in existing)
    return MlpMemError(
        f"{label}: {fault}, and no intact file is left to resume from. Renamed in "
        f"{existing[0].parent}: {names}. Run the same command again to train from the first step"
    )


def used_seconds(path: Path) -> float:
    """Return the seconds used by a checkpoint's run; 0 without a readable checkpoint."""
    for candidate in (path, previous(path)):
        try:
            with safe_open(candidate, framework="pt") as file:
                return float(json.loads(file.metadata()["progress"])["seconds"])
        except (OSError, *READ_ERRORS):
            continue
    return 0.0


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> Path:
    """Write tensors to a temporary file next to path, flushed to disk; return its path."""
    temporary = path.with_name(path.name + ".new")
    copies = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(copies, temporary, metadata | {"sha256": _hash(copies)})
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    return temporary


def _rename(temporary: Path, path: Path) -> None:
    """Rename a temporary file to path, flushed to disk."""
    os.replace(temporary, path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def _hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of the names, types, shapes and bytes of tensors on the CPU."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    """Return the first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

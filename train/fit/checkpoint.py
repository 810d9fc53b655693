"""A training's checkpoint: masters, optimizer state and progress in one file, with their hash.

It is written beside its place and renamed, and the one before it is kept. Where the newest is
damaged, training goes on from that; where both are, they are put aside and it says so once. Nothing
in it hangs on the number of processes, so a resumed run may have another.
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

DAMAGED = ".damaged"  # behind the name of a file that was put aside
BROKEN = (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)


@dataclass
class Progress:
    """How far a run is, for its checkpoint."""

    step: int = 0  # the next one
    history: list[dict] = field(default_factory=list)  # a dict a log line
    seconds: float = 0.0  # used so far, over all runs that were killed
    usual: list[float] = field(default_factory=list)  # losses before, as Watch has them


def previous(path: Path) -> Path:
    """Return where the checkpoint before the newest is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def files(path: Path) -> list[Path]:
    """Return all places of a checkpoint, whether something is there or not."""
    both = [path, previous(path)]
    return both + [place.with_name(place.name + DAMAGED) for place in both]


def discard(path: Path) -> None:
    """Remove a checkpoint, and the one before it."""
    for place in files(path):
        place.unlink(missing_ok=True)


def save_checkpoint(path: Path, optimizer: MasterOptimizer, progress: Progress) -> None:
    """Write masters, optimizer state and progress; what was newest is kept as the one before."""
    previous(path).unlink(missing_ok=True)  # never three at once: they may be the largest files
    beside = _written(path, optimizer.state(), {"progress": json.dumps(asdict(progress))})
    if path.is_file():
        os.replace(path, previous(path))
    _put(beside, path)


def load_checkpoint(path: Path, optimizer: MasterOptimizer, label: str) -> Progress:
    """Return a run's progress and restore the optimizer; a beginning where there is no checkpoint.

    MlpMemError where there is none that can be used.
    """
    there = [place for place in (path, previous(path)) if place.is_file()]
    why = ""
    for place in there:
        try:
            tensors, metadata = read_tensors(place)
            progress = Progress(**json.loads(metadata["progress"]))
            optimizer.restore(tensors)
        except BROKEN as error:
            why = why or f"{place.name} is damaged ({_first_line(error)})"
            continue
        if place != path:
            lost = why or f"{path.name} is missing"
            print_line(
                f"{label}: {lost}; goes on from the one before it, at step {progress.step + 1}"
            )
        return progress
    if there:
        raise put_aside(there, label, why)
    return Progress()


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors with their hash, whole or not at all."""
    _put(_written(path, tensors, {}), path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's tensors and metadata; one of BROKEN where they are not what was written."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if metadata.get("sha256", found := _hash(tensors)) != found:
        raise ValueError("its sha256 is not the one that was written")
    return tensors, metadata


def put_aside(paths: Iterable[Path], label: str, why: str) -> MlpMemError:
    """Rename files that cannot be used; return the error that says so and what to do."""
    there = [path for path in paths if path.is_file()]
    for path in there:
        os.replace(path, path.with_name(path.name + DAMAGED))
    names = ", ".join(path.name + DAMAGED for path in there)
    return MlpMemError(
        f"{label}: {why}, and there is no other to go on from. Put aside in {there[0].parent} as "
        f"{names}; run the same command again to begin this training at its first step"
    )


def used_seconds(path: Path) -> float:
    """Return the seconds that a checkpoint's run had used, 0 without one that can be read."""
    for place in (path, previous(path)):
        try:
            with safe_open(place, framework="pt") as file:
                return float(json.loads(file.metadata()["progress"])["seconds"])
        except (OSError, *BROKEN):
            continue
    return 0.0


def _written(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> Path:
    """Write tensors beside a place, to the disk itself; return where."""
    beside = path.with_name(path.name + ".new")
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(kept, beside, metadata | {"sha256": _hash(kept)})
    with beside.open("rb+") as file:
        os.fsync(file.fileno())
    return beside


def _put(beside: Path, path: Path) -> None:
    """Rename a written file to its place, to the disk itself."""
    os.replace(beside, path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def _hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of tensors on the CPU: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    """Return the first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

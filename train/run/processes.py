"""The process group of a launch (rank, share of the work, barriers), and the lock of a stage.

`accelerate launch` or torchrun starts several processes, on machines that share a disk. Otherwise
there is one process, and accelerate is not imported. Only one run at a time may write a stage's
folder. The operating system releases its lock when the process ends; a note names the holder.
"""

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

import torch
from filelock import FileLock, Timeout

from mlpmem.errors import MlpMemError
from train.files import print_line, read_json, write_json

T = TypeVar("T")

TIMEOUT = timedelta(days=30)  # of a barrier: other processes wait through whole stages of rank 0
# environment variables of a launcher: the first is torchrun's and accelerate's, others are mpirun's
LOCAL_RANKS = (
    "LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "MV2_COMM_WORLD_LOCAL_RANK",
)

# further variables and prefixes; a process outside of the group must not inherit them
LAUNCHER_NAMES = (
    *LOCAL_RANKS, "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
    "ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
LAUNCHER_PREFIXES = ("TORCHELASTIC_", "OMPI_", "PMI_", "PMIX_", "MPI_", "MV2_")


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that run this command."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Return whether this process handles locks, manifests and renames."""
        return self.rank == 0

    def share(self, todo: Sequence[T]) -> Sequence[T]:
        """Return this process's part of the work; the parts are disjoint and complete."""
        return todo[self.rank :: self.world]

    def wait(self) -> None:
        """Wait until every process of the group has called this."""
        if self.world > 1:
            torch.distributed.barrier()


def launched() -> bool:
    """Return whether a launcher started this process, which must then start no workers itself."""
    return any(name in os.environ for name in LOCAL_RANKS)


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the launcher's variables."""
    return {
        name: value
        for name, value in environment.items()
        if name not in LAUNCHER_NAMES and not name.startswith(LAUNCHER_PREFIXES)
    }


def process_group() -> ProcessGroup:
    """Return the process group of this command, connected on the first call."""
    if not launched():
        return ProcessGroup(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)
    return ProcessGroup(state.process_index, state.num_processes, state.device)


def close_group() -> None:
    """Close the group's connections, if there are any."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


FOLDER = ".locks"  # below the run's root
NOTES: set[Path] = set()  # files that name this process as the holder of a lock


@contextmanager
def lock_stage(root: Path, name: str) -> Iterator[None]:
    """Hold the lock of a stage; MlpMemError with the holder if another run has it."""
    folder = root / FOLDER
    lock, note = FileLock(folder / f"{name}.lock"), folder / f"{name}.json"
    note.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise _locked(root, name) from None
    try:
        if note.is_file():
            print_line(f"{name}: taken over from a killed run ({_holder(note)})")
        since = datetime.now().isoformat(" ", "seconds")
        write_json(note, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        NOTES.add(note)
        yield
    finally:
        NOTES.discard(note)
        note.unlink(missing_ok=True)
        lock.release()


def delete_notes() -> None:
    """Delete this process's notes before a signal ends it; the system releases its locks."""
    for note in list(NOTES):
        note.unlink(missing_ok=True)


def check_unlocked(root: Path) -> None:
    """Raise MlpMemError if a run holds the lock of any stage below root."""
    folder = root / FOLDER
    for path in sorted(folder.rglob("*.lock")):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise _locked(root, path.relative_to(folder).with_suffix("").as_posix()) from None
        lock.release()


def _locked(root: Path, name: str) -> MlpMemError:
    """Return the error for a stage whose lock another run holds."""
    return MlpMemError(
        f"{name}: another run is working in {root}: {_holder(root / FOLDER / f'{name}.json')}. "
        "Wait until it ends, stop it, or choose another folder with --runs"
    )


def _holder(note: Path) -> str:
    """Return the process that wrote the note, if it can be read."""
    try:
        holder = read_json(note)
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "an unknown process, whose note is missing or unreadable"

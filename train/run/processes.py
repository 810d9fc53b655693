"""Several processes at one stage: rank, share of the work, barriers, and the lock of a stage.

`accelerate launch` or torchrun starts them, on machines that share a disk; otherwise there is one
process, and accelerate is not imported. One run at a time works in a stage's folder: the operating
system locks it and releases the lock when the process ends, and a note names the holder.
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

PATIENCE = timedelta(days=30)  # the others wait as long as a stage of the first process takes
# torchrun and accelerate launch set the first; mpirun, which accelerate needs for its --cpu, others
MARKS = (
    "LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "MV2_COMM_WORLD_LOCAL_RANK",
)

# what a launcher tells its processes; who is started by one of them alone must not hear it
TOLD = (
    *MARKS, "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
TOLD_BY = ("TORCHELASTIC_", "OMPI_", "PMI_", "PMIX_", "MPI_", "MV2_")


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that run this command."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Return whether this process keeps the books: locks, manifests, renames."""
        return self.rank == 0

    def share(self, todo: Sequence[T]) -> Sequence[T]:
        """Return this process's part of the work; the parts are disjoint and make up all of it."""
        return todo[self.rank :: self.world]

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.world > 1:
            torch.distributed.barrier()


def launched() -> bool:
    """Return whether a launcher started this process as one of several: it then starts none."""
    return any(mark in os.environ for mark in MARKS)


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what a launcher told this process."""
    return {
        name: value
        for name, value in environment.items()
        if name not in TOLD and not name.startswith(TOLD_BY)
    }


def process_group() -> ProcessGroup:
    """Return the processes of this command, connected at the first call."""
    if not launched():
        return ProcessGroup(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    return ProcessGroup(state.process_index, state.num_processes, state.device)


def close_group() -> None:
    """Close the connections, so that a process that ends leaves none half open."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


FOLDER = ".locks"  # below the run's root
NOTES: set[Path] = set()  # of the locks that this process holds


@contextmanager
def lock_stage(root: Path, name: str) -> Iterator[None]:
    """Hold the lock of a stage; MlpMemError says who holds it if another run does."""
    folder = root / FOLDER
    lock, note = FileLock(folder / f"{name}.lock"), folder / f"{name}.json"
    note.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise _held(root, name) from None
    try:
        if note.is_file():
            print_line(f"{name}: taken over from a run that was killed ({_holder(note)})")
        since = datetime.now().isoformat(" ", "seconds")
        write_json(note, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        NOTES.add(note)
        yield
    finally:
        NOTES.discard(note)
        note.unlink(missing_ok=True)
        lock.release()


def delete_notes() -> None:
    """Delete this process's notes before it ends by a signal; the system frees its locks."""
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
            raise _held(root, path.relative_to(folder).with_suffix("").as_posix()) from None
        lock.release()


def _held(root: Path, name: str) -> MlpMemError:
    """Return what to say where another run holds a stage's lock."""
    return MlpMemError(
        f"{name}: another run is at work in {root}: {_holder(root / FOLDER / f'{name}.json')}. "
        "Wait until it ends, stop it there, or choose another folder with --runs"
    )


def _holder(note: Path) -> str:
    """Return who wrote the note, as far as it can be read."""
    try:
        who = read_json(note)
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "a process that left no note"

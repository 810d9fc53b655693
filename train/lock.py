"""One run at a time in a stage's folder: a lock of the operating system, with a note of who has it.

The system lets go when a process dies, however it dies, so no lock outlives its holder; the note
only tells a person whom to look for.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from mlpmem.errors import MlpMemError
from train.files import read_json, say, write_json

FOLDER = ".locks"  # below the run's root


@contextmanager
def hold(root: Path, name: str) -> Iterator[None]:
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
            say(f"{name}: taken over from a run that was killed ({_holder(note)})")
        since = datetime.now().isoformat(" ", "seconds")
        write_json(note, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def check_free(root: Path) -> None:
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

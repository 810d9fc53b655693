"""Processes that take turns, each alone with its piece of work: its peak memory is its own.

What a bench of training is told; its figures are those of mlpmem.bench.
"""

import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpmem.bench.figures import Figure
from mlpmem.errors import MlpMemError


class Turn:
    """One process that waits, does its work when called, and says what memory that took."""

    def __init__(self, prepare: Callable[..., Callable[[], object]], *arguments: Any) -> None:
        """Start a process that calls `prepare(*arguments)`, whose result is the work."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, prepare, arguments), daemon=True
        )
        self._process.start()
        theirs.close()

    def __call__(self) -> None:
        """Have the work done once."""
        self._ask("work")

    def memory(self) -> tuple[int, int]:
        """Return (peak, bytes of it that were there before `prepare` was called)."""
        return self._ask("memory")

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()

    def _ask(self, what: str) -> Any:
        """Return the process's answer; MlpMemError if it failed."""
        try:
            self._pipe.send(what)
            answer = self._pipe.recv()
        except (EOFError, OSError):
            answer = "its process ended; was there too little memory?"
        if isinstance(answer, str):
            raise MlpMemError(f"bench: {answer}")
        return answer


def _serve(pipe: Any, prepare: Callable, arguments: tuple) -> None:
    """Answer until the other end is gone."""
    import torch

    from train.run.machine import synchronise

    on_gpu = torch.cuda.is_available() and "cuda" in map(str, arguments)
    before = 0 if on_gpu else peak_resident()
    work = None
    while True:
        try:
            what = pipe.recv()
        except EOFError:
            return
        try:
            work = work or prepare(*arguments)
            if what == "work":
                work()
                synchronise("cuda" if on_gpu else "cpu")
                pipe.send(())
            else:
                peak = torch.cuda.max_memory_allocated() if on_gpu else peak_resident()
                pipe.send((peak, before))
        except Exception as error:  # told to who asked, who ends the run
            pipe.send(f"{type(error).__name__}: {error}")


def peak_resident() -> int:
    """Return the largest resident memory of this process alone, bytes.

    On Linux the figure of getrusage begins with that of the process that started this one.
    """
    status = Path("/proc/self/status")
    if sys.platform == "linux" and status.is_file():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    from train.run.machine import peak_memory

    return peak_memory()


__all__ = ["Figure", "Options"]


@dataclass(frozen=True)
class BenchOptions:
    """What every bench is told."""

    peer: Path | None = None  # a checkout of the released code, to measure against
    keys: Path | None = None  # a datastore's folder, to search beside made keys
    entries: int = 100_000  # made keys
    device: str = "cpu"  # a torch device
    compile: bool = False  # whether a step is measured with torch.compile and without

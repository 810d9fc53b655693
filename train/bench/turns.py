"""Processes that take turns, so that each has its own peak memory; and the options of a bench."""

import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpmem.bench.figures import Figure
from mlpmem.errors import MlpMemError


class Turn:
    """One process that runs its work on call, and reports its memory."""

    def __init__(self, prepare: Callable[..., Callable[[], object]], *arguments: Any) -> None:
        """Start a process whose work is the function that `prepare(*arguments)` returns."""
        context = multiprocessing.get_context("spawn")
        self._pipe, other_end = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(other_end, prepare, arguments), daemon=True
        )
        self._process.start()
        other_end.close()

    def __call__(self) -> None:
        """Run the work once."""
        self._request("work")

    def memory(self) -> tuple[int, int]:
        """Return (peak, memory before `prepare` was called), in bytes."""
        return self._request("memory")

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()

    def _request(self, kind: str) -> Any:
        """Return the process's answer to "work" or "memory"; MlpMemError if it failed."""
        try:
            self._pipe.send(kind)
            answer = self._pipe.recv()
        except (EOFError, OSError):
            answer = "a process ended, perhaps for lack of memory; free some and run again"
        if isinstance(answer, str):
            raise MlpMemError(f"bench: {answer}")
        return answer


def _serve(pipe: Any, prepare: Callable, arguments: tuple) -> None:
    """Answer requests until the other end of the pipe is closed."""
    import torch

    from train.run.machine import synchronise

    on_gpu = torch.cuda.is_available() and "cuda" in map(str, arguments)
    before = 0 if on_gpu else peak_resident()
    work = None
    while True:
        try:
            kind = pipe.recv()
        except EOFError:
            return
        try:
            work = work or prepare(*arguments)
            if kind == "work":
                work()
                synchronise("cuda" if on_gpu else "cpu")
                pipe.send(())
            else:
                peak = torch.cuda.max_memory_allocated() if on_gpu else peak_resident()
                pipe.send((peak, before))
        except Exception as error:  # raised as MlpMemError in the parent
            pipe.send(f"{type(error).__name__}: {error}")


def peak_resident() -> int:
    """Return the peak resident memory of only this process, in bytes.

    On Linux, getrusage includes the peak of the parent process, so /proc is read.
    """
    status = Path("/proc/self/status")
    if sys.platform == "linux" and status.is_file():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    from train.run.machine import peak_memory

    return peak_memory()


__all__ = ["Figure", "BenchOptions"]


@dataclass(frozen=True)
class BenchOptions:
    """Options of every bench."""

    peer: Path | None = None  # checkout of the released code to compare with
    keys: Path | None = None  # folder of a datastore to search as well
    entries: int = 100_000  # synthetic keys
    device: str = "cpu"  # a torch device
    compile: bool = False  # measure a step with and without torch.compile
    out: Path = Path("gpu.json")  # file of the bench "gpu"

"""Whether kernels are compiled here, and the process that compiles them.

A process of its own compiles: the compiler takes half a minute and 200 MB, and would hold Python's
lock while answers are computed. What it compiled is cached, and read from there in a second.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

COMPILE = "MLPMEM_COMPILE"  # environment variable; 0 disables compiled kernels
POLL = 0.1  # seconds


def has_numba() -> bool:
    """Return whether numba is installed, without importing it."""
    return find_spec("numba") is not None


def compiles() -> bool:
    """Return whether kernels can be compiled: numba is installed and not disabled."""
    return has_numba() and os.environ.get(COMPILE) != "0"


def is_cached(dtype: str) -> bool:
    """Return whether all kernels for a dtype were compiled for this processor before."""
    from mlpmem.fast.kernels import note

    place = note(dtype)
    return place is not None and place.exists()


def compile_apart(dtype: str) -> None:
    """Compile the kernels for a dtype in a process of its own, unless they are cached.

    While another process compiles them, wait for it. If that fails, nothing is cached. RuntimeError
    if the main thread ends meanwhile.
    """
    from mlpmem.fast.kernels import note

    if is_cached(dtype) or (place := note(dtype)) is None or not sys.executable:
        return
    with _turn(place):
        if not is_cached(dtype):
            _compile(dtype)


@contextmanager
def _turn(place: Path) -> Iterator[None]:
    """Wait until no other process compiles what a file will note, and keep others waiting.

    The system releases the lock of a process that ends. Without locks, nobody waits.
    """
    from filelock import FileLock, Timeout  # torch needs it, so it is there

    lock = FileLock(f"{place}.lock")
    try:
        while not lock.is_locked:
            check_running()
            try:
                lock.acquire(timeout=POLL)
            except Timeout:
                continue
            except (OSError, NotImplementedError):  # a file system without locks
                break
        yield
    finally:
        lock.release()


def check_running() -> None:
    """Raise RuntimeError if the main thread has ended, so that the process can end."""
    if not threading.main_thread().is_alive():
        raise RuntimeError("the process ends")


def _compile(dtype: str) -> None:
    """Compile the kernels for a dtype in another process, and wait for it."""
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mlpmem.fast", dtype]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, **quiet) as process:
        while True:
            try:
                process.wait(POLL)
                return
            except subprocess.TimeoutExpired:
                try:
                    check_running()
                except RuntimeError:
                    process.terminate()
                    raise

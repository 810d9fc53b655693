"""Whether kernels are compiled here, and the process that compiles them.

A process of its own compiles: the compiler takes half a minute and 200 MB, and would hold Python's
lock while answers are computed. What it compiled is cached, and read from there in a second.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from weakref import WeakSet

from mlpmem.errors import MlpMemError

COMPILE = "MLPMEM_COMPILE"  # environment variable; 0 disables compiled kernels
PRODUCTS = "products"  # name of the kernels that families without a compiled step use
POLL = 0.1  # seconds
COMPILING = threading.Lock()  # held while this process compiles
_REFUSED: WeakSet[Any] = WeakSet()  # whose weights cannot be read in the form that kernels need


def has_numba() -> bool:
    """Return whether numba is installed, without importing it."""
    return find_spec("numba") is not None


def compiles() -> bool:
    """Return whether kernels can be compiled: numba is installed and not disabled."""
    return has_numba() and os.environ.get(COMPILE) != "0"


def is_cached(name: str) -> bool:
    """Return whether all kernels of a name were compiled for this processor before.

    A name is a dtype of a Llama's weights, or PRODUCTS.
    """
    from mlpmem.fast.kernels import note

    place = note(name)
    return place is not None and place.exists()


def in_background(name: str, use: Callable[[], None], user: Any) -> None:
    """Start a thread that compiles kernels in a process of its own, and then calls `use`.

    `user` is what uses them; if its weights cannot be read, it is not tried again. This process
    waits for the thread at its end: one that ends within the compiler is aborted. What was compiled
    until then is cached. While another thread compiles, do nothing.
    """
    if compiles() and not COMPILING.locked() and user not in _REFUSED:
        arguments = name, use, user
        thread = threading.Thread(target=_compile_and_use, args=arguments, name="compile")
        thread.daemon = False
        thread.start()


def _compile_and_use(name: str, use: Callable[[], None], user: Any) -> None:
    """Compile, then use what was compiled. If that fails, torch's operators stay in use."""
    if not COMPILING.acquire(blocking=False):
        return
    try:
        compile_apart(name)
        use()
    except MlpMemError as error:  # of weights that are read now
        sys.stderr.write(f"mlpmem: {error}; until then decoding is slower\n")
        _REFUSED.add(user)
    except Exception as error:  # numba's and llvm's own, on unknown machines
        if not threading.main_thread().is_alive():
            return  # the process ends
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        sys.stderr.write(f"mlpmem: numba cannot compile here ({why}); decoding is slower\n")
        os.environ[COMPILE] = "0"
    finally:
        COMPILING.release()


def compile_apart(name: str) -> None:
    """Compile the kernels of a name in a process of its own, unless they are cached.

    While another process compiles them, wait for it. If that fails, nothing is cached. RuntimeError
    if the main thread ends meanwhile.
    """
    from mlpmem.fast.kernels import note

    if is_cached(name) or (place := note(name)) is None or not sys.executable:
        return
    with _turn(place):
        if not is_cached(name):
            _compile(name)


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


def _compile(name: str) -> None:
    """Compile the kernels of a name in another process, and wait for it."""
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mlpmem.fast", name]
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

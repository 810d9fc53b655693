"""This machine: disk and memory in total, free and used, and its best rates.

The rates are those of a large matmul and of a copy, measured now. `alternate` times several pieces
of work in turns, so that other load on the machine affects all of them alike.
"""

import errno
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from mlpmem.loading.capacity import allowed

NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # disk, quota
CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
MAXRSS = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
FULL = 2**20  # bytes free; with less a write that failed, failed for want of room


def free_disk(root: Path) -> int:
    """Return the bytes free where root is or will be."""
    here = root.absolute()
    return shutil.disk_usage(next(p for p in (here, *here.parents) if p.exists())).free


def gpu_memory() -> int | None:
    """Return the bytes of the GPU that would compute, None where a CPU would."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return None


def host_memory() -> int:
    """Return the bytes that this process may use of the machine's own memory."""
    return allowed().total


def is_full(error: Exception, folder: Path) -> bool:
    """Return whether a write failed because the disk of folder is full, or a quota used up.

    Not every library says so by an OSError with the number for it.
    """
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return True
    if "No space left" in str(error):
        return True
    return isinstance(error, OSError) and shutil.disk_usage(folder).free < FULL


def forget_peak() -> None:
    """Begin a new peak of this process; only Linux can, elsewhere it stays the whole command's."""
    with suppress(OSError):
        CLEAR.write_text("5")


def peak_memory() -> int:
    """Return the largest resident memory of this process so far, bytes; see forget_peak."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    if STATUS.is_file():
        rows = STATUS.read_text("ascii", "replace").splitlines()
        found = [int(row.split()[1]) for row in rows if row.startswith("VmHWM:")]
        if found:
            return 1024 * found[0]
    return MAXRSS * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices
COPY = 256 * 2**20  # bytes, beyond a CPU's caches


def synchronise(device: str | torch.device) -> None:
    """Wait until the device has done what it was given."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)


def alternate(
    work: dict[str, Callable[[], object]], rounds: int = 3, device: str = "cpu"
) -> dict[str, float]:
    """Return the least seconds of each piece of work, run in turns after one round to warm up."""
    best = dict.fromkeys(work, float("inf"))
    for number in range(rounds + 1):
        for name, function in work.items():
            synchronise(device)
            start = time.perf_counter()
            function()
            synchronise(device)
            if number:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def matmul_work(device: str = "cpu", dtype: torch.dtype = torch.float32):
    """Return (work, FLOP) of one large matmul A @ B.T in dtype."""
    side = SIDE.get(torch.device(device).type, SIDE["cpu"])
    a = torch.ones(side, side, device=device, dtype=dtype)
    b = torch.ones(side, side, device=device, dtype=dtype)
    return lambda: a @ b.T, 2 * side**3


def matmul_rate(device: str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """Return FLOP/s of a large matmul in dtype."""
    work, flop = matmul_work(device, dtype)
    return flop / alternate({"": work}, device=device)[""]


def copy_rate(device: str = "cpu") -> float:
    """Return bytes/s of a large copy, read and written bytes counted."""
    source = torch.ones(COPY, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPY / alternate({"": lambda: target.copy_(source)}, device=device)[""]

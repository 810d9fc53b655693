"""This machine: disk and memory (total, free, used), and its rates of a large matmul and a copy.

`alternate` times several functions in turns, so that other load on the machine affects all alike.
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

NO_SPACE = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # disk, quota
CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
MAXRSS = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
FULL = 2**20  # bytes free; with less, a failed write is put down to a full disk


def free_disk(root: Path) -> int:
    """Return the bytes free on the disk of root, which need not exist yet."""
    path = root.absolute()
    return shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free


def gpu_memory() -> int | None:
    """Return the bytes of the GPU, None without one."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return None


def host_memory() -> int:
    """Return the bytes of the machine's main memory that this process may use."""
    return allowed().total


def is_full(error: Exception, folder: Path) -> bool:
    """Return whether a write failed because the folder's disk or quota is full.

    Not every library raises an OSError with the errno of a full disk.
    """
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return True
    if "No space left" in str(error):
        return True
    return isinstance(error, OSError) and shutil.disk_usage(folder).free < FULL


def reset_peak() -> None:
    """Reset this process's peak of memory, on Linux; elsewhere it stays that of the command."""
    with suppress(OSError):
        CLEAR.write_text("5")


def peak_memory() -> int:
    """Return the largest resident memory of this process in bytes, since reset_peak."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    if STATUS.is_file():
        rows = STATUS.read_text("ascii", "replace").splitlines()
        peaks = [int(row.split()[1]) for row in rows if row.startswith("VmHWM:")]
        if peaks:
            return 1024 * peaks[0]
    return MAXRSS * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices that are multiplied
COPY = 256 * 2**20  # bytes that are copied, more than a CPU's caches hold


def synchronise(device: str | torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)


def alternate(
    work: dict[str, Callable[[], object]], rounds: int = 3, device: str = "cpu"
) -> dict[str, float]:
    """Return the least seconds of each function, run in turns after one warm-up round."""
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
    """Return (a function that computes one large matmul A @ B.T in dtype, its FLOP)."""
    side = SIDE.get(torch.device(device).type, SIDE["cpu"])
    a = torch.ones(side, side, device=device, dtype=dtype)
    b = torch.ones(side, side, device=device, dtype=dtype)
    return lambda: a @ b.T, 2 * side**3


def matmul_rate(device: str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """Return the FLOP/s of a large matmul in dtype."""
    work, flop = matmul_work(device, dtype)
    return flop / alternate({"": work}, device=device)[""]


def copy_rate(device: str = "cpu") -> float:
    """Return the bytes/s of a large copy; read and written bytes both count."""
    source = torch.ones(COPY, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPY / alternate({"": lambda: target.copy_(source)}, device=device)[""]

"""This machine's disk and memory: what it has, what is free, what a process has used."""

import errno
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import torch

from mlpmem.cgroup import allowed

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

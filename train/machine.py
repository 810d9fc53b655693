"""This machine's disk and memory: what it has, what is free, what a process has used."""

import errno
import shutil
import sys
from pathlib import Path

import torch

from mlpmem.cgroup import allowed

NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # disk, quota
FULL = 2**20  # bytes free; with less a write that failed, failed for want of room


def free_disk(root: Path) -> int:
    """Return the bytes free where root is or will be."""
    here = root.absolute()
    return shutil.disk_usage(next(p for p in (here, *here.parents) if p.exists())).free


def total_memory() -> int:
    """Return the bytes of the GPU that would compute, or what this process may use of memory."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
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


def peak_memory() -> int:
    """Return the largest resident memory of this process and its ended children, bytes."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )

"""What a container, or a limit set on this process, leaves of the machine's memory.

Linux counts memory in control groups; a process may use what the tightest of its groups allows,
however much the machine has. Both generations of that interface are read (v1 and v2).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROCESS, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
FILES = {True: ("memory.max", "memory.current"),
         False: ("memory.limit_in_bytes", "memory.usage_in_bytes")}  # fmt: skip
CACHED = ("active_file", "inactive_file")  # read from disk, and given up when memory is wanted


class Allowed(NamedTuple):
    """Bytes of memory that this process may use at most, and that are free now."""

    total: int
    available: int


def allowed(process: Path = PROCESS, mount: Path = MOUNT) -> Allowed:
    """Return this machine's memory, or what the groups of this process allow of it."""
    import psutil

    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    for limit, free in _limits(process, mount):
        total, available = min(total, limit), min(available, max(0, free))
    return Allowed(total, available)


def _limits(process: Path, mount: Path) -> Iterator[tuple[int, int]]:
    """Yield (limit, bytes free below it) of every group with a limit that holds the process."""
    for folder, second in _groups(process, mount):
        limit, used = FILES[second]
        try:
            limit, used = (int((folder / name).read_text("ascii")) for name in (limit, used))
            rows = (folder / "memory.stat").read_text("ascii").splitlines()
            stat = {name: int(count) for name, count in map(str.split, rows)}
        except (OSError, ValueError):  # no such group inside a container, or no limit ("max")
            continue
        cached = sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in CACHED)
        yield limit, limit - used + cached


def _groups(process: Path, mount: Path) -> Iterator[tuple[Path, bool]]:
    """Yield (folder, whether of the second generation) of the process's groups, innermost first."""
    try:
        rows = [row.split(":", 2) for row in process.read_text("utf-8").splitlines()]
    except (OSError, ValueError):  # no Linux
        return
    for _, controllers, path in (row for row in rows if len(row) == 3):
        if controllers and "memory" not in controllers.split(","):
            continue
        base = mount / "memory" if controllers else mount
        here = base / path.lstrip("/")
        for folder in (here, *here.parents):
            yield folder, not controllers
            if folder == base:
                break

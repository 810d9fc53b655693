"""Whether a stage fits: what it needs against what this machine has, before anything is touched."""

from dataclasses import asdict
from pathlib import Path

from mlpmem.errors import MlpMemError
from train.run.machine import free_disk, gpu_memory, host_memory
from train.run.needs import Need

PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


def check_fits(need: Need, root: Path) -> dict:
    """Return the need as plain values; MlpMemError where this disk or memory is too small for it.

    What an earlier run left in the stage's folder counts as there already.
    """
    partial = root / f"{need.stage}.partial"
    there = sum(p.stat().st_size for p in partial.rglob("*") if p.is_file())
    free, gpu = free_disk(root), gpu_memory()
    if need.working - there > free:
        raise MlpMemError(
            f"{need.stage}: it needs about {size_text(need.working - there)} of disk while it runs "
            f"({size_text(need.disk)} stay), {size_text(free)} are free at {root}. Free some, give "
            "another disk with --runs, or make the recipe smaller; `python -m train plan` shows "
            "the whole ledger. Nothing was touched"
        )
    asked = {"this device": (need.memory, host_memory())}
    if gpu is not None:
        asked = {
            "the GPU": (need.memory - need.host, gpu),
            "this machine": (need.host, host_memory()),
        }
    for where, (wanted, total) in asked.items():
        if wanted > total:
            raise MlpMemError(
                f"{need.stage}: it needs about {size_text(wanted)} of memory, {where} has "
                f"{size_text(total)}. Use a larger one, or make the recipe smaller; "
                "`python -m train plan` shows the whole ledger. Nothing was touched"
            )
    return asdict(need)


def size_text(size: float) -> str:
    """Return bytes as a person reads them."""
    return number_text(size, "B")


def number_text(value: float, unit: str = "") -> str:
    """Return a number with three digits and k, M, G ... before its unit."""
    power = 0
    while abs(value) >= 999.5 and power < len(PREFIXES) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {PREFIXES[power]}{unit}".strip()

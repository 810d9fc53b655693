"""The ledger of `python -m train plan RECIPE`: what each stage needs, and what it took.

Before a stage runs, its line is an estimate. Afterwards the line has the estimate from its start
and the figures of its manifest. `check_fits` compares a stage's need with the machine.
"""

import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mlpmem.errors import MlpMemError
from train.config.tables import Recipe
from train.files import print_line
from train.run.machine import free_disk, gpu_memory, host_memory, matmul_rate
from train.run.needs import Need, needs
from train.run.stage import finished_manifest

PROBE = 64 * 2**20  # bytes written to measure the disk
HEAD = ("stage", "tokens", "entries", "disk", "at most", "memory", "FLOP", "time",
        "| took", "disk", "memory")  # fmt: skip


@dataclass(frozen=True)
class Device:
    """Sizes and rates of a device; measured in a few seconds, so correct to about 10 %."""

    name: str
    rates: dict[str, float]  # FLOP/s of a large matmul, by dtype
    disk_rate: float  # bytes/s written and flushed
    disk: int  # free bytes
    memory: int  # bytes


def print_ledger(recipe: Recipe, root: Path, tflops: float | None = None) -> None:
    """Print what every stage of a recipe needs, and what finished stages took.

    tflops: TFLOP/s of a large matmul on another device; None: this device, measured.
    """
    for line in ledger(recipe, root, tflops):
        print_line(line)


def ledger(recipe: Recipe, root: Path, tflops: float | None = None) -> list[str]:
    """Return the ledger's lines."""
    needed = needs(recipe, root)
    manifests = {name: finished_manifest(root / name) for name in needed}
    for name, manifest in manifests.items():
        if manifest is not None and manifest.get("need"):
            needed[name] = Need(**manifest["need"])
    dtypes = sorted({need.dtype for need in needed.values()})
    device = measure(root, dtypes) if tflops is None else _hypothetical(tflops, dtypes, root)
    rows = [_row(need, device, manifests[name]) for name, need in needed.items() if need.tokens]
    stated = " (sizes as stated, without a corpus)" if recipe.stated.tokens else ""
    return [
        f"ledger of {recipe.name}{stated}; estimates for {device.name}",
        "matmul " + ", ".join(f"{number_text(r, 'FLOP/s')} in {d}" for d, r in device.rates.items())
        + f"; disk {size_text(device.disk_rate)}/s, {size_text(device.disk)} free; "
        f"{size_text(device.memory)} of memory",
        *_aligned([HEAD, *rows, _total(list(needed.values()), device, manifests)]),
    ]  # fmt: skip


def measure(root: Path, dtypes: list[str]) -> Device:
    """Return this device, with the rates of a large matmul in each dtype and of a disk write."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    name = f"this {platform.machine()} CPU, {torch.get_num_threads()} threads"
    if kind == "cuda":
        name = torch.cuda.get_device_name()
    rates = {dtype: matmul_rate(kind, getattr(torch, dtype)) for dtype in dtypes}
    return Device(name, rates, _disk_rate(root), free_disk(root), gpu_memory() or host_memory())


def _hypothetical(tflops: float, dtypes: list[str], root: Path) -> Device:
    """Return a device of `tflops` TFLOP/s in every dtype, with 1 GB/s to this machine's disk."""
    rates = dict.fromkeys(dtypes, tflops * 1e12)
    return Device(
        f"a device of {tflops:g} TFLOP/s",
        rates,
        1e9,
        free_disk(root),
        gpu_memory() or host_memory(),
    )


def _disk_rate(root: Path) -> float:
    """Return the bytes/s written and flushed to the disk of root, which need not exist yet."""
    folder = next(p for p in (root.absolute(), *root.absolute().parents) if p.exists())
    path, block = folder / f".disk-{os.getpid()}", os.urandom(2**20)
    started = time.perf_counter()
    try:
        with path.open("wb") as file:
            for _ in range(PROBE // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    finally:
        path.unlink(missing_ok=True)
    return PROBE / (time.perf_counter() - started)


def _row(need: Need, device: Device, manifest: dict | None) -> tuple[str, ...]:
    """Return the cells of a stage's line."""
    seconds = need.seconds(device.rates[need.dtype], device.disk_rate)
    took = ("|", "", "")
    if manifest is not None:
        disk = size_text(manifest["bytes"]) if "bytes" in manifest else ""
        peak = size_text(manifest["peak_memory_bytes"])
        took = f"| {time_text(manifest['seconds'])}", disk, peak
    return (
        need.stage,
        number_text(need.tokens),
        number_text(need.entries) if need.entries else "",
        size_text(need.disk),
        size_text(need.working),
        size_text(need.memory),
        number_text(need.flops) if need.flops else "",
        time_text(seconds),
        *took,
    )


def _total(
    needed: list[Need], device: Device, manifests: dict[str, dict | None]
) -> tuple[str, ...]:
    """Return the cells of the last line: bytes kept, peaks of disk and memory, FLOP and time."""
    seconds = sum(need.seconds(device.rates[need.dtype], device.disk_rate) for need in needed)
    finished = [manifest for manifest in manifests.values() if manifest is not None]
    took = "|"
    if finished:
        took = f"| {time_text(sum(manifest['seconds'] for manifest in finished))}"
    kept, most = 0, 0
    for need in needed:
        most = max(most, kept + need.working)
        kept += need.disk
    return (
        "all", "", "", size_text(kept), size_text(most), size_text(max(n.memory for n in needed)),
        number_text(sum(need.flops for need in needed)), time_text(seconds),
        took, size_text(sum(m.get("bytes", 0) for m in finished)) if finished else "",
        size_text(max(m["peak_memory_bytes"] for m in finished)) if finished else "",
    )  # fmt: skip


def time_text(seconds: float) -> str:
    """Return a time in seconds, minutes, hours or years."""
    for unit, size, least in (("years", 31_557_600, 1), ("h", 3600, 2), ("min", 60, 2)):
        if seconds >= least * size:
            return f"{seconds / size:,.3g} {unit}" if seconds / size < 1000 else (
                f"{seconds / size:,.0f} {unit}"
            )  # fmt: skip
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Return the rows as lines, with the first column left-aligned and numbers right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines = []
    for first, *cells in rows:
        line = [first.ljust(widths[0])]
        for cell, width in zip(cells, widths[1:], strict=True):
            line.append(cell.ljust(width) if cell.startswith("|") else cell.rjust(width))
        lines.append("  ".join(line).rstrip())
    return lines


PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


def check_fits(need: Need, root: Path) -> dict:
    """Return the need as plain values; MlpMemError if this disk or memory is too small for it.

    Files that a killed run left in the stage's folder count as already written.
    """
    partial = root / f"{need.stage}.partial"
    written = sum(p.stat().st_size for p in partial.rglob("*") if p.is_file())
    free, gpu = free_disk(root), gpu_memory()
    if need.working - written > free:
        raise MlpMemError(
            f"{need.stage}: it needs about {size_text(need.working - written)} of disk while it "
            f"runs ({size_text(need.disk)} stay); {size_text(free)} are free at {root}. Free some, "
            "use another disk with --runs, or make the recipe smaller. `python -m train plan` "
            "shows the whole ledger. Nothing was changed"
        )
    needed = {"this device": (need.memory, host_memory())}
    if gpu is not None:
        needed = {
            "the GPU": (need.memory - need.host, gpu),
            "this machine": (need.host, host_memory()),
        }
    for device, (size, total) in needed.items():
        if size > total:
            raise MlpMemError(
                f"{need.stage}: it needs about {size_text(size)} of memory; {device} has "
                f"{size_text(total)}. Use a larger one, or make the recipe smaller. "
                "`python -m train plan` shows the whole ledger. Nothing was changed"
            )
    return asdict(need)


def size_text(size: float) -> str:
    """Return a number of bytes with its unit: "1.5 GB"."""
    return number_text(size, "B")


def number_text(value: float, unit: str = "") -> str:
    """Return a number with three digits and a prefix (k, M, G ...) before its unit."""
    power = 0
    while abs(value) >= 999.5 and power < len(PREFIXES) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {PREFIXES[power]}{unit}".strip()

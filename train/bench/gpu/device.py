"""What `python -m train.bench gpu` runs on: the device, its peak, the code; and how it is timed."""

import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from mlpmem.errors import MlpMemError
from train.files import digest, file_hash
from train.run.machine import synchronise

ROOT = Path(__file__).parents[3]  # of both packages
# TFLOP/s of dense bfloat16 products by the makers' data sheets; the first name that fits counts
PEAKS = {
    "H200 NVL": 835.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "B200": 2250.0,
}


@dataclass(frozen=True)
class Job:
    """Where a part runs, and until when it begins further measurements."""

    device: str  # a torch device
    until: float  # seconds of time.monotonic
    peak: float | None  # FLOP/s of dense bfloat16 products, None if unknown

    @property
    def is_over(self) -> bool:
        """Return whether the part's time is used up."""
        return time.monotonic() >= self.until

    def check(self, name: str) -> None:
        """Raise MlpMemError if no time is left to measure what has this name."""
        if self.is_over:
            raise MlpMemError(f"the part's time was used up before {name}")

    def seconds(self, work: Callable[[], object], rounds: int = 5) -> list[float]:
        """Return the seconds of each round of `work`, after one to warm up.

        The device has finished before and after each. At least one round runs, and no further one
        once the job is over.
        """
        work()
        found: list[float] = []
        while len(found) < rounds and not (found and self.is_over):
            synchronise(self.device)
            start = time.perf_counter()
            work()
            synchronise(self.device)
            found.append(time.perf_counter() - start)
        return found


def check_device(device: str) -> None:
    """Raise MlpMemError unless this torch can compute on the device, cpu or cuda."""
    try:
        kind = torch.device(device).type
        if kind in ("cpu", "cuda"):
            torch.zeros(1, device=device)
            return
    except (AssertionError, RuntimeError) as error:  # no such name, no CUDA in torch, no driver
        raise MlpMemError(
            f"--device {device!r} is not available ({str(error)[:200]}); use cpu, or a GPU that "
            "this torch supports"
        ) from error
    raise MlpMemError(f"--device must be cpu, cuda or cuda:N; got {device!r}")


def device_name(device: str) -> str:
    """Return the name of a GPU as its driver gives it, "cpu" for the CPU."""
    return "cpu" if torch.device(device).type == "cpu" else torch.cuda.get_device_name(device)


def peak_flops(name: str) -> float | None:
    """Return a device's peak in dense bfloat16 products, FLOP/s; None if it is unknown.

    A slice of a GPU (MIG) has an unknown part of the whole peak.
    """
    if "MIG" in name:
        return None
    for known, peak in PEAKS.items():
        if re.search(rf"\b{known}\b", name):
            return peak * 1e12
    return None


def code_version() -> dict[str, str]:
    """Return what runs: the package's version, its commit, a hash of its files, torch's version.

    Version and commit are empty if the package is not installed, or if git knows none. The hash
    tells code apart also where git is missing or the checkout has changes.
    """
    try:
        package = version("mlpmem")
    except PackageNotFoundError:
        package = ""
    try:
        command = ["git", "rev-parse", "HEAD"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10)
        commit = done.stdout.strip() if not done.returncode else ""
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    files = [p for top in ("mlpmem", "train") for p in (ROOT / top).rglob("*.py")]
    files += (ROOT / "train" / "recipes").glob("*.toml")
    sources = digest({p.relative_to(ROOT).as_posix(): file_hash(p) for p in files})
    return {"version": package, "commit": commit, "sources": sources, "torch": torch.__version__}

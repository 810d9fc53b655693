"""What this device does at best: the rate of a large matmul and of a copy, measured here and now.

`alternate` times several pieces of work in turn, so that whatever else the machine does meets all.
"""

import time
from collections.abc import Callable

import torch

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

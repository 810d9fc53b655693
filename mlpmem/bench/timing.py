"""Timing in turns: whatever else the machine does meets every piece of work alike."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch

from mlpmem.bench.figures import Figure

Timed = Mapping[str, Sequence[float]]  # piece of work -> seconds (or ms) of every round


def in_turns(
    work: Mapping[str, Callable[[], Mapping[str, float] | None]], rounds: int
) -> dict[str, list[float]]:
    """Return what every piece of work took, round by round, after one round to warm up.

    Work that returns None is timed from outside, in ms under its own name; other work says itself
    what took how long, under names of its own.
    """
    found: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for name, function in work.items():
            start = time.perf_counter()
            said = function()
            ms = 1000 * (time.perf_counter() - start)
            for key, value in ({name: ms} if said is None else said).items():
                found.setdefault(key, [])
                if number:
                    found[key].append(value)
    return found


def timed(name: str, values: Sequence[float], unit: str = "ms", **beside: float | None) -> Figure:
    """Return the median as a Figure with its 95% interval, from the order of the values."""
    ordered, n = sorted(values), len(values)
    at = max(0, math.floor(n / 2 - 0.98 * math.sqrt(n)))  # 1.96 standard deviations of Bin(n, 1/2)
    spread = {"low": ordered[at], "high": ordered[n - 1 - at], "n": n}
    return Figure(name, median(values), unit, **spread, **beside)


def reading(size: int) -> Callable[[], None]:
    """Return work that reads `size` bytes once and does nothing else: the floor of a decode step.

    The bytes are read in the largest pieces that torch sums without converting them.
    """
    buffer = torch.ones(max(1, size // 4), dtype=torch.float32)
    return lambda: buffer.sum() and None


def ratios(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Return one / other, round by round."""
    return [a / b for a, b in zip(one, other, strict=True)]

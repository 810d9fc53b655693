"""One measured figure of a bench; a bench yields figures, no text.

Timing in turns: whatever else the machine does meets every piece of work alike.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

import torch

from mlpmem.errors import MlpMemError


@dataclass(frozen=True)
class Figure:
    """A value, how far it is from what the device allows, and how it compares with a peer.

    A unit that ends in "/s" is a rate, where more is better; elsewhere less is better.
    `times_floor` is how many times worse than the floor the value is, `ratio` how many times better
    than the peer's; None where there is no floor or no peer.
    """

    name: str  # of mlpmem.bench: bench/system/metric, then /key=value for what was varied
    value: float
    unit: str
    floor: float | None = None  # the best this device could do, in `unit`
    times_floor: float | None = field(init=False)
    peer: float | None = None  # the same work done by the peer, in `unit`
    ratio: float | None = field(init=False)
    low: float | None = None  # 95% interval of a median
    high: float | None = None
    n: int = 0  # measurements behind it, 0 where it was counted or measured once

    def __post_init__(self) -> None:
        """Derive times_floor and ratio."""
        object.__setattr__(self, "times_floor", self._better(self.floor, self.value))
        object.__setattr__(self, "ratio", self._better(self.value, self.peer))

    def _better(self, one: float | None, other: float | None) -> float | None:
        """Return how many times better `one` is than `other`."""
        if one is None or other is None:
            return None
        return one / other if self.unit.endswith("/s") else other / one

    def to_json(self) -> str:
        """Return one line of JSON; peer and interval only where there are such."""
        values = asdict(self)
        absent = ["peer", "ratio"] * (self.peer is None) + ["low", "high", "n"] * (not self.n)
        return json.dumps({k: v for k, v in values.items() if k not in absent})

    def __str__(self) -> str:
        """Return one aligned line for a person."""
        line = f"{self.name:<44}{self.value:>12,.4g} {self.unit:<10}"
        if self.low is not None:
            line += f" ({self.low:,.4g} .. {self.high:,.4g})"
        if self.floor is not None:
            line += f" {self.times_floor:7.2f} x floor ({self.floor:,.4g})"
        return line + (f" {self.ratio:7.2f} x peer" if self.peer is not None else "")


def print_figures(figures: Iterable[Figure], as_json: bool) -> int:
    """Print figures, a line each, as they come; return the exit status of a command."""
    try:
        for figure in figures:
            sys.stdout.write(f"{figure.to_json() if as_json else figure}\n")
            sys.stdout.flush()
    except MlpMemError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


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

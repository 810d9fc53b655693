"""One measured figure of a bench; a bench yields figures, no text."""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

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

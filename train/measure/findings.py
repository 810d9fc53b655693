"""One schema for whatever is measured: a finding is a number, its interval, and how to repeat it.

A task or study writes its findings to runs/<recipe>/findings/<study>.json; the results.json of a
bundle gathers them, and README's tables and the Results tab are made from that.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from train.files import read_json, write_json

Z = 1.959964  # two-sided 95%
RESAMPLES = 1000
FEWEST = 10  # documents whose tokens give an interval


@dataclass(frozen=True)
class Finding:
    """A number that was measured."""

    study: str  # the task or study: "questions", "detection", "update", "cost" ...
    system: str  # who answered: "lm", "memory", "knn", "rag", "lora" ...
    split: str  # on what: "B/test", "wikitext-2/test" ...
    metric: str  # "exact_match", "f1", "perplexity", "seconds", "bytes" ...
    value: float
    how: str  # the command that repeats it
    n: int = 0  # questions, tokens or runs behind it; 0 where that has no meaning
    low: float | None = None  # 95% interval
    high: float | None = None
    setting: Mapping[str, object] = field(default_factory=dict)  # what was varied: {"lmbda": 0.5}

    def __post_init__(self) -> None:
        """Raise ValueError for a number that is none, or lies outside its own interval."""
        numbers = [x for x in (self.value, self.low, self.high) if x is not None]
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"finding {self.study}/{self.metric}: {numbers} must be finite")
        if self.low is not None and not self.low <= self.value <= self.high:
            raise ValueError(
                f"finding {self.study}/{self.metric}: {self.value} lies outside its interval "
                f"{self.low} .. {self.high}"
            )


def share(right: Sequence[bool]) -> dict[str, float]:
    """Return {"value", "n", "low", "high"} of a share, with Wilson's interval (1927)."""
    n, p = len(right), float(np.mean(right)) if len(right) else 0.0
    if not n:
        return {"value": 0.0, "n": 0}
    middle, scale = p + Z**2 / (2 * n), 1 + Z**2 / n
    half = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    low, high = max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
    return {"value": p, "n": n, "low": min(low, p), "high": max(high, p)}


def mean(
    values: Sequence[float], of: Sequence[int] | None = None, seed: int = 0
) -> dict[str, float]:
    """Return {"value", "n", "low", "high"} of a mean, with a bootstrap percentile interval.

    Values are drawn one by one, as if independent; or with `of` (n,), what each belongs to, all of
    a document at once, for its tokens are alike. Of fewer than FEWEST documents an interval would
    say too little, and is left out.
    """
    values = np.asarray(values, np.float64)
    of = np.arange(len(values)) if of is None else np.unique(of, return_inverse=True)[1]
    sums, counts = np.bincount(of, values), np.bincount(of)
    value = {"value": float(values.mean()), "n": len(values)}
    if len(sums) < FEWEST and len(sums) < len(values):
        return value
    luck = np.random.default_rng(seed)
    some = (luck.integers(len(sums), size=len(sums)) for _ in range(RESAMPLES))
    drawn = [sums[at].sum() / counts[at].sum() for at in some]
    low, high = (float(x) for x in np.percentile(drawn, (2.5, 97.5)))
    return value | {"low": min(low, value["value"]), "high": max(high, value["value"])}


def perplexity(
    nll: Sequence[float], of: Sequence[int] | None = None, seed: int = 0
) -> dict[str, float]:
    """Return {"value", "n", "low", "high"} of exp(mean nll in nats); of: see `mean`."""
    found = mean(nll, of, seed)
    return found | {key: math.exp(x) for key, x in found.items() if key != "n"}


def save(folder: Path, study: str, findings: Iterable[Finding]) -> Path:
    """Write a study's findings, in place of its earlier ones; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{study}.json"
    write_json(path, [dataclasses.asdict(finding) for finding in findings])
    return path


def load(folder: Path) -> list[dict]:
    """Return all findings under a folder, in the order of their files' names."""
    return [row for path in sorted(folder.glob("*.json")) for row in read_json(path)]

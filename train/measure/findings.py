"""The schema of all measurements: a finding is a number, its interval, and the command for it.

A task or study writes its findings to runs/<recipe>/findings/<study>.json. A bundle's results.json
collects them, and README's tables and the Results tab are made from it.
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
FEWEST = 10  # documents that an interval needs


@dataclass(frozen=True)
class Finding:
    """A measured number."""

    study: str  # the task or study: "questions", "detection", "update", "cost" ...
    system: str  # "lm", "memory", "knn", "rag", "lora" ...
    split: str  # "B/test", "wikitext-2/test" ...
    metric: str  # "exact_match", "f1", "perplexity", "seconds", "bytes" ...
    value: float
    how: str  # the command that measures it again
    n: int = 0  # questions, tokens or runs; 0 if there are none to count
    low: float | None = None  # 95% interval
    high: float | None = None
    setting: Mapping[str, object] = field(default_factory=dict)  # what was varied: {"lmbda": 0.5}

    def __post_init__(self) -> None:
        """Raise ValueError for a number that is not finite or not within its interval."""
        numbers = [x for x in (self.value, self.low, self.high) if x is not None]
        if not all(map(math.isfinite, numbers)):
            raise ValueError(
                f"finding {self.study}/{self.metric}: numbers must be finite; got {numbers}"
            )
        if self.low is not None and not self.low <= self.value <= self.high:
            raise ValueError(
                f"finding {self.study}/{self.metric}: value must be from {self.low} to "
                f"{self.high}; got {self.value}"
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

    Values are resampled singly, or by whole documents if `of` (n,) gives the document of each,
    since tokens of one document are correlated. Fewer than FEWEST documents give no interval.
    """
    values = np.asarray(values, np.float64)
    of = np.arange(len(values)) if of is None else np.unique(of, return_inverse=True)[1]
    sums, counts = np.bincount(of, values), np.bincount(of)
    value = {"value": float(values.mean()), "n": len(values)}
    if len(sums) < FEWEST and len(sums) < len(values):
        return value
    rng = np.random.default_rng(seed)
    samples = (rng.integers(len(sums), size=len(sums)) for _ in range(RESAMPLES))
    means = [sums[at].sum() / counts[at].sum() for at in samples]
    low, high = (float(x) for x in np.percentile(means, (2.5, 97.5)))
    return value | {"low": min(low, value["value"]), "high": max(high, value["value"])}


def perplexity(
    nll: Sequence[float], of: Sequence[int] | None = None, seed: int = 0
) -> dict[str, float]:
    """Return {"value", "n", "low", "high"} of exp(mean nll in nats); `of` as in `mean`."""
    result = mean(nll, of, seed)
    return result | {key: math.exp(x) for key, x in result.items() if key != "n"}


def save(folder: Path, study: str, findings: Iterable[Finding]) -> Path:
    """Write a study's findings, replacing earlier ones; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{study}.json"
    write_json(path, [dataclasses.asdict(finding) for finding in findings])
    return path


def load(folder: Path) -> list[dict]:
    """Return all findings of a folder, sorted by file name."""
    return [row for path in sorted(folder.glob("*.json")) for row in read_json(path)]

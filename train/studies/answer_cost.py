"""What does an answer cost? The benches of `python -m mlpmem.bench`, kept as findings.

Measured of the run's bundle, or of the embedded one before the run has exported any. Times are this
machine's.
"""

from collections.abc import Iterable, Iterator

from mlpmem.bench.__main__ import figures
from mlpmem.bench.figures import Figure
from train.files import say
from train.measure.findings import Finding
from train.studies.run import Run

HOW = "python -m mlpmem.bench {}"


def answer_cost(run: Run) -> Iterator[Finding]:
    """Yield the findings of every bench; each figure is printed as it comes."""
    bundle = run.root / "export" / run.recipe.export.name
    yield from findings(_told(figures(bundle=str(bundle) if bundle.is_dir() else None)))


def findings(measured: Iterable[Figure]) -> Iterator[Finding]:
    """Yield a Finding a figure, and two more where it has a floor or a peer."""
    for figure in measured:
        bench, system, metric, *varied = figure.name.split("/")
        setting = dict(part.split("=") if "=" in part else (part, True) for part in varied)
        setting |= {k: int(v) for k, v in setting.items() if v is not True}
        common = {"study": "cost", "system": system, "split": bench, "how": HOW.format(bench)}
        common["setting"] = setting
        spread = {"low": figure.low, "high": figure.high, "n": figure.n}
        yield Finding(metric=metric, value=figure.value, **spread, **common)
        for name in ("floor", "peer"):
            if (value := getattr(figure, name)) is not None:
                yield Finding(metric=f"{metric}_{name}", value=value, n=figure.n, **common)


def _told(measured: Iterable[Figure]) -> Iterator[Figure]:
    """Yield figures, each printed as it comes."""
    for figure in measured:
        say(str(figure))
        yield figure

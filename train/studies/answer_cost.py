"""What does an answer cost? The benches of `python -m mlpmem.bench`, saved as findings.

They measure the run's bundle on this machine. No other study imports a bench.
"""

import shlex
from collections.abc import Iterable, Iterator

from mlpmem.bench.__main__ import figures
from mlpmem.bench.figures import Figure
from train.files import print_line
from train.measure.findings import Finding
from train.studies.run import Run


def answer_cost(run: Run) -> Iterator[Finding]:
    """Yield the findings of every bench; print each figure when it is measured."""
    run.manifest("export")
    bundle = (run.root / "export" / run.recipe.export.name).as_posix()
    how = f"python -m mlpmem.bench {{}} --bundle {shlex.quote(bundle)}"
    yield from findings(_print_each(figures(bundle=bundle)), how)


def findings(measured: Iterable[Figure], how: str) -> Iterator[Finding]:
    """Yield one finding per figure, and one more each for a floor and a peer.

    `how` is the command that reproduces it, with {} for the bench.
    """
    for figure in measured:
        bench, system, metric, *options = figure.name.split("/")
        setting = dict(part.split("=") if "=" in part else (part, True) for part in options)
        setting |= {k: int(v) for k, v in setting.items() if v is not True}
        common = {"study": "cost", "system": system, "split": bench, "how": how.format(bench)}
        common["setting"] = setting
        spread = {"low": figure.low, "high": figure.high, "n": figure.n}
        yield Finding(metric=metric, value=figure.value, **spread, **common)
        for name in ("floor", "peer"):
            if (value := getattr(figure, name)) is not None:
                yield Finding(metric=f"{metric}_{name}", value=value, n=figure.n, **common)


def _print_each(measured: Iterable[Figure]) -> Iterator[Figure]:
    """Yield figures and print each."""
    for figure in measured:
        print_line(str(figure))
        yield figure

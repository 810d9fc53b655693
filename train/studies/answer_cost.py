"""What answering costs, as findings: `python -m train.cost RECIPE`, of the recipe's bundle.

It runs the benches of `python -m mlpmem.bench` and writes runs/<recipe>/findings/cost.json. Times
are this machine's.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from mlpmem.bench.__main__ import figures
from mlpmem.bench.figures import Figure
from mlpmem.errors import MlpMemError
from train.config.load import run_of
from train.files import say
from train.measure.findings import Finding, save

HOW = "python -m mlpmem.bench {}"


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


def main(arguments: list[str] | None = None) -> int:
    """Measure a bundle and keep the findings; return the exit status."""
    parser = argparse.ArgumentParser("python -m train.cost", description=main.__doc__)
    parser.add_argument("recipe", nargs="?", default="atlas", help="whose findings they are")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where stages are kept")
    parser.add_argument("--bundle", help="a bundle's folder; the embedded one by default")
    given = parser.parse_args(arguments)
    try:
        folder = run_of(given.runs, given.recipe) / "findings"
        found = list(findings(_told(figures(bundle=given.bundle))))
    except MlpMemError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    say(f"kept in {save(folder, 'cost', found)}")
    return 0


def _told(measured: Iterable[Figure]) -> Iterator[Figure]:
    """Yield figures, each printed as it comes."""
    for figure in measured:
        say(str(figure))
        yield figure


if __name__ == "__main__":
    sys.exit(main())

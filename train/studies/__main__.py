"""Commands: `python -m train.studies NAME|all RECIPE`; each writes the run's findings/NAME.json.

Findings as a table: a line for what was asked of whom, a column for each metric.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from mlpmem.errors import MlpMemError
from train.config.load import load_recipe
from train.files import say
from train.measure.findings import Finding, save
from train.studies.registry import STUDIES, load_study
from train.studies.run import Run


def main(arguments: list[str] | None = None) -> int:
    """Run one study, or all that this run has the stages for; return the exit status."""
    options = _parser().parse_args(arguments)
    refused = 0
    try:
        recipe = load_recipe(options.recipe)
    except MlpMemError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for name in STUDIES if options.study == "all" else [options.study]:
        try:
            _run(Run(recipe, options.runs / recipe.name, name))
        except (MlpMemError, OSError) as error:
            sys.stderr.write(f"{error}\n")
            refused += 1
    return int(refused > 0)


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    names = ", ".join(STUDIES)
    parser = argparse.ArgumentParser("python -m train.studies", description=__doc__)
    parser.add_argument("study", choices=["all", *STUDIES], metavar="study", help=f"all, {names}")
    parser.add_argument("recipe", nargs="?", default="atlas", help="as for python -m train")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where its stages are")
    return parser


def _run(run: Run) -> None:
    """Run one study, keep its findings and print them."""
    if not run.root.is_dir():
        raise MlpMemError(
            f"{run.study}: there is no run in {run.root}; make one with `python -m train all "
            f"{run.recipe.name}`, or name its folder with --runs"
        )
    findings = list(load_study(run.study)(run))
    path = save(run.root / "findings", run.study, findings)
    say("\n".join(table(findings)))
    say(f"{run.study}: {len(findings)} findings in {path}")


def table(findings: Iterable[Finding]) -> list[str]:
    """Return aligned lines; an interval stands in brackets behind its value."""
    findings = list(findings)
    metrics = list(dict.fromkeys(f.metric for f in findings))
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for found in findings:
        setting = ", ".join(f"{k} {_short(v)}" for k, v in found.setting.items())
        rows.setdefault((found.system, found.split, setting), {})[found.metric] = _cell(found)
    head = ("system", "split", "setting", *metrics)
    cells = [head, *((*key, *(row.get(m, "") for m in metrics)) for key, row in rows.items())]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells
    ]


def _cell(found: Finding) -> str:
    """Return a value with its interval."""
    if found.low is None:
        return _short(found.value)
    return f"{_short(found.value)} [{_short(found.low)}, {_short(found.high)}]"


def _short(value: object) -> str:
    """Return a number with four digits, anything else as it is."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


if __name__ == "__main__":
    sys.exit(main())

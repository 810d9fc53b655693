"""Command: `python -m train.studies NAME|all RECIPE` writes and prints findings/NAME.json of a run.

The printed table has one line per system, split and setting, and one column per metric.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from mlpmem.errors import MlpMemError
from train.config.load import load_recipe
from train.files import print_line
from train.measure.findings import Finding, save
from train.studies.registry import STUDIES, load_study
from train.studies.run import Run


def main(arguments: list[str] | None = None) -> int:
    """Run one study or all; return the exit status, 1 if any failed."""
    args = _parser().parse_args(arguments)
    failures = 0
    try:
        recipe = load_recipe(args.recipe)
    except MlpMemError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for name in STUDIES if args.study == "all" else [args.study]:
        try:
            _run(Run(recipe, args.runs / recipe.name, name))
        except (MlpMemError, OSError) as error:
            sys.stderr.write(f"{error}\n")
            failures += 1
    return int(failures > 0)


def _parser() -> argparse.ArgumentParser:
    names = ", ".join(STUDIES)
    parser = argparse.ArgumentParser("python -m train.studies", description=__doc__)
    parser.add_argument("study", choices=["all", *STUDIES], metavar="study", help=f"all, {names}")
    parser.add_argument("recipe", nargs="?", default="atlas", help="as for python -m train")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    return parser


def _run(run: Run) -> None:
    """Run one study; save and print its findings."""
    if not run.root.is_dir():
        raise MlpMemError(
            f"{run.study}: there is no run in {run.root}; make one with `python -m train all "
            f"{run.recipe.name}`, or name its folder with --runs"
        )
    findings = list(load_study(run.study)(run))
    path = save(run.root / "findings", run.study, findings)
    print_line("\n".join(table(findings)))
    print_line(f"{run.study}: {len(findings)} findings in {path}")


def table(findings: Iterable[Finding]) -> list[str]:
    """Return aligned lines; an interval follows its value in brackets."""
    findings = list(findings)
    metrics = list(dict.fromkeys(f.metric for f in findings))
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for f in findings:
        setting = ", ".join(f"{k} {_short(v)}" for k, v in f.setting.items())
        rows.setdefault((f.system, f.split, setting), {})[f.metric] = _cell(f)
    head = ("system", "split", "setting", *metrics)
    cells = [head, *((*key, *(row.get(m, "") for m in metrics)) for key, row in rows.items())]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells
    ]


def _cell(finding: Finding) -> str:
    """Return a value with its interval."""
    low, value, high = map(_short, (finding.low, finding.value, finding.high))
    return value if finding.low is None else f"{value} [{low}, {high}]"


def _short(value: object) -> str:
    """Return a float with four significant digits, anything else unchanged."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


if __name__ == "__main__":
    sys.exit(main())

"""Commands: `python -m train.studies NAME|all RECIPE`; each writes the run's findings/NAME.json."""

import argparse
import sys
from pathlib import Path

from mlpmem.errors import MlpMemError
from train.config.load import load_recipe
from train.files import say
from train.measure.findings import save
from train.studies.registry import STUDIES, load_study
from train.studies.run import Run
from train.studies.table import table


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


if __name__ == "__main__":
    sys.exit(main())

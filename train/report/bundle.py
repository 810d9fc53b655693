"""Findings into the bundle they are about: `python -m train.report.bundle atlas`.

README's tables and the Results tab are made from a bundle's results.json; this puts what tasks and
studies found for a recipe there, in place of what was there before.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mlpmem.amend import put_results
from mlpmem.errors import MlpMemError
from mlpmem.loading.bundle import load_bundle, preset_path
from train.config.load import run_of
from train.files import read_json, say
from train.measure.findings import load


def gather(findings: Path, bundle: Path, also: Sequence[Path] = ()) -> int:
    """Return how many findings stand in the bundle's results now; MlpMemError for none.

    also: files of other runs' findings, which answer what this bundle's corpus cannot.
    """
    rows = load(findings) + [row for path in also for row in read_json(path)]
    if not rows:
        raise MlpMemError(
            f"gather: there are no findings in {findings}; run a task (`python -m train.tasks`) or "
            "a study (`python -m train.studies`) first"
        )
    results = load_bundle(bundle).read_json("results.json")
    put_results(bundle, results | {"findings": rows})
    return len(rows)


def main(argv: list[str] | None = None) -> int:
    """Gather; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.report.bundle", description=__doc__)
    parser.add_argument("recipe", nargs="?", default="atlas")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where stages are kept")
    parser.add_argument("--bundle", help="folder or preset; the embedded one")
    parser.add_argument(
        "--also", type=Path, nargs="*", default=[],
        help="findings of another run, as runs/wikitext-2/findings/domains.json",
    )  # fmt: skip
    given = parser.parse_args(argv)
    try:
        folder = preset_path(given.bundle)
        count = gather(run_of(given.runs, given.recipe) / "findings", Path(folder), given.also)
    except (MlpMemError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    say(f"{count} findings in {Path(folder).name}/results.json; now `python -m train.report`")
    return 0


if __name__ == "__main__":
    sys.exit(main())

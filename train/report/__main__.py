"""Write the READMEs' tables and figures from the bundle's results.json: `python -m train.report`.

A README names a block by <!-- NAME: begin --> and <!-- NAME: end -->; this program writes what
stands between them. Sentences with figures have a template in train/readme, one file per block. A
test fails if a README differs from the shipped results. Given the path of another results.json,
the program prints its tables instead.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from mlpmem.errors import MlpMemError
from mlpmem.results import findings
from train.report import real_text
from train.report.sentences import filled, markdown
from train.report.tables import parts, tables

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ROOT / "train" / "readme"
READMES = ("README.md", "assets/README.md", "train/README.md")  # those with blocks
BLOCK = re.compile(r"<!-- (\w+): begin -->\n.*?<!-- \1: end -->", re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the embedded bundle's tables into the READMEs, or print those of another bundle."""
    parser = argparse.ArgumentParser("python -m train.report", description=__doc__)
    parser.add_argument(
        "results",
        nargs="?",
        type=Path,
        help="results.json of a bundle, RUN/export/NAME/results.json: its tables are printed; "
        "without it the READMEs are written",
    )
    path = parser.parse_args(arguments).results
    try:
        if path is not None:
            sys.stdout.write(tables_of(path))
            return 0
    except MlpMemError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    results = json.loads((ROOT / "assets/atlas/results.json").read_text(encoding="utf-8"))
    for path in (ROOT / name for name in READMES):
        path.write_text(fill(path.read_text(encoding="utf-8"), results), encoding="utf-8")
    return 0


def tables_of(path: Path) -> str:
    """Return the tables of a bundle's results.json; MlpMemError for any other file."""
    try:
        return tables(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}" if path.is_file() else "the file does not exist"
        raise MlpMemError(
            f"report: {path} is not the results.json of a bundle ({why}); give the file that the "
            "stage export writes, RUN/export/NAME/results.json"
        ) from error


def fill(readme: str, results: dict) -> str:
    """Return a README's text with every block filled; MlpMemError for a block nothing fills."""
    contents = blocks(results)

    def filled_block(match: re.Match) -> str:
        name = match[1]
        if name not in contents:
            raise MlpMemError(
                f"README: block {name} has no content; use one of {', '.join(contents)}, or add "
                f"the template train/readme/{name}.md"
            )
        return f"<!-- {name}: begin -->\n{contents[name]}<!-- {name}: end -->"

    return BLOCK.sub(filled_block, readme)


def blocks(results: dict) -> dict[str, str]:
    """Return the content of every block by its name."""
    contents = parts(results) | {"findings": markdown(*findings.table(results))}
    contents["real"] = real_text.table()
    for path in sorted(TEMPLATES.glob("*.md")):
        contents[path.stem] = filled(path.read_text(encoding="utf-8"), results)
    return contents


if __name__ == "__main__":
    sys.exit(main())

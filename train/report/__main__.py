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

from mlpmem.engine.trace import AUTO
from mlpmem.errors import MlpMemError
from mlpmem.results import findings
from train.measure.atlas import shares
from train.report import real_text
from train.report.sentences import filled, markdown

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
    contents = _parts(results) | {"findings": markdown(*findings.table(results))}
    contents["real"] = real_text.table()
    for path in sorted(TEMPLATES.glob("*.md")):
        contents[path.stem] = filled(path.read_text(encoding="utf-8"), results)
    return contents


def tables(results: dict) -> str:
    """Return all tables in Markdown."""
    return "\n".join(_parts(results).values())


def _parts(results: dict) -> dict[str, str]:
    """Return the tables of a results.json by the block they fill."""
    main = _text_table if "share_of_gain" in results else _atlas_table
    return {
        "results": main(results),
        "costs": markdown(["cost", "decoder", "memory", "datastore"], _costs(results["cost"])),
        "stages": markdown(["stage", "seconds", "peak memory"], _stages(results["stages"])),
    }


def _atlas_table(results: dict) -> str:
    """Return what each system answers."""
    rows = [_flat(system) for system in results["systems"]] + results["forgetting"]
    head = ["exact match, %", "lambda", "B seen", "B new", "B unseen form", "A2 new",
            "A2 unseen form", "A1 new", "ppl B", "ppl A2", "seconds"]  # fmt: skip
    return markdown(head, [_row(row) for row in rows])


def _text_table(results: dict) -> str:
    """Return each system's perplexity of a text and its share of the gain of kNN."""
    ppl = {system["name"]: system["ppl"]["text"] for system in results["systems"]}
    rows = []
    for system in results["systems"]:
        gain = ppl["lm"] - ppl["knn"]
        share = f"{100 * (ppl['lm'] - ppl[system['name']]) / gain:.0f}%" if gain > 0 else ""
        rows.append(
            [system["label"], "" if system["lmbda"] is None else f"{system['lmbda']:g}",
             f"{ppl[system['name']]:.2f}", "" if system["name"] == "lm" else share,
             f"{system['bytes'] / 1e6:,.1f} MB", f"{system['train_seconds']:,.0f}"]
        )  # fmt: skip
    return markdown(
        ["test split", "lambda", "perplexity", "of kNN's gain", "size", "seconds"], rows
    )


def _flat(system: dict) -> dict:
    """Return a system's entry with the keys of a fine-tuned decoder's row."""
    ppl = {f"ppl_{group}": value for group, value in system["ppl"].items()}
    return system | shares(system["accuracy"]) | ppl | {"seconds": system["train_seconds"]}


def _row(row: dict) -> list[str]:
    """Return one system's line of the main table."""
    cells = ("B_seen", "B_test", "B_unseen", "A2_test", "A2_unseen", "A1_test")
    lmbda = row.get("lmbda")
    lmbda = "" if lmbda is None else lmbda if lmbda == AUTO else f"{lmbda:g}"
    right = [f"{100 * row[cell]:.1f}" for cell in cells]
    ppl = [f"{row[group]:.2f}" for group in ("ppl_B", "ppl_A2")]
    return [row["label"], lmbda, *right, *ppl, f"{row['seconds']:,.0f}"]


def _costs(cost: dict) -> list[list[str]]:
    """Return the cost of one generated token, of memory in use, and of the start."""
    parts = ("decoder", "memory", "datastore")
    times = (cost["decoder_ms"], cost["memory_ms"], cost["search_ms"])
    sizes = [f"{cost[f'{part}_bytes'] / 1e6:,.1f} MB" for part in parts]
    build = ["", "", f"{cost['build_seconds']:.0f} s for {cost['keys']:,} keys"]
    return [
        ["per token", *(f"{ms:.1f} ms" for ms in times)],
        ["in memory", *sizes],
        ["before the first answer", *build],
    ]


def _stages(stages: dict) -> list[list[str]]:
    """Return the time and memory of each stage that made the bundle."""
    return [
        [name, f"{s['seconds']:,.0f}", f"{s['peak_memory_bytes'] / 2**20:,.0f} MiB"]
        for name, s in stages.items()
    ]


if __name__ == "__main__":
    sys.exit(main())

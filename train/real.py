"""What recipes of real text measured, kept for README: `python -m train.real RECIPE --label NAME`.

Writes train/readme/measured/RECIPE.json out of runs/RECIPE/evaluate: no bundle of these texts
ships, and README's table must not be typed. A row a recipe, in alphabetical order.
"""

import argparse
import sys
from pathlib import Path

from train.files import read_json, say, write_json
from train.sentences import markdown

KEPT = Path(__file__).parent / "readme" / "measured"
HEAD = ["", "decoder, perplexity", "+ kNN", "+ memory", "memory's share of kNN's gain",
        "size: decoder, datastore, memory", "seconds of training: decoder, datastore, memory",
        "tokens scored"]  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Keep what a finished run measured; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.real", description=__doc__)
    parser.add_argument("recipe", help="its name; it has run as far as export")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--label", required=True, help="what README calls the row")
    given = parser.parse_args(argv)
    results = given.runs / given.recipe / "export" / given.recipe / "results.json"
    if not results.is_file():
        sys.stderr.write(f"{results} lacks; run `python -m train all {given.recipe}` first\n")
        return 1
    write_json(KEPT / f"{given.recipe}.json", slim(read_json(results), given.label))
    say("kept; now `python -m train.report`")
    return 0


def slim(results: dict, label: str) -> dict:
    """Return of a text corpus's results.json what README tells."""
    kept = ("name", "lmbda", "ppl", "bytes", "train_seconds")
    return {
        "label": label,
        "how": results["how"],
        "share_of_gain": results["share_of_gain"],
        "scored": results["scored"],
        "systems": [{key: row[key] for key in kept} for row in results["systems"]],
        "sizes": {k: v for k, v in results["cost"].items() if k.endswith("_bytes")},
    }


def table() -> str:
    """Return README's table of all that is kept."""
    return markdown(HEAD, [_row(read_json(path)) for path in sorted(KEPT.glob("*.json"))])


def _row(kept: dict) -> list[str]:
    """Return a recipe's line."""
    systems = {row["name"]: row for row in kept["systems"]}
    lm, knn, memory = (systems[name] for name in ("lm", "knn", "memory"))
    sizes = [kept["sizes"][f"{part}_bytes"] / 1e6 for part in ("decoder", "datastore", "memory")]
    ppl = [f"{row['ppl']['text']:.2f}" for row in (lm, knn, memory)]
    share = "" if kept["share_of_gain"] is None else f"{100 * kept['share_of_gain']:.0f} %"
    seconds = [f"{row['train_seconds']:,.0f}" for row in (lm, knn, memory)]
    return [
        kept["label"], *ppl, share, ", ".join(f"{size:,.1f}" for size in sizes) + " MB",
        ", ".join(seconds), f"{kept['scored']['test']:,}",
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())

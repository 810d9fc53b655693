"""Save the results of real-text recipes, for train/README.md.

    python -m train.report.real_text RECIPE --label NAME

Writes train/readme/measured/RECIPE.json from runs/RECIPE/export, because no bundle of these texts
ships and README figures are never typed. The table has one row per recipe, in alphabetical order.
If the run RECIPE-plain has a decoder, it is measured on the same windows of the test split. It has
as many parameters as decoder and memory together.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.retrieval.documents import Documents
from train.files import print_line, read_json, write_json
from train.measure.atlas import MeasuredModel
from train.measure.text import slide
from train.report.sentences import markdown
from train.run.stage import finished_manifest, plain_decoder
from train.stages.corpus import check_tokens

MEASURED = Path(__file__).parents[1] / "readme" / "measured"
HEAD = ["", "decoder, perplexity", "+ kNN", "+ memory", "memory's share of kNN's gain",
        "one plain decoder of the same total size", "size: decoder, datastore, memory",
        "seconds of training: decoder, datastore, memory", "tokens scored"]  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Save the results of a finished run; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.report.real_text", description=__doc__)
    parser.add_argument("recipe", help="the name of a recipe whose stage export is done")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--label", required=True, help="the row's name in README")
    args = parser.parse_args(argv)
    results = args.runs / args.recipe / "export" / args.recipe / "results.json"
    if not results.is_file():
        sys.stderr.write(
            f"{results} does not exist; run `python -m train all {args.recipe}` first\n"
        )
        return 1
    saved = slim(read_json(results), args.label)
    try:
        saved["plain"] = plain(args.runs / args.recipe)
    except MlpMemError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    write_json(MEASURED / f"{args.recipe}.json", saved)
    print_line("saved; now `python -m train.report`")
    return 0


def slim(results: dict, label: str) -> dict:
    """Return the part of a text corpus's results.json that README shows."""
    fields = ("name", "lmbda", "ppl", "bytes", "train_seconds")
    return {
        "label": label,
        "how": results["how"],
        "share_of_gain": results["share_of_gain"],
        "scored": results["scored"],
        "systems": [{key: row[key] for key in fields} for row in results["systems"]],
        "sizes": {k: v for k, v in results["cost"].items() if k.endswith("_bytes")},
    }


def plain(run: Path) -> dict | None:
    """Return perplexity and parameters of a run's plain decoder; None if there is none.

    The windows are those of the run's stage evaluate. MlpMemError if its tokenizer differs.
    """
    folder = plain_decoder(run)
    if folder is None:
        return None
    decoder, how = Decoder.load(folder), finished_manifest(run / "evaluate")["config"]
    check_tokens(decoder, run / "corpus")
    documents = Documents.load(run / "corpus" / "test")
    text = slide(documents, how["window"], how["stride"], how["tokens"], how["seed"])
    nll = MeasuredModel(decoder).grid(*text).nll("lm", 0.0)
    parameters = sum(weight.numel() for weight in decoder.model.parameters())
    return {"ppl": float(np.exp(nll.mean())), "parameters": parameters}


def table() -> str:
    """Return README's table of all saved results, without empty columns."""
    rows = [_row(read_json(path)) for path in sorted(MEASURED.glob("*.json"))]
    full = [i for i in range(len(HEAD)) if not i or any(row[i] for row in rows)]
    return markdown([HEAD[i] for i in full], [[row[i] for i in full] for row in rows])


def _row(saved: dict) -> list[str]:
    """Return a recipe's line."""
    systems = {row["name"]: row for row in saved["systems"]}
    lm, knn, memory = (systems[name] for name in ("lm", "knn", "memory"))
    sizes = [saved["sizes"][f"{part}_bytes"] / 1e6 for part in ("decoder", "datastore", "memory")]
    ppl = [f"{row['ppl']['text']:.2f}" for row in (lm, knn, memory)]
    share = "" if saved["share_of_gain"] is None else f"{100 * saved['share_of_gain']:.0f} %"
    seconds = [f"{row['train_seconds']:,.0f}" for row in (lm, knn, memory)]
    other = saved.get("plain")
    larger = f"{other['ppl']:.2f}" if other else ""
    return [
        saved["label"], *ppl, share, larger, ", ".join(f"{size:,.1f}" for size in sizes) + " MB",
        ", ".join(seconds), f"{saved['scored']['test']:,}",
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())

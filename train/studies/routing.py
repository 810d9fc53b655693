"""Study routing: one fixed lambda, the router's lambda by token, and an oracle's, by split.

    python -m train.routing atlas --bundle assets/atlas

writes runs/<recipe>/findings/routing.json. At each token the oracle uses the source that gives the
true token more probability, an upper bound for any lambda.
"""

import argparse
import shlex
import sys
from pathlib import Path

import mlpmem
from mlpmem.api import Model
from mlpmem.errors import MlpMemError
from mlpmem.retrieval.retriever import BulkRetriever
from train.config.load import load_recipe
from train.measure.findings import Finding, save
from train.run.kinds import kind_of
from train.run.stage import finished_manifest
from train.stages.corpus import check_tokens


def study(model: Model, corpus: Path, most: int, seed: int, how: str) -> list[Finding]:
    """Return a model's findings on a corpus's test, by how lambda is chosen."""
    measurements = kind_of(corpus).measurements_by_mode(model, corpus, most, seed)
    return [
        Finding(
            "routing", system, split, metric, how=how,
            setting={} if mode == "lm" else {"lmbda": mode}, **values,
        )
        for system, split, metric, values, mode in measurements
    ]  # fmt: skip


def table(findings: list[Finding]) -> str:
    """Return findings as aligned text: one line per split, one column per system and mode."""
    value = {(f.split, f.system, f.setting.get("lmbda", "")): f for f in findings}
    columns = list(dict.fromkeys((f.system, f.setting.get("lmbda", "")) for f in findings))
    width = max(len(f.split) for f in findings) + 2
    lines = ["".ljust(width) + "".join(f"{s} {m}".strip().rjust(15) for s, m in columns)]
    for split in dict.fromkeys(f.split for f in findings):
        row = [value[split, *column] for column in columns]
        cells = [100 * f.value if f.metric == "exact_match" else f.value for f in row]
        lines.append(split.ljust(width) + "".join(f"{x:15.2f}" for x in cells))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure a bundle on a recipe's corpus; save and print the findings."""
    parser = argparse.ArgumentParser("python -m train.routing", description=__doc__.split("\n")[0])
    parser.add_argument("recipe", nargs="?", default="atlas")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--bundle", help="folder or preset; default: the recipe's export")
    parser.add_argument("--questions", type=int, default=1000, help="per cell; of a text: tokens")
    parser.add_argument(
        "--no-datastore", action="store_true", help="measure only the memory's router"
    )
    args = parser.parse_args(arguments)
    try:
        recipe = load_recipe(args.recipe)
        root = args.runs / recipe.name
        bundle = args.bundle or root / "export" / recipe.export.name
        model = mlpmem.load(bundle, datastore=not args.no_datastore)
        if model.store is not None:  # every token of thousands of prompts is searched
            retriever = BulkRetriever(model.datastore.keys, model.decoder.device)
            model.attach_datastore(model.datastore, retriever)
        how = shlex.join(["python", "-m", "train.routing", *(arguments or sys.argv[1:])])
        findings = _study(model, recipe, root, args.questions, how)
    except MlpMemError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    save(root / "findings", "routing", findings)
    sys.stdout.write(f"{table(findings)}\n")
    return 0


def _study(model: Model, recipe, root: Path, most: int, how: str) -> list[Finding]:
    """Return the findings; MlpMemError without a corpus or a router."""
    corpus = finished_manifest(root / "corpus")
    if corpus is None or not model.routers:
        missing = "router" if corpus else "corpus"
        raise MlpMemError(
            f"routing: there is no {missing}; run `python -m train all {recipe.name}` first"
        )
    check_tokens(model.decoder, root / "corpus")
    return study(model, root / "corpus", most, recipe.seed, how)


if __name__ == "__main__":
    sys.exit(main())

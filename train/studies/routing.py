"""Study routing: one lambda for all tokens, the router's, and the best there could be, by split.

    python -m train.routing atlas --bundle assets/atlas

writes runs/<recipe>/findings/routing.json. The oracle believes, token by token, the source that
gives the true token more; no lambda reaches further.
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
    """Return what a model makes of a corpus's test, by how lambda is chosen."""
    found = []
    asked = kind_of(corpus).measurements_by_mode(model, corpus, most, seed)
    for system, split, metric, values, mode in asked:
        setting = {} if mode == "lm" else {"lmbda": mode}
        found.append(Finding("routing", system, split, metric, how=how, setting=setting, **values))
    return found


def table(found: list[Finding]) -> str:
    """Return the findings as aligned text: a line a split, a column a system and mode."""
    value = {(f.split, f.system, f.setting.get("lmbda", "")): f for f in found}
    columns = list(dict.fromkeys((f.system, f.setting.get("lmbda", "")) for f in found))
    width = max(len(f.split) for f in found) + 2
    lines = ["".ljust(width) + "".join(f"{s} {m}".strip().rjust(15) for s, m in columns)]
    for split in dict.fromkeys(f.split for f in found):
        cells = [value[split, *column] for column in columns]
        shown = [100 * f.value if f.metric == "exact_match" else f.value for f in cells]
        lines.append(split.ljust(width) + "".join(f"{x:15.2f}" for x in shown))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure a bundle on a recipe's corpus, print the table, write the findings."""
    parser = argparse.ArgumentParser("python -m train.routing", description=__doc__.split("\n")[0])
    parser.add_argument("recipe", nargs="?", default="atlas")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where stages are kept")
    parser.add_argument("--bundle", help="none: the one that the recipe's export made")
    parser.add_argument("--questions", type=int, default=1000, help="of a cell; tokens of a text")
    parser.add_argument("--no-datastore", action="store_true", help="the memory's router alone")
    options = parser.parse_args(arguments)
    try:
        recipe = load_recipe(options.recipe)
        root = options.runs / recipe.name
        bundle = options.bundle or root / "export" / recipe.export.name
        model = mlpmem.load(bundle, datastore=not options.no_datastore)
        if model.store is not None:  # thousands of prompts are searched token by token
            searched = BulkRetriever(model.datastore.keys, model.decoder.device)
            model.attach_datastore(model.datastore, searched)
        how = shlex.join(["python", "-m", "train.routing", *(arguments or sys.argv[1:])])
        found = _studied(model, recipe, root, options.questions, how)
    except MlpMemError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    save(root / "findings", "routing", found)
    sys.stdout.write(f"{table(found)}\n")
    return 0


def _studied(model: Model, recipe, root: Path, most: int, how: str) -> list[Finding]:
    """Return the findings of the corpus's kind; MlpMemError where there is nothing to compare."""
    corpus = finished_manifest(root / "corpus")
    if corpus is None or not model.routers:
        lacks = "no router" if corpus else "no corpus"
        raise MlpMemError(
            f"routing: there is {lacks} to measure; run `python -m train all {recipe.name}` first"
        )
    check_tokens(model.decoder, root / "corpus")
    return study(model, root / "corpus", most, recipe.seed, how)


if __name__ == "__main__":
    sys.exit(main())

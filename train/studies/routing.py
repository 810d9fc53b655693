"""Study routing: one lambda for all tokens, the router's, and the best there could be, by split.

    python -m train.routing atlas --bundle assets/atlas

writes runs/<recipe>/findings/routing.json. The oracle believes, token by token, the source that
gives the true token more; no lambda reaches further.
"""

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np

import mlpmem
from mlpmem.api import Model
from mlpmem.errors import MlpMemError
from mlpmem.retrieval.documents import Documents
from mlpmem.retrieval.retriever import BulkRetriever
from train.config.load import load_recipe
from train.measure.atlas import GROUPS, Test
from train.measure.by_token import measure
from train.measure.findings import Finding, perplexity, save, share
from train.measure.text import all_positions, groups_of, slide, units_of
from train.run.stage import finished_manifest
from train.stages.corpus import check_tokens


def study_atlas(model: Model, corpus: Path, most: int, seed: int, how: str) -> list[Finding]:
    """Return exact match by cell, and of real and invented entities apart; perplexity by group."""
    test = Test.load(corpus, model.decoder.tokenizer, most, seed)
    questions, text = test.questions, test.text
    invented = np.array([row["invented"] for row in questions.rows])
    cells = np.array(questions.cells)
    splits = {cell: cells == cell for cell in dict.fromkeys(cells)}
    for name, mask in (("invented", invented), ("real", ~invented)):
        splits |= {f"{c}/{name}": m & mask for c, m in list(splits.items())[: len(set(cells))]}
    found = []
    for pair, (right, _) in measure(model, questions.documents, questions.positions).items():
        whole = np.ones(len(cells), bool)
        np.logical_and.at(whole, questions.question_of, right)
        for split, mask in splits.items():
            if mask.any():
                found.append(_finding(pair, split, "exact_match", share(whole[mask]), how))
    positions = all_positions(text)
    groups, of = groups_of(text, positions), units_of(text, positions)
    for pair, (_, nll) in measure(model, text, positions).items():
        for group in [g for g in GROUPS if (groups == g).any()]:
            values = perplexity(nll[groups == group], of[groups == group])
            found.append(_finding(pair, f"{group}/text", "perplexity", values, how))
    return found


def study_text(model: Model, corpus: Path, most: int, seed: int, how: str) -> list[Finding]:
    """Return the perplexity of a sample of the test split."""
    window = min(256, model.decoder.max_positions)
    text, positions = slide(Documents.load(corpus / "test"), window, window // 2, most, seed)
    measured, of = measure(model, text, positions), units_of(text, positions)
    return [
        _finding(pair, "text/test", "perplexity", perplexity(nll, of), how)
        for pair, (_, nll) in measured.items()
    ]


STUDIES = {"atlas": study_atlas, "text": study_text}  # by kind of corpus


def _finding(pair: tuple[str, str], split: str, metric: str, values: dict, how: str) -> Finding:
    """Return one finding of a (system, mode)."""
    system, mode = pair
    setting = {} if mode == "lm" else {"lmbda": mode}
    return Finding("routing", system, split, metric, how=how, setting=setting, **values)


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
    kind = corpus["config"]["kind"]
    return STUDIES[kind](model, root / "corpus", most, recipe.seed, how)


if __name__ == "__main__":
    sys.exit(main())

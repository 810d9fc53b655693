"""What if the domains do not match? Every domain's memory on every domain's text, one decoder.

Each domain of [studies] gets a corpus, keys, targets and a memory of its own below domains/, by the
same stages as any run, with the run's decoder. A row of the matrix is used as it would be on its
own ground: lambda, k and temperature are those that are best on the row's validation split.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mlpmem.datastore import Datastore
from mlpmem.decoder import Decoder
from mlpmem.documents import Documents
from mlpmem.errors import MlpMemError
from mlpmem.memory import Memory
from train.findings import Finding, perplexity
from train.perplexity import LAMBDAS, best_lambda, tune
from train.pipeline import STAGES
from train.recipe import Corpus, Recipe
from train.stage import run_stage
from train.studies.run import Run
from train.windows import Golds, curve, look, slide


@dataclass(frozen=True)
class Domain:
    """A domain's memory and datastore, and how they are used."""

    name: str
    memory: Memory
    store: Datastore
    lmbda: dict[str, float]  # of "memory" and "knn"
    k: int
    temperature: float


def domains(run: Run) -> Iterator[Finding]:
    """Yield the perplexity of every domain's test text (split) by decoder, memories and kNN."""
    if not run.config.domains:
        raise MlpMemError(
            f"domains: recipe {run.recipe.name} names none; give its [studies] a list domains = "
            '[["name", "file.txt", "heading", "separator"], ...] of two or more'
        )
    run.manifest("decoder")
    names = [_make(run, *domain) for domain in run.config.domains]
    decoder = Decoder.load(run.root / "decoder", depth=run.recipe.datastore.depth)
    for name in names:
        yield from _row(run, decoder, _domain(run, decoder, name), names)


def _make(run: Run, name: str, file: str, heading: str, separator: str) -> str:
    """Return the name of a domain once its stages are done."""
    text = run.root / "domains" / name / "text.txt"
    if not text.is_file():
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(beginning(Path(file), run.config.domain_characters), encoding="utf-8")
    recipe, config = run.recipe, run.config
    made = replace(
        recipe,
        corpus=Corpus(
            kind="text", train=(str(text),), heading=heading, separator=separator,
            shares=config.domain_shares, passage=recipe.corpus.passage,
            tokenizer=str(run.root / "decoder"),
        ),
        targets=replace(
            recipe.targets, nll_floor=100.0, easy_share=config.domain_rows, search="auto"
        ),
        memory=replace(recipe.memory, epochs=config.domain_epochs),
    )  # fmt: skip
    for stage in ("corpus", "datastore", "targets", "memory"):
        _stage(run.root, name, stage, made)
    return name


def _stage(root: Path, domain: str, stage: str, recipe: Recipe) -> None:
    """Run one stage of a domain; the decoder is the run's own."""
    at = partial("domains/{}/{}".format, domain)
    inputs = tuple(i if i == "decoder" else at(i) for i in STAGES[stage].inputs)
    config, function = getattr(recipe, stage), STAGES[stage].load()
    run_stage(root, at(stage), config, inputs, function, recipe.seed)


def beginning(path: Path, characters: int) -> str:
    """Return the first whole lines of a text file; MlpMemError where it cannot be read."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(characters)
    except (OSError, UnicodeDecodeError) as error:
        raise MlpMemError(
            f"domains: cannot read {path} ({error}); put right the path in the recipe's [studies]"
        ) from error
    return text if len(text) < characters else re.sub(r"[^\n]*\Z", "", text)


def _domain(run: Run, decoder: Decoder, name: str) -> Domain:
    """Return a domain, its lambdas, k and temperature chosen on its own validation split."""
    folder = run.root / "domains" / name
    memory = Memory.load(folder / "memory").float().eval().bind(decoder)
    store = Datastore.load(folder / "datastore")
    valid = _look(run, decoder, memory, store, name, "valid")
    ks = tuple(sorted({min(k, len(store)) for k in run.recipe.evaluate.ks}))
    k, temperature = tune(valid, replace(run.recipe.evaluate, ks=ks))
    lmbda = {
        "memory": best_lambda(curve(valid.lm, valid.memory, LAMBDAS)),
        "knn": best_lambda(curve(valid.lm, valid.knn(k, temperature), LAMBDAS)),
    }
    return Domain(name, memory, store, lmbda, k, temperature)


def _look(
    run: Run, decoder: Decoder, memory: Memory, store: Datastore, name: str, split: str
) -> Golds:
    """Return what the sources make of a split of a domain's text."""
    documents = Documents.load(run.root / "domains" / name / "corpus" / split)
    sizes = run.recipe.evaluate
    text = slide(documents, sizes.window, sizes.stride, run.config.positions, run.recipe.seed)
    return look(decoder, memory, store, text, min(max(sizes.ks), len(store)))


def _row(run: Run, decoder: Decoder, row: Domain, names: list[str]) -> Iterator[Finding]:
    """Yield a domain's memory and kNN on every domain's text, and the decoder on its own."""
    for name in names:
        golds = _look(run, decoder, row.memory, row.store, name, "test")
        if name == row.name:
            yield run.finding("lm", name, "perplexity", perplexity(golds.nll(golds.lm, 0.0)))
        others = {"memory": golds.memory, "knn": golds.knn(row.k, row.temperature)}
        for system, other in others.items():
            lmbda = row.lmbda[system]
            found = perplexity(golds.nll(other, lmbda))
            yield run.finding(system, name, "perplexity", found, of=row.name, lmbda=lmbda)

"""What if the domains do not match? Every domain's memory on every domain's text, with one decoder.

Each domain of [studies] gets its own corpus, keys, targets and memory below domains/, by the usual
stages and with the run's decoder. In each row of the matrix, lambda, k and temperature are best on
the row domain's validation split.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.documents import Documents
from mlpmem.retrieval.texts import decoded, opened
from train.config.corpus import CorpusConfig
from train.measure.findings import Finding, perplexity
from train.measure.text import Golds, MixSettings, choose_mix, measure_golds, slide, units_of
from train.run.stage import finished_manifest
from train.studies.run import Run, make


@dataclass(frozen=True)
class Domain:
    """A domain's memory, datastore and chosen settings."""

    name: str
    memory: Memory
    store: Datastore
    mix: MixSettings


def domains(run: Run) -> Iterator[Finding]:
    """Yield the test perplexity of each domain (split) by decoder, memories and datastores."""
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
    """Make a domain's stages; return its name."""
    folder = run.root / "domains" / name
    text, content = folder / "text.txt", beginning(Path(file), run.config.domain_characters)
    finished = finished_manifest(folder / "corpus") is not None and text.is_file()
    if finished and text.read_text(encoding="utf-8") != content:
        raise MlpMemError(
            f"domains: {name} was made from another text than the recipe's; delete {folder} to "
            "make it again, or choose another folder with --runs"
        )
    folder.mkdir(parents=True, exist_ok=True)
    text.write_text(content, encoding="utf-8")
    recipe, config = run.recipe, run.config
    recipe = replace(
        recipe,
        corpus=CorpusConfig(
            kind="text", train=(str(text),), heading=heading, separator=separator,
            shares=config.domain_shares, passage=recipe.corpus.passage,
            tokenizer=str(run.root / "decoder"),
        ),
        targets=replace(
            recipe.targets, nll_floor=100.0, easy_share=config.domain_rows, search="auto"
        ),
        memory=replace(recipe.memory, epochs=config.domain_epochs),
    )  # fmt: skip
    make(run, recipe, ("corpus", "datastore", "targets", "memory"), f"domains/{name}")
    return name


def beginning(path: Path, characters: int) -> str:
    """Return the first whole lines of a text file; MlpMemError if it cannot be read."""
    text = ""
    try:
        with opened(path) as file:
            for piece in decoded(file, path):
                text = (text + piece)[:characters]
                if len(text) == characters:
                    break
    except MlpMemError as error:
        raise MlpMemError(f"domains: {error}; correct the recipe's [studies]") from error
    return text if len(text) < characters else re.sub(r"[^\n]*\Z", "", text)


def _domain(run: Run, decoder: Decoder, name: str) -> Domain:
    """Return a domain, its mix chosen on its validation split."""
    folder = run.root / "domains" / name
    memory = Memory.load(folder / "memory").float().eval().bind(decoder)
    store = Datastore.load(folder / "datastore")
    valid, _ = _measure_golds(run, decoder, memory, store, name, "valid")
    return Domain(name, memory, store, choose_mix(valid, run.recipe.evaluate))


def _measure_golds(
    run: Run, decoder: Decoder, memory: Memory, store: Datastore, name: str, split: str
) -> tuple[Golds, np.ndarray]:
    """Return the sources' log-probs on a split of a domain's text, and the positions' units."""
    documents = Documents.load(run.root / "domains" / name / "corpus" / split)
    sizes = run.recipe.evaluate
    text = slide(documents, sizes.window, sizes.stride, run.config.positions, run.recipe.seed)
    return measure_golds(decoder, memory, store, text, max(sizes.ks)), units_of(*text)


def _row(run: Run, decoder: Decoder, row: Domain, names: list[str]) -> Iterator[Finding]:
    """Yield a domain's memory and kNN on every domain's text, and the decoder on its own."""
    for name in names:
        golds, units = _measure_golds(run, decoder, row.memory, row.store, name, "test")
        if name == row.name:
            yield run.finding("lm", name, "perplexity", perplexity(row.mix.nll(golds, "lm"), units))
        for system, lmbda in row.mix.lmbda.items():
            ppl = perplexity(row.mix.nll(golds, system), units)
            yield run.finding(system, name, "perplexity", ppl, of=row.name, lmbda=lmbda)

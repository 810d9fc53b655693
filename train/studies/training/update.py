"""How is knowledge updated? New facts for the datastore, the memory and the decoder.

The datastore gets new entries. The memory is trained on the new facts, and so is the decoder, in
full and by LoRA; each with and without replay of old text. Findings are seconds, recall of the new
facts, and recall and perplexity of the old. Lambdas are those of evaluate, before the update.
"""

import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import numpy as np

from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.retrieval.datastore import Datastore, build_keys
from mlpmem.retrieval.documents import Documents, entries, join_documents
from train.measure.atlas import ATLAS_LAMBDAS, MeasuredModel, Test
from train.measure.findings import Finding, perplexity, share
from train.measure.questions import tally
from train.measure.text import all_positions, groups_of, units_of
from train.studies.run import Run
from train.studies.training.teach import (
    Lesson,
    NewFacts,
    check_lora,
    decoder_lessons,
    make_facts,
    teach_decoder,
    teach_memory,
)


@dataclass(frozen=True)
class EvalData:
    """Questions about the new facts, and a sample of the run's test."""

    new: NewFacts
    old: Test


def update(run: Run) -> Iterator[Finding]:
    """Yield seconds, recall and perplexity before and after each way to learn new facts."""
    if not run.kind.has_questions:
        raise MlpMemError(
            "update: the corpus must be an atlas, whose wordings new facts use; got a text. Use a "
            "recipe whose corpus is the atlas"
        )
    check_lora()
    config, tokenizer = run.config, run.decoder.tokenizer
    new = make_facts(run.recipe, tokenizer, config.facts, config.questions)
    test = Test.load(run.root / "corpus", tokenizer, config.questions, run.recipe.seed)
    data = EvalData(new, test)
    yield run.finding("all", "new", "facts", new.facts)
    before = MeasuredModel(run.decoder, run.memory, run.store, *run.knn)
    names = {"lm": "lm", "memory": "memory", "knn": "knn"}
    yield from _evaluate(run, data, before, names, {"way": "before"})
    started = time.perf_counter()
    store = insert(run.decoder, run.store, new.documents)
    seconds = time.perf_counter() - started
    way = {"way": "inserted"}
    cost = {"value": seconds, "n": len(store) - len(run.store)}
    yield run.finding("knn", "new", "seconds", cost, **way)
    yield from _evaluate(
        run, data, MeasuredModel(run.decoder, None, store, *run.knn), {"knn": "knn"}, way
    )
    for replay in (0.0, config.replay):
        yield from _memory(run, data, store, replay)
    for lesson in decoder_lessons(config):
        yield from _decoder(run, data, lesson)


def insert(decoder: Decoder, store: Datastore, documents: Documents) -> Datastore:
    """Return a datastore with documents added; only new entries get new keys."""
    joined = join_documents(store.documents, documents)
    positions, counts = entries(joined)
    keys = build_keys(decoder, joined, positions[len(store) :])
    return Datastore(np.concatenate([store.keys[:], keys]), positions, counts, joined)


def _memory(run: Run, data: EvalData, store: Datastore, replay: float) -> Iterator[Finding]:
    """Yield the findings of a copy of the memory trained on the new facts."""
    memory = deepcopy(run.memory)
    started = time.perf_counter()
    rows = teach_memory(run, memory, store, len(run.store), replay)
    seconds = {"value": time.perf_counter() - started, "n": rows}
    way = {"way": "taught", "replay": replay}
    yield run.finding("memory", "new", "seconds", seconds, **way)
    sources = MeasuredModel(run.decoder, memory.requires_grad_(False).eval())
    yield from _evaluate(run, data, sources, {"memory": "memory"}, way)


def _decoder(run: Run, data: EvalData, lesson: Lesson) -> Iterator[Finding]:
    """Yield the findings of a copy of the decoder trained on the new facts."""
    decoder = Decoder.load(run.root / "decoder")
    started = time.perf_counter()
    tokens = teach_decoder(run, decoder, data.new.documents, lesson)
    seconds = {"value": time.perf_counter() - started, "n": tokens}
    way = {"way": "taught", "replay": lesson.replay, "lr": lesson.lr}
    yield run.finding(lesson.system, "new", "seconds", seconds, **way)
    yield from _evaluate(run, data, MeasuredModel(decoder), {"lm": lesson.system}, way)


def _evaluate(
    run: Run, data: EvalData, sources: MeasuredModel, names: dict[str, str], way: dict
) -> Iterator[Finding]:
    """Yield exact match by cell of new and old facts, and the old text's perplexity.

    names: {system in the grid: system in the findings}.
    """
    for questions in (data.new.questions, data.old.questions):
        grid = sources.grid(questions.documents, questions.positions)
        for source, system in names.items():
            lmbda = run.lmbda.get(source, 0.0)
            right = grid.right.get(source, next(iter(grid.right.values())))
            cells = tally(questions, right[:, ATLAS_LAMBDAS.index(lmbda)])
            for cell, count in cells.items():
                exact = np.arange(count["n"]) < count["right"]
                yield run.finding(system, cell, "exact_match", share(exact), **way)
    text = data.old.text
    positions = all_positions(text)
    grid, groups = sources.grid(text, positions), groups_of(text, positions)
    units = units_of(text, positions)
    for source, system in names.items():
        nll = grid.nll(source, run.lmbda.get(source, 0.0))
        for group in dict.fromkeys(groups.tolist()):
            ppl = perplexity(nll[groups == group], units[groups == group])
            yield run.finding(system, group, "perplexity", ppl, **way)

"""How is knowledge updated? New facts for the datastore, the memory and the decoder.

Inserted into the datastore; taught to the memory, with and without old rows among the new; taught
to the decoder in full and by LoRA, likewise. Of each: seconds, recall of the new facts, and what
became of the old ones. Lambdas are those that evaluate chose, before anything was new.
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
from train.studies.teach import (
    Lesson,
    NewFacts,
    check_lora,
    decoder_lessons,
    make_facts,
    teach_decoder,
    teach_memory,
)


@dataclass(frozen=True)
class Exam:
    """What everything is asked: the new facts, and a sample of what was known before."""

    new: NewFacts
    old: Test


def update(run: Run) -> Iterator[Finding]:
    """Yield seconds, recall and perplexity before and after each way to teach new facts."""
    if not run.kind.asks:
        raise MlpMemError(
            "update: new facts are made in the atlas's forms, and this run's corpus is text; use "
            "a recipe whose corpus is the atlas"
        )
    check_lora()
    config, tokenizer = run.config, run.decoder.tokenizer
    new = make_facts(run.recipe, tokenizer, config.facts, config.questions)
    test = Test.load(run.root / "corpus", tokenizer, config.questions, run.recipe.seed)
    exam = Exam(new, test)
    yield run.finding("all", "new", "facts", new.facts)
    before = MeasuredModel(run.decoder, run.memory, run.store, *run.knn)
    names = {"lm": "lm", "memory": "memory", "knn": "knn"}
    yield from _ask(run, exam, before, names, {"way": "before"})
    started = time.perf_counter()
    store = insert(run.decoder, run.store, new.documents)
    seconds = time.perf_counter() - started
    way = {"way": "inserted"}
    added = {"value": seconds, "n": len(store) - len(run.store)}
    yield run.finding("knn", "new", "seconds", added, **way)
    yield from _ask(
        run, exam, MeasuredModel(run.decoder, None, store, *run.knn), {"knn": "knn"}, way
    )
    for replay in (0.0, config.replay):
        yield from _memory(run, exam, store, replay)
    for lesson in decoder_lessons(config):
        yield from _decoder(run, exam, lesson)


def insert(decoder: Decoder, store: Datastore, documents: Documents) -> Datastore:
    """Return a datastore with documents added: keys are built for the new entries alone."""
    joined = join_documents(store.documents, documents)
    positions, counts = entries(joined)
    keys = build_keys(decoder, joined, positions[len(store) :])
    return Datastore(np.concatenate([store.keys[:], keys]), positions, counts, joined)


def _memory(run: Run, exam: Exam, store: Datastore, replay: float) -> Iterator[Finding]:
    """Teach a copy of the memory, and yield what it cost and brought."""
    memory = deepcopy(run.memory)
    started = time.perf_counter()
    rows = teach_memory(run, memory, store, len(run.store), replay)
    seconds = {"value": time.perf_counter() - started, "n": rows}
    way = {"way": "taught", "replay": replay}
    yield run.finding("memory", "new", "seconds", seconds, **way)
    sources = MeasuredModel(run.decoder, memory.requires_grad_(False).eval())
    yield from _ask(run, exam, sources, {"memory": "memory"}, way)


def _decoder(run: Run, exam: Exam, lesson: Lesson) -> Iterator[Finding]:
    """Teach a new copy of the decoder, and yield what it cost and brought."""
    decoder = Decoder.load(run.root / "decoder")
    started = time.perf_counter()
    tokens = teach_decoder(run, decoder, exam.new.documents, lesson)
    seconds = {"value": time.perf_counter() - started, "n": tokens}
    way = {"way": "taught", "replay": lesson.replay, "lr": lesson.lr}
    yield run.finding(lesson.system, "new", "seconds", seconds, **way)
    yield from _ask(run, exam, MeasuredModel(decoder), {"lm": lesson.system}, way)


def _ask(
    run: Run, exam: Exam, sources: MeasuredModel, names: dict[str, str], way: dict
) -> Iterator[Finding]:
    """Yield exact match by cell, of new facts and of old ones, and the old text's perplexity.

    names: of a source of the grid, the system that it is called in the findings.
    """
    for questions in (exam.new.questions, exam.old.questions):
        grid = sources.grid(questions.documents, questions.positions)
        for source, system in names.items():
            lmbda = run.lmbda.get(source, 0.0)
            answered = grid.right.get(source, next(iter(grid.right.values())))
            found = tally(questions, answered[:, ATLAS_LAMBDAS.index(lmbda)])
            for cell, count in found.items():
                right = np.arange(count["n"]) < count["right"]
                yield run.finding(system, cell, "exact_match", share(right), **way)
    text = exam.old.text
    positions = all_positions(text)
    grid, groups = sources.grid(text, positions), groups_of(text, positions)
    of = units_of(text, positions)
    for source, system in names.items():
        nll = grid.nll(source, run.lmbda.get(source, 0.0))
        for group in dict.fromkeys(groups.tolist()):
            found = perplexity(nll[groups == group], of[groups == group])
            yield run.finding(system, group, "perplexity", found, **way)

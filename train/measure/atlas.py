"""The test that everything is measured on, and what one model makes of it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.documents import Documents, join_passages
from train.grid import LAMBDAS, Grid, Sources
from train.measure.questions import Questions, ask, sample_questions, tally
from train.measure.text import all_positions, groups_of, units_of
from train.run.stage import Context
from train.stages.corpus import read_lines

GROUPS = ("A1", "A2", "B")
CHOOSING = "dev"  # the held-out wordings that choose lambda; the others only measure
WORDINGS = ("seen", "test", "unseen", "statement_test")


@dataclass(frozen=True)
class Measured:
    """One model's grid over questions and held-out text."""

    questions: Questions
    grid: Grid
    text_groups: np.ndarray  # (P,) group of every held-out position
    text: Grid
    text_units: np.ndarray  # (P,) what each is drawn with; see windows.units_of

    def accuracy(self, source: str, lmbda: float) -> dict[str, dict]:
        """Return {cell: {"n", "right"}} at one of LAMBDAS."""
        return tally(self.questions, self.grid.right[source][:, LAMBDAS.index(lmbda)])

    def perplexity(self, source: str, lmbda: float) -> dict[str, float]:
        """Return {group: perplexity} of the held-out text."""
        nll = self.text.nll(source, lmbda)
        groups = dict.fromkeys(self.text_groups)
        return {str(g): float(np.exp(nll[self.text_groups == g].mean())) for g in groups}


@dataclass(frozen=True)
class Test:
    """Questions by cell, and held-out passages by group."""

    __test__ = False  # pytest: no test of its own

    questions: Questions
    text: Documents

    @classmethod
    def load(cls, corpus: Path, tokenizer, most: int, seed: int) -> "Test":
        """Return the test of a corpus folder: at most `most` of each cell, drawn by seed."""
        cells = [f"{g}/{w}" for g in GROUPS for w in (CHOOSING, *WORDINGS)]
        rows = read_lines(corpus / "questions.jsonl")
        questions = ask(tokenizer, sample_questions(rows, cells, most, seed))
        return cls(questions, _thinned(Documents.load(corpus / "heldout"), most, seed))

    def measure(self, sources: Sources) -> Measured:
        """Return what a decoder with its sources makes of the test."""
        positions = all_positions(self.text)
        return Measured(
            questions=self.questions,
            grid=sources.grid(self.questions.documents, self.questions.positions),
            text_groups=groups_of(self.text, positions),
            text=sources.grid(self.text, positions),
            text_units=units_of(self.text, positions),
        )


def shares(accuracy: dict[str, dict]) -> dict[str, float]:
    """Return {"B_test": share, ...} of {"B/test": {"n", "right"}, ...}."""
    return {
        cell.replace("/", "_"): count["right"] / max(1, count["n"])
        for cell, count in accuracy.items()
    }


def _thinned(documents: Documents, most: int, seed: int) -> Documents:
    """Return at most `most` passages of each group."""
    groups = np.array(documents.groups)[documents.document_of]
    order = np.random.default_rng(seed).permutation(len(documents))
    kept = [p for g in GROUPS for p in order[groups[order] == g][:most]]
    pairs = [(int(documents.document_of[p]), documents.passage(p).tolist()) for p in kept]
    return join_passages(pairs, documents.titles, documents.groups)


def measure_atlas(context: Context, decoder: Decoder, memory: Memory, store: Datastore) -> dict:
    """Return the atlas's part of results.json: accuracy and perplexity by group.

    Each source has the lambda that is best for it.
    """
    config = context.config
    test = Test.load(context.inputs["corpus"], decoder.tokenizer, config.questions, context.seed)
    measured = test.measure(Sources(decoder, memory, store, config.k, config.temperature))
    curves = {source: curve(measured, source) for source in ("memory", "knn")}
    lmbda = {source: choose_lambda(rows) for source, rows in curves.items()}
    return {
        "choosing": CHOOSING,
        "lmbda": lmbda,
        "lambda_curves": curves,
        "systems": {
            "lm": _values(measured, "memory", 0.0),  # lambda 0 of any source is the decoder alone
            **{source: _values(measured, source, lmbda[source]) for source in curves},
        },
    }


def _values(measured: Measured, source: str, lmbda: float) -> dict:
    """Return accuracy by cell and perplexity by group under a mix."""
    return {
        "accuracy": measured.accuracy(source, lmbda),
        "ppl": measured.perplexity(source, lmbda),
    }


def curve(measured: Measured, source: str) -> dict[str, list[float]]:
    """Return accuracy and perplexity over LAMBDAS, by cell and group."""
    rows: dict[str, list[float]] = {"lmbdas": list(LAMBDAS)}
    for lmbda in LAMBDAS:
        found = shares(measured.accuracy(source, lmbda))
        found |= {f"ppl_{g}": p for g, p in measured.perplexity(source, lmbda).items()}
        for key, value in found.items():
            rows.setdefault(key, []).append(value)
    return rows


def choose_lambda(rows: dict[str, list[float]]) -> float:
    """Return the lambda of a curve with the best mean accuracy on dev questions over the groups.

    Of equals it is the smallest.
    """
    means = np.mean([rows[f"{group}_{CHOOSING}"] for group in GROUPS], axis=0)
    return LAMBDAS[int(np.argmax(means.round(9)))]

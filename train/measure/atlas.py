"""The atlas's test, and one model's results on it: accuracy and perplexity.

One pass measures every source at every lambda: which tokens are right, and their nll.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mlpmem.engine.distributions import knn_log_probs, mix_nll
from mlpmem.engine.settings import lambda_grid
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from mlpmem.retrieval.bulk_search import BulkSearch
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.documents import Documents, join_passages
from mlpmem.retrieval.passages import forward_positions
from train.files import read_lines
from train.measure.findings import perplexity, share
from train.measure.questions import Questions, encode_questions, sample_questions, tally
from train.measure.text import all_positions, groups_of, nll_of, units_of
from train.run.kinds import Measurement
from train.run.stage import StageContext

# Decoder and memory are each certain of the facts they know, so the mix tips near one half.
ATLAS_LAMBDAS = lambda_grid(
    10, 0.45, 0.48, 0.49, 0.5025, 0.505, 0.5075, 0.51, 0.515, 0.52, 0.53, 0.55, 0.57, 0.65
)


@dataclass(frozen=True)
class Grid:
    """Results at P positions and L lambdas, by source ("memory", "knn")."""

    right: dict[str, np.ndarray]  # (P, L) bool: the mix's most probable token is the true one
    gold_nll: dict[str, np.ndarray]  # (P,) the true token's nll in nats, also under "lm"

    def nll(self, source: str, lmbda: float) -> np.ndarray:
        """Return the true tokens' nll (P,) in nats under the mix."""
        lm = self.gold_nll["lm"]
        return lm if source == "lm" else mix_nll(lm, self.gold_nll[source], lmbda).numpy()


class MeasuredModel:
    """The decoder, with memory and datastore if given."""

    def __init__(
        self,
        decoder: Decoder,
        memory: Memory | None = None,
        store: Datastore | None = None,
        k: int = 128,
        temperature: float = 20.0,
    ) -> None:
        """Prepare the search; without memory and store, only the decoder is measured."""
        self.decoder, self.memory, self.store = decoder, memory, store
        self.k, self.temperature = k, temperature
        if store is not None:
            self.search = BulkSearch(store.keys)

    @torch.inference_mode()
    def grid(self, documents: Documents, positions: np.ndarray) -> Grid:
        """Return the Grid of positions (indices into documents.tokens)."""
        neighbours = self.neighbours(documents, positions) if self.store is not None else None
        names = ["memory"] * (self.memory is not None) + ["knn"] * (neighbours is not None)
        right = {
            name: np.zeros((len(positions), len(ATLAS_LAMBDAS)), bool) for name in names or ["lm"]
        }
        gold = {name: np.zeros(len(positions)) for name in ("lm", *names)}
        true = torch.from_numpy(documents.tokens[positions].astype(np.int64))
        for at, hidden, logits, *_ in forward_positions(self.decoder, documents, positions):
            probs = {"lm": logits.float().softmax(-1)}
            if "memory" in names:
                probs["memory"] = self.memory(hidden).float().softmax(-1)
            if "knn" in names:
                probs["knn"] = self.knn_log_probs(neighbours, at, logits.shape[-1]).exp()
            for name, p in probs.items():
                gold[name][at] = nll_of(p.gather(1, true[at, None])[:, 0].double().numpy())
            for name in right:
                right[name][at] = _right(probs["lm"], probs[name], true[at])
        return Grid(right, gold)

    @torch.inference_mode()
    def neighbours(self, documents: Documents, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return distances and indices (P, K) of the positions' hidden states."""
        queries = torch.zeros(len(positions), self.store.keys.shape[1])
        for places in forward_positions(self.decoder, documents, positions, head=False):
            queries[places.at] = places.hidden[:, : queries.shape[1]].float()
        blocks = [(d, i) for _, d, i in self.search.search(queries, self.k)]
        return torch.cat([d for d, _ in blocks]), torch.cat([i for _, i in blocks])

    def knn_log_probs(
        self, neighbours: tuple[Tensor, Tensor], at: np.ndarray, vocab: int
    ) -> Tensor:
        """Return the kNN log-probs (n, V) at some positions, from the result of `neighbours`."""
        distances, indices = (x[at] for x in neighbours)
        indices = indices.numpy()
        values = torch.from_numpy(self.store.values[indices].astype(np.int64))
        counts = torch.from_numpy(self.store.counts[indices])
        return knn_log_probs(distances, values, counts, self.temperature, vocab)


def _right(lm: Tensor, other: Tensor, true: Tensor) -> np.ndarray:
    """Return (n, L): whether the mix's argmax over V is the true token, at every lambda."""
    columns = [((1 - x) * lm + x * other).argmax(-1) == true for x in ATLAS_LAMBDAS]
    return torch.stack(columns, 1).numpy()


GROUPS = ("A1", "A2", "B")
CHOOSING = "dev"  # the held-out wordings that choose lambda
WORDINGS = ("seen", "test", "unseen", "statement_test")
CHAT_GROUPS = ("real", "invented")
CHAT_WORDINGS = ("seen", "test", "unseen", "second", "third", "two", "two_last", "two_within")


@dataclass(frozen=True)
class Measured:
    """One model's grid over questions and held-out text."""

    questions: Questions
    grid: Grid
    text_groups: np.ndarray  # (P,) group of every held-out position
    text: Grid
    text_units: np.ndarray  # (P,) unit of resampling of each, see text.units_of

    def accuracy(self, source: str, lmbda: float) -> dict[str, dict]:
        """Return {cell: {"n", "right"}} at one of ATLAS_LAMBDAS."""
        return tally(self.questions, self.grid.right[source][:, ATLAS_LAMBDAS.index(lmbda)])

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
    def load(
        cls,
        corpus: Path,
        tokenizer,
        most: int,
        seed: int,
        groups: Sequence[str] = GROUPS,
        wordings: Sequence[str] = WORDINGS,
    ) -> "Test":
        """Return the test of a corpus folder, at most `most` questions per cell, drawn by seed."""
        cells = [f"{g}/{w}" for g in groups for w in (CHOOSING, *wordings)]
        rows = read_lines(corpus / "questions.jsonl")
        questions = encode_questions(tokenizer, sample_questions(rows, cells, most, seed))
        return cls(questions, _thinned(Documents.load(corpus / "heldout"), most, seed))

    def measure(self, sources: MeasuredModel) -> Measured:
        """Return the results of a decoder with its sources."""
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
    names = dict.fromkeys(documents.groups)
    chosen = [p for g in names for p in order[groups[order] == g][:most]]
    pairs = [(int(documents.document_of[p]), documents.passage(p).tolist()) for p in chosen]
    prompts = None if documents.prompts is None else [int(documents.prompts[p]) for p in chosen]
    return join_passages(pairs, documents.titles, documents.groups, prompts)


def measure_atlas(
    context: StageContext,
    decoder: Decoder,
    memory: Memory,
    store: Datastore,
    test: Test | None = None,
) -> dict:
    """Return the atlas's part of results.json: accuracy and perplexity, at each best lambda."""
    config, corpus = context.config, context.inputs["corpus"]
    test = test or Test.load(corpus, decoder.tokenizer, config.questions, context.seed)
    measured = test.measure(MeasuredModel(decoder, memory, store, config.k, config.temperature))
    curves = {source: curve(measured, source) for source in ("memory", "knn")}
    lmbda = {source: choose_lambda(rows) for source, rows in curves.items()}
    return {
        "choosing": CHOOSING,
        "lmbda": lmbda,
        "lambda_curves": curves,
        "systems": {
            "lm": _values(measured, "memory", 0.0),  # lambda 0 is only the decoder
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
    """Return accuracy and perplexity over ATLAS_LAMBDAS, by cell and group."""
    rows: dict[str, list[float]] = {"lmbdas": list(ATLAS_LAMBDAS)}
    for lmbda in ATLAS_LAMBDAS:
        values = shares(measured.accuracy(source, lmbda))
        values |= {f"ppl_{g}": p for g, p in measured.perplexity(source, lmbda).items()}
        for key, value in values.items():
            rows.setdefault(key, []).append(value)
    return rows


def choose_lambda(rows: dict[str, list[float]]) -> float:
    """Return the lambda with the best mean accuracy on dev questions, the smallest of equals."""
    cells = [cell for cell in rows if cell.endswith(f"_{CHOOSING}")]
    means = np.mean([rows[cell] for cell in cells], axis=0)
    return ATLAS_LAMBDAS[int(np.argmax(means.round(9)))]


def best_measurements(measured: Measured, systems: Sequence[str]) -> Iterator[Measurement]:
    """Yield exact match by cell and perplexity by group of systems, at each best dev lambda."""
    for system in systems:
        lmbda = 0.0 if system == "lm" else choose_lambda(curve(measured, system))
        source = "memory" if system == "lm" else system  # lambda 0 of any system is the decoder
        for cell, count in measured.accuracy(source, lmbda).items():
            right = share(np.arange(count["n"]) < count["right"])
            yield Measurement(system, cell, "exact_match", right, lmbda)
        nll = measured.text.nll(source, lmbda)
        for group in dict.fromkeys(measured.text_groups.tolist()):
            mask = measured.text_groups == group
            ppl = perplexity(nll[mask], measured.text_units[mask])
            yield Measurement(system, group, "perplexity", ppl, lmbda)

"""Perplexity of a text corpus by every source, with a window that slides over each document.

A document's first window scores all its tokens. Each further window scores the tokens after the
window before it, at most `stride`, with the others as context. P is the number of scored positions,
K that of neighbours.

k, temperature and both lambdas are chosen on the validation split and measured on the test split.
Windows should be as long as the keyed passages, or queries have more context than keys.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product

import numpy as np
import torch
from tqdm import tqdm

from mlpmem.engine.distributions import mix_nll
from mlpmem.engine.settings import lambda_grid
from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from mlpmem.retrieval.bulk_search import BulkSearch
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.documents import Documents, join_passages
from mlpmem.retrieval.passages import forward_positions
from train.config.tables import EvaluateConfig
from train.run.stage import StageContext

SMALLEST = 1e-30  # probability that replaces a smaller one
LARGEST = -math.log(SMALLEST)  # nll in nats of SMALLEST


def slide(
    documents: Documents, window: int, stride: int, most: int, seed: int
) -> tuple[Documents, np.ndarray]:
    """Return (windows as passages, (P,) scored positions in them).

    Every window begins with its document's first token (BOS), like the datastore's passages; every
    other token is scored once. Beyond `most` tokens, windows are dropped at random by seed.
    """
    offsets = documents.offsets.tolist()
    spans = [
        (p, *span)
        for p in range(len(documents))
        for span in _spans(offsets[p] + 1, offsets[p + 1], window - 1, stride)
    ]
    order = np.random.default_rng(seed).permutation(len(spans))
    scored = np.cumsum([spans[i][3] - spans[i][2] for i in order])
    chosen = np.sort(order[: max(1, int(np.searchsorted(scored, most, side="right")))])
    pairs, positions, length = [], [np.empty(0, np.int64)], 0
    for p, start, first, end in (spans[i] for i in chosen):
        ids = [int(documents.tokens[offsets[p]]), *documents.tokens[start:end].tolist()]
        pairs.append((int(documents.document_of[p]), ids))
        positions.append(length + 1 + np.arange(first - start, end - start))
        length += len(ids)
    return join_passages(pairs, documents.titles, documents.groups), np.concatenate(positions)


def _spans(begin: int, end: int, width: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, first scored, end) of the windows over the tokens from `begin` to `end`."""
    start = first = begin
    while first < end:
        stop = min(start + width, end)
        yield start, first, stop
        start, first = start + stride, stop


def all_positions(documents: Documents) -> np.ndarray:
    """Return the positions (P,) of all tokens except those of each passage's prompt."""
    if documents.prompts is None:
        return np.delete(np.arange(len(documents.tokens)), documents.offsets[:-1])
    spans = zip(documents.offsets[:-1] + documents.prompts, documents.offsets[1:], strict=True)
    return np.concatenate([np.arange(*span) for span in spans])


def groups_of(documents: Documents, positions: np.ndarray) -> np.ndarray:
    """Return the group of every position, (P,) strings."""
    return np.array(documents.groups)[documents.document_of[documents.passage_at(positions)]]


def units_of(documents: Documents, positions: np.ndarray) -> np.ndarray:
    """Return the unit of resampling of every position, (P,): its document.

    If all positions are of one document, it is the passage, such as a window.
    """
    passages = documents.passage_at(positions)
    units = documents.document_of[passages]
    return passages if len(units) and np.all(units == units[0]) else units


@dataclass(frozen=True)
class Golds:
    """The true tokens' probability by each source; nothing has size V."""

    lm: np.ndarray  # (P,) nll in nats by the decoder
    memory: np.ndarray  # (P,) nll in nats by the memory
    distances: np.ndarray  # (P, K) float32 squared L2, nearest first
    counts: np.ndarray  # (P, K) entries that each neighbour represents
    hits: np.ndarray  # (P, K) bool: the neighbour's value is the true token

    def knn(self, k: int, temperature: float) -> np.ndarray:
        """Return the nll (P,) in nats by the k nearest neighbours."""
        distances = self.distances[:, :k].astype(np.float64)
        weights = self.counts[:, :k] * np.exp((distances[:, :1] - distances) / temperature)
        return nll_of((weights * self.hits[:, :k]).sum(1) / weights.sum(1))

    def nll(self, other: np.ndarray, lmbda: float) -> np.ndarray:
        """Return the nll (P,) in nats under the mix of the decoder and another source's nll."""
        return mix_nll(self.lm, other, lmbda).numpy()


def nll_of(probs: np.ndarray) -> np.ndarray:
    """Return the nll in nats of probabilities, LARGEST at most."""
    return -np.log(np.maximum(probs, SMALLEST))


@torch.inference_mode()
def measure_golds(
    decoder: Decoder,
    memory: Memory | None,
    store: Datastore,
    text: tuple[Documents, np.ndarray],
    k: int,
) -> Golds:
    """Return the Golds of a text's positions, with k neighbours each; no memory has an nll of 0."""
    documents, positions = text
    true = torch.from_numpy(documents.tokens[positions].astype(np.int64))
    lm_nll, memory_nll = np.zeros(len(positions)), np.zeros(len(positions))
    queries = torch.zeros(len(positions), store.keys.shape[1])
    for places in forward_positions(decoder, documents, positions):
        at, hidden = places.at, places.hidden.float()
        queries[at] = hidden[:, : queries.shape[1]].cpu()
        sources = [(lm_nll, places.logits)]
        if memory is not None:
            sources.append((memory_nll, memory(hidden)))
        for result, logits in sources:
            nll = -logits.float().cpu().log_softmax(-1).gather(1, true[at, None])
            result[at] = nll[:, 0].clamp_max(LARGEST).double().numpy()
    search = BulkSearch(store.keys, decoder.device)
    blocks = []
    with tqdm(total=len(queries), desc="neighbours", unit="position") as bar:
        for _, distances, indices in search.search(queries, k):
            blocks.append((distances.cpu().numpy(), indices.cpu().numpy()))
            bar.update(len(distances))
    distances, indices = map(np.concatenate, zip(*blocks, strict=True))
    hits = store.values[indices] == true.numpy()[:, None]
    return Golds(lm_nll, memory_nll, distances, store.counts[indices], hits)


def perplexity(lm: np.ndarray, other: np.ndarray, lmbda: float) -> float:
    """Return the perplexity of the mix of two sources, given by their nlls (P,)."""
    return float(mix_nll(lm, other, lmbda).mean().exp())


def curve(lm: np.ndarray, other: np.ndarray, lmbdas: Sequence[float]) -> list[float]:
    """Return the perplexity at every lambda."""
    return [perplexity(lm, other, lmbda) for lmbda in lmbdas]


GROUP = "text"
CHOOSING = "valid"
TEXT_LAMBDAS = lambda_grid(40)


def measure_text(context: StageContext, decoder: Decoder, memory: Memory, store: Datastore) -> dict:
    """Return a text corpus's part of results.json."""
    config = context.config
    if config.window > decoder.max_positions:
        raise MlpMemError(
            f"evaluate: window must be at most {decoder.max_positions} tokens, which is what the "
            f"decoder reads; got {config.window}. Lower it in the recipe's [evaluate]"
        )
    golds = {}
    for split in (CHOOSING, "test"):
        documents = Documents.load(context.inputs["corpus"] / split)
        text = slide(documents, config.window, config.stride, config.tokens, context.seed)
        golds[split] = measure_golds(decoder, memory, store, text, max(config.ks))
    valid, test = golds[CHOOSING], golds["test"]
    mix = choose_mix(valid, config)
    curves = {
        source: {
            "lmbdas": list(TEXT_LAMBDAS),
            f"ppl_{CHOOSING}": curve(valid.lm, mix.source_nll(valid, source), TEXT_LAMBDAS),
            f"ppl_{GROUP}": curve(test.lm, mix.source_nll(test, source), TEXT_LAMBDAS),
        }
        for source in mix.lmbda
    }
    ppl = {s: float(np.exp(mix.nll(test, s).mean())) for s in ("memory", "knn", "lm")}
    return {
        "choosing": CHOOSING,
        "config": asdict(config) | {"k": mix.k, "temperature": mix.temperature},
        "lmbda": mix.lmbda,
        "lambda_curves": curves,
        "scored": {split: len(part.lm) for split, part in golds.items()},
        "share_of_gain": share_of_gain(ppl),
        "systems": {name: {"accuracy": {}, "ppl": {GROUP: value}} for name, value in ppl.items()},
    }


@dataclass(frozen=True)
class MixSettings:
    """The settings of kNN and of the mixes, chosen on a validation split."""

    k: int
    temperature: float
    lmbda: dict[str, float]  # of "memory" and "knn"

    def source_nll(self, golds: Golds, source: str) -> np.ndarray:
        """Return the nll (P,) in nats by only memory or kNN."""
        return golds.memory if source == "memory" else golds.knn(self.k, self.temperature)

    def nll(self, golds: Golds, system: str) -> np.ndarray:
        """Return the nll (P,) in nats by "lm", or by the mix with memory or kNN."""
        if system == "lm":
            return golds.nll(golds.lm, 0.0)
        return golds.nll(self.source_nll(golds, system), self.lmbda[system])


def choose_mix(valid: Golds, config: EvaluateConfig) -> MixSettings:
    """Return the settings of lowest validation perplexity, with the best lambda of each source."""
    ks = sorted({min(k, valid.distances.shape[1]) for k in config.ks})

    def best(pair: tuple[int, float]) -> float:
        return min(curve(valid.lm, valid.knn(*pair), TEXT_LAMBDAS))

    k, temperature = min(product(ks, config.temperatures), key=best)
    others = {"memory": valid.memory, "knn": valid.knn(k, temperature)}
    lmbda = {s: best_lambda(curve(valid.lm, other, TEXT_LAMBDAS)) for s, other in others.items()}
    return MixSettings(k, temperature, lmbda)


def best_lambda(perplexities: list[float]) -> float:
    """Return the lambda of the lowest perplexity, the smallest of equals."""
    return TEXT_LAMBDAS[perplexities.index(min(perplexities))]


def share_of_gain(ppl: dict[str, float]) -> float | None:
    """Return (lm - memory) / (lm - knn): the memory's share of kNN's gain; None without a gain."""
    gain = ppl["lm"] - ppl["knn"]
    return (ppl["lm"] - ppl["memory"]) / gain if gain > 0 else None

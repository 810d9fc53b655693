"""How faithful is the imitation? The memory against the datastore on text new to both.

Positions are held out, and the datastore does not hold their prefix. p is the datastore's
distribution, at the k and temperature of the memory's targets. q is the memory's or, as a baseline,
the decoder's. Metrics are KL(p || q), JS and agreement of the most probable token. Bands are
quartiles of two quantities: the true token's count in the datastore and the nearest neighbour's
distance.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mlpmem.engine.distributions import js_divergence, log_softmax
from mlpmem.errors import MlpMemError
from mlpmem.retrieval.documents import Documents
from mlpmem.retrieval.passages import forward_positions
from train.measure.atlas import MeasuredModel
from train.measure.findings import Finding, mean, share
from train.measure.text import groups_of, units_of
from train.studies.run import Run, pooled

BANDS = 4
MULTIPLIER = np.uint64(6364136223846793005)  # Knuth's, of a linear congruence modulo 2**64


@torch.inference_mode()
def imitation(run: Run) -> Iterator[Finding]:
    """Yield KL, JS (nats) and agreement of memory and decoder with the datastore, by band."""
    documents, positions = run.text()
    positions = positions[~_known(documents, positions, run.store.documents)]
    if not len(positions):
        raise MlpMemError(
            "imitation: the datastore holds the prefix of every held-out position; raise positions "
            "in the recipe's [studies]"
        )
    config = run.memory.config
    sources = MeasuredModel(
        run.decoder, run.memory, run.store, config.knn_k, config.knn_temperature
    )
    neighbours = sources.neighbours(documents, positions)
    measured = {name: np.zeros((len(positions), 3)) for name in ("memory", "lm")}
    for batch in forward_positions(run.decoder, documents, positions):
        knn = sources.knn_log_probs(neighbours, batch.at, run.decoder.vocab_size)
        for name, logits in (("memory", run.memory(batch.hidden)), ("lm", batch.logits)):
            measured[name][batch.at] = faithfulness(knn, log_softmax(logits))
    values = documents.tokens[positions]
    frequency = np.bincount(run.store.values, run.store.counts, run.decoder.vocab_size)[values]
    distance, units = neighbours[0][:, 0].double().numpy(), units_of(documents, positions)
    for split, setting, mask in _splits(groups_of(documents, positions), frequency, distance):
        for name, rows in measured.items():
            kl, js, agree = rows[mask].T
            yield run.finding(name, split, "kl", mean(kl, units[mask]), **setting)
            yield run.finding(name, split, "js", mean(js, units[mask]), **setting)
            yield run.finding(name, split, "agreement", share(agree > 0), **setting)


def faithfulness(p: Tensor, q: Tensor) -> np.ndarray:
    """Return (n, 3) of log-probs p, q (n, V): KL(p || q) and JS in nats, same argmax (0 or 1)."""
    kl = torch.where(p.isinf(), 0.0, p.exp() * (p - q)).sum(-1)
    agree = (p.argmax(-1) == q.argmax(-1)).float()
    return torch.stack([kl, js_divergence(p, q), agree], 1).double().numpy()


def bands(values: np.ndarray, count: int = BANDS) -> list[tuple[float, float, np.ndarray]]:
    """Return (from, to, (P,) bool) of quantile bands; only the last includes its upper end.

    Equal values share a band, so there may be fewer than `count`.
    """
    edges = np.unique(np.quantile(values, np.linspace(0, 1, count + 1)))
    band_of = np.searchsorted(edges[1:-1], values, side="right")
    ends = edges if len(edges) > 1 else np.repeat(edges, 2)
    return [(float(ends[b]), float(ends[b + 1]), band_of == b) for b in np.unique(band_of)]


def _splits(
    groups: np.ndarray, frequency: np.ndarray, distance: np.ndarray
) -> Iterator[tuple[str, dict, np.ndarray]]:
    """Yield (split, setting, (P,) bool)."""
    for name, mask in pooled(groups).items():
        yield name, {}, mask
    for split, values in (("frequency", frequency), ("distance", distance)):
        for low, high, mask in bands(values):
            yield split, {"from": low, "to": high}, mask


def _known(documents: Documents, positions: np.ndarray, store: Documents) -> np.ndarray:
    """Return whether the datastore holds each position's prefix, (P,) bool."""
    return np.isin(prefix_hashes(documents)[positions], prefix_hashes(store))


def prefix_hashes(documents: Documents) -> np.ndarray:
    """Return a hash (M,) uint64 of each token's prefix in its passage."""
    lengths = np.diff(documents.offsets)
    hashes = np.zeros(len(documents.tokens), np.uint64)
    for column in range(1, int(lengths.max(initial=1))):
        at = documents.offsets[:-1][lengths > column] + column
        before = np.asarray(documents.tokens[at - 1], np.uint64)
        hashes[at] = (hashes[at - 1] + before + np.uint64(1)) * MULTIPLIER
    return hashes

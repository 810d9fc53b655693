"""Every source and every lambda in one pass: which tokens would be right, and their nll."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mlpmem.engine.distributions import knn_log_probs
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from mlpmem.retrieval.bulk_search import BulkSearch
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.documents import Documents
from mlpmem.retrieval.passages import forward_positions
from train.measure.text import mixed_nll

# Decoder and memory are each certain on their own ground, so the mix tips near one half.
LAMBDAS = (
    0.0, 0.1, 0.2, 0.3, 0.4, 0.45, 0.48, 0.49, 0.5, 0.5025, 0.505, 0.5075, 0.51, 0.515, 0.52,
    0.53, 0.55, 0.57, 0.6, 0.65, 0.7, 0.8, 0.9, 1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """Of P positions and L lambdas, by source ("memory", "knn")."""

    right: dict[str, np.ndarray]  # (P, L) bool: the mix's most probable token is the true one
    gold: dict[str, np.ndarray]  # (P,) the true token's probability, also under "lm"

    def nll(self, source: str, lmbda: float) -> np.ndarray:
        """Return the true tokens' nll (P,) in nats under the mix."""
        return mixed_nll(self.gold["lm"], self.gold[source], lmbda)  # source "lm" is itself


class Sources:
    """The decoder, and beside it the memory and the datastore where there are any."""

    def __init__(
        self,
        decoder: Decoder,
        memory: Memory | None = None,
        store: Datastore | None = None,
        k: int = 128,
        temperature: float = 20.0,
    ) -> None:
        """Prepare the search; without memory and store only the decoder is measured."""
        self.decoder, self.memory, self.store = decoder, memory, store
        self.k, self.temperature = k, temperature
        if store is not None:
            self.search = BulkSearch(store.keys)

    @torch.inference_mode()
    def grid(self, documents: Documents, positions: np.ndarray) -> Grid:
        """Return the Grid of positions (indices into documents.tokens)."""
        neighbours = self.neighbours(documents, positions) if self.store is not None else None
        names = ["memory"] * (self.memory is not None) + ["knn"] * (neighbours is not None)
        right = {name: np.zeros((len(positions), len(LAMBDAS)), bool) for name in names or ["lm"]}
        gold = {name: np.zeros(len(positions)) for name in ("lm", *names)}
        true = torch.from_numpy(documents.tokens[positions].astype(np.int64))
        for at, hidden, logits, *_ in forward_positions(self.decoder, documents, positions):
            probs = {"lm": logits.float().softmax(-1)}
            if "memory" in names:
                probs["memory"] = self.memory(hidden).float().softmax(-1)
            if "knn" in names:
                probs["knn"] = self.knn_log_probs(neighbours, at, logits.shape[-1]).exp()
            for name, p in probs.items():
                gold[name][at] = p.gather(1, true[at, None])[:, 0].double().numpy()
            for name in right:
                right[name][at] = _right(probs["lm"], probs[name], true[at])
        return Grid(right, gold)

    @torch.inference_mode()
    def neighbours(self, documents: Documents, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return distances and indices (P, K) of the positions' hidden states."""
        queries = torch.zeros(len(positions), self.store.keys.shape[1])
        for places in forward_positions(self.decoder, documents, positions, head=False):
            queries[places.at] = places.hidden.float()
        found = [(d, i) for _, d, i in self.search.search(queries, self.k)]
        return torch.cat([d for d, _ in found]), torch.cat([i for _, i in found])

    def knn_log_probs(
        self, neighbours: tuple[Tensor, Tensor], at: np.ndarray, vocab: int
    ) -> Tensor:
        """Return kNN log-probs (n, V) of some positions, from what `neighbours` returned."""
        distances, indices = (x[at] for x in neighbours)
        indices = indices.numpy()
        values = torch.from_numpy(self.store.values[indices].astype(np.int64))
        counts = torch.from_numpy(self.store.counts[indices])
        return knn_log_probs(distances, values, counts, self.temperature, vocab)


def _right(lm: Tensor, other: Tensor, true: Tensor) -> np.ndarray:
    """Return (n, L): whether the mix's argmax over V is the true token, at every lambda."""
    columns = [((1 - x) * lm + x * other).argmax(-1) == true for x in LAMBDAS]
    return torch.stack(columns, 1).numpy()

"""What answers beside the decoder, and what every source says at some positions."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from mlpmem.engine.distributions import interpolate
from mlpmem.engine.trace import PARTS
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.retriever import Neighbours, Retriever


class Store(NamedTuple):
    """A datastore, its search, and the arrays the mix gathers from."""

    datastore: Datastore
    retriever: Retriever
    values: Tensor  # (N,) int64
    counts: Tensor  # (N,) int32

    @property
    def bytes(self) -> int:
        """Return the size of entries and index; keys that the index holds are counted once."""
        twice = self.datastore.keys.nbytes if self.retriever.holds_keys else 0
        return self.datastore.bytes + self.retriever.bytes - twice


class Sources(NamedTuple):
    """What every source says at R positions."""

    names: tuple[str, ...]  # "lm" first
    log_probs: Tensor  # (S, R, V) float32, one slice a source
    neighbours: Neighbours | None  # (R, K)
    weights: Tensor | None  # (R, K) share of the kNN mass
    seconds: Mapping[str, float]  # spent on "memory" and "search", of all R

    def __getitem__(self, system: str) -> Tensor:
        """Return a source's log-probs (R, V), or those of a system's sources in equal shares."""
        parts = [self.log_probs[self.names.index(part)] for part in PARTS[system] or ("lm",)]
        return interpolate(*parts, 0.5) if len(parts) == 2 else parts[0]

    def nearest(self, system: str) -> Tensor | None:
        """Return squared distances (R,) of the nearest neighbours, None if none are searched."""
        searched = "knn" in PARTS[system]
        return self.neighbours.distances[:, 0] if searched else None

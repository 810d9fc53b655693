"""Retrievers: the K nearest keys of every query by squared L2, with one interface.

ExactRetriever is plain torch, on any device. BulkRetriever is exact, for many queries at once.
FaissFlatRetriever is exact over fp16 keys on a CPU. IVFPQRetriever is small and approximate. A new
retriever is a class with `search`.
"""

import logging
import sys
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from mlpmem.errors import MlpMemError
from mlpmem.retrieval.bulk_search import BulkSearch
from mlpmem.retrieval.exact_search import ExactSearch, writable
from mlpmem.retrieval.inverted_file import LEAST, InvertedSearch
from mlpmem.retrieval.top_k import nearest_first

log = logging.getLogger(__name__)
BLOCK = 65536  # keys added to an index at once
MANY = 16  # queries from which matrix products are faster on a CPU than faiss


class Neighbours(NamedTuple):
    """The nearest entries of every query, nearest first; padded with index -1."""

    indices: Tensor  # (Q, K) int64
    distances: Tensor  # (Q, K) float32, squared L2, inf for padding


class Retriever(Protocol):
    """Finds the nearest keys of queries."""

    bytes: int  # size of the index in memory
    holds_keys: bool  # whether `bytes` includes the keys

    def search(self, queries: Tensor, k: int) -> Neighbours:
        """Return the k nearest keys of queries (Q, D), padded with -1."""


class Search(Protocol):
    """Searches queries in blocks: ExactSearch, BulkSearch or InvertedSearch."""

    def search(self, queries: Tensor, k: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (first query, distances (q, K), indices (q, K)) by blocks, K = min(k, N)."""


class _SearchRetriever:
    """A retriever by a Search."""

    def __init__(self, search: Search, size: int) -> None:
        """Use this search, whose keys or codes take `size` bytes."""
        self._search, self.bytes = search, size

    @torch.inference_mode()
    def search(self, queries: Tensor, k: int) -> Neighbours:
        """Return the k nearest keys of queries (Q, D), padded with -1."""
        blocks = [(d, i) for _, d, i in self._search.search(queries, k)]
        if not blocks:
            return Neighbours(queries.new_empty(0, k, dtype=torch.long), queries.new_empty(0, k))
        distances, indices = (torch.cat(x).to(queries.device) for x in zip(*blocks, strict=True))
        return _padded(distances, indices, k)


class ExactRetriever(_SearchRetriever):
    """Exact search of stored keys, on any device; see ExactSearch for ties."""

    holds_keys = True

    def __init__(self, keys: np.ndarray | Tensor, device: str | torch.device = "cpu") -> None:
        """Hold keys (N, D) on device."""
        super().__init__(ExactSearch(writable(keys), device), _bytes(keys))


class BulkRetriever(_SearchRetriever):
    """Exact search for many queries at once; see BulkSearch."""

    holds_keys = True

    def __init__(self, keys, device: str | torch.device = "cpu") -> None:
        """Prepare keys (N, D)."""
        super().__init__(BulkSearch(keys, device), _bytes(keys))


class FaissFlatRetriever:
    """Exact search over fp16 keys by faiss; distances are summed in float32."""

    holds_keys = True

    def __init__(self, keys: np.ndarray) -> None:
        """Copy keys (N, D) into a flat fp16 index."""
        import faiss

        kind = faiss.ScalarQuantizer.QT_fp16
        self.index = faiss.IndexScalarQuantizer(keys.shape[1], kind, faiss.METRIC_L2)
        for start in range(0, len(keys), BLOCK):
            self.index.add(np.ascontiguousarray(keys[start : start + BLOCK], dtype=np.float32))
        self.bytes = self.index.ntotal * self.index.sa_code_size()
        codes = self.index.codes  # nothing is added later, so their address is fixed
        view = faiss.rev_swig_ptr(codes.data(), codes.size()).view(np.float16)
        self._products = ExactRetriever(view.reshape(keys.shape))

    @torch.inference_mode()
    def search(self, queries: Tensor, k: int) -> Neighbours:
        """Return the k nearest keys of queries (Q, D), padded with -1."""
        if len(queries) >= MANY:
            return self._products.search(queries, k)
        rows = np.ascontiguousarray(queries.float().cpu().numpy())
        distances, indices = map(torch.from_numpy, self.index.search(rows, k))
        distances = distances.clamp_min(0).masked_fill(indices < 0, torch.inf)
        indices, order = indices.sort(dim=1)
        nearest = nearest_first(distances.gather(1, order), indices, k)
        return _padded(*(x.to(queries.device) for x in nearest), k)


class IVFPQRetriever(_SearchRetriever):
    """Approximate search over product-quantised keys; distances are of the true keys."""

    holds_keys = False

    def __init__(self, keys: np.ndarray) -> None:
        """Train on a sample of keys (N, D) and add all."""
        search = InvertedSearch(writable(keys), "ivfpq", quiet=True)
        super().__init__(search, search.index.ntotal * search.index.sa_code_size())


def _bytes(keys) -> int:
    return len(keys) * keys.shape[1] * keys.dtype.itemsize


def _padded(distances: Tensor, indices: Tensor, k: int) -> Neighbours:
    """Return neighbours with k columns, padded with index -1 at distance inf."""
    short = k - indices.shape[1]
    if short > 0:
        indices = torch.nn.functional.pad(indices, (0, short), value=-1)
        distances = torch.nn.functional.pad(distances, (0, short), value=torch.inf)
    return Neighbours(indices, distances)


RETRIEVERS = {"exact": ExactRetriever, "flat": FaissFlatRetriever, "ivfpq": IVFPQRetriever}


# on macOS faiss and torch each load an OpenMP, and two in one process crash: use only torch
DEFAULT = "exact" if sys.platform == "darwin" else "flat"


def make_retriever(kind: str | None, keys: np.ndarray) -> Retriever:
    """Return a retriever of kind "exact", "flat" or "ivfpq" over keys (N, D); None is DEFAULT.

    Too few keys for "ivfpq" are searched by DEFAULT, which is exact; a warning is logged.
    """
    kind = DEFAULT if kind is None else kind
    if kind not in RETRIEVERS:
        raise MlpMemError(f"retriever must be one of {', '.join(RETRIEVERS)}; got {kind!r}")
    if len(keys) == 0:
        raise MlpMemError(
            "retriever: the datastore must have entries; it is empty. Give it some text"
        )
    if kind == "ivfpq" and len(keys) < LEAST:
        log.warning(
            "retriever: ivfpq needs at least %d entries; got %d, which are searched exactly. Give "
            "more text for an index",
            LEAST,
            len(keys),
        )
        kind = DEFAULT
    return RETRIEVERS[kind](keys)

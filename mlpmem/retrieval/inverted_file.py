"""Approximate search of tens of millions of keys by an inverted file, with measured recall.

faiss holds the keys in one byte per number (ivfsq) or 64 bytes per key (ivfpq), and searches only
the lists nearest to a query. Its candidates are rescored on the true keys.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mlpmem.errors import MlpMemError
from mlpmem.retrieval.bulk_search import BulkSearch
from mlpmem.retrieval.exact_search import (
    EXTRA,
    QUERY_BLOCK,
    as_float,
    rescore,
    rows_of,
    writable,
)
from mlpmem.retrieval.top_k import LAST

BLOCK = 65536  # keys added at once
CODE_BYTES = 64  # of a product-quantised key
ROUNDS = 10  # of k-means that trains the lists
PER_LIST = 64  # training keys per list
SAMPLE = 256  # queries for measuring recall
LEAST = 16  # entries at least, one per centre of the shortest product code


class InvertedSearch:
    """Same interface as ExactSearch, over `probes` lists of an inverted file."""

    def __init__(
        self, keys, kind: str, lists: int = 0, probes: int = 0, seed: int = 0, quiet: bool = False
    ) -> None:
        """Train on a sample of keys (N, D) and add all, by blocks; kind is ivfsq or ivfpq.

        0 chooses lists and probes. MlpMemError if there are too few keys for so many lists.
        """
        self.keys = torch.as_tensor(writable(keys)) if isinstance(keys, np.ndarray) else keys
        self.kind, self.probes = kind, probes
        lists = check_lists(len(keys), 1, lists, probes)
        self.index = _index(kind, keys.shape[1], lists, len(keys))
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(len(keys), min(len(keys), PER_LIST * max(lists, 256)), False))
        self.index.cp.seed, self.index.cp.niter = seed + 1, ROUNDS
        self.index.train(self._rows(torch.from_numpy(chosen)).numpy())
        starts = range(0, len(keys), BLOCK)
        bar = {"unit": "k keys", "unit_scale": BLOCK / 1000, "mininterval": 5.0, "disable": quiet}
        for start in tqdm(starts, kind, **bar):
            self.index.add(self._rows(slice(start, start + BLOCK)).numpy())

    def search(self, queries, k: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (first query, distances (q, K), indices (q, K)) like ExactSearch; -1 is padding.

        MlpMemError if too few lists are probed to find k neighbours.
        """
        k = min(k, len(self.keys))
        more = min(k + EXTRA, len(self.keys))
        self.index.nprobe = probes_for(len(self.keys), self.index.nlist, k, self.probes)
        for start in range(0, len(queries), QUERY_BLOCK):
            block = as_float(queries[start : start + QUERY_BLOCK], torch.device("cpu"))
            indices = torch.from_numpy(self.index.search(block.numpy(), more)[1])
            yield start, *rescore(self._rows, block, indices, k)

    def recall(self, k: int, seed: int = 0) -> float:
        """Return the share of the k nearest that is found, for a sample of the keys as queries.

        Any key at most as far as the k-th nearest is right. A key finding itself does not count.
        """
        rng = np.random.default_rng(seed)
        at = np.sort(rng.choice(len(self.keys), min(SAMPLE, len(self.keys)), replace=False))
        queries = self._rows(torch.from_numpy(at))
        exact = BulkSearch(self.keys, budget=0)
        (_, distances, indices), (_, exact_distances, _) = (
            next(search.search(queries, k)) for search in (self, exact)
        )
        others = indices != torch.from_numpy(at)[:, None]
        right = (others & (distances <= exact_distances[:, -1:] * (1 + 1e-6))).sum(1)
        return float((right / (k - 1)).clamp_max(1).mean())

    def described(self, k: int) -> dict:
        """Return a manifest's fields of the search for k neighbours.

        recall is None if there are too many keys for an exact search.
        """
        entries, lists = len(self.keys), self.index.nlist
        probes = probes_for(entries, lists, k, self.probes)
        recall = round(self.recall(k), 4) if entries <= LAST else None
        return {"search": self.kind, "lists": lists, "probes": probes, "recall": recall}

    def _rows(self, at) -> Tensor:
        """Return a float32 copy of keys (n, D) at a slice or indices (n,)."""
        return rows_of(self.keys, at, torch.device("cpu"))


def probes_for(entries: int, lists: int, k: int, probes: int = 0) -> int:
    """Return how many lists to probe for k neighbours; probes=0 chooses, 32 or more if there are.

    MlpMemError if `probes` is too few: the lists must hold 3k entries on average, or all entries.
    """
    least = min(lists, -(-3 * k * lists // max(1, entries)))
    if probes == 0:
        return max(least, min(32, lists))
    if probes < least:
        raise MlpMemError(
            f"search: the probed lists must hold 3 x {k} entries on average to find the {k} "
            f"nearest; {probes} of {lists} hold {probes * entries / lists:,.0f} of {entries:,}. "
            f"Set probes to {least} or more (0 chooses), fewer lists, or a smaller k"
        )
    return min(probes, lists)


def lists_for(entries: int) -> int:
    """Return the default number of lists."""
    return max(1, min(int(4 * entries**0.5), entries // PER_LIST))


def check_lists(entries: int, k: int, lists: int, probes: int) -> int:
    """Return the number of lists, chosen if `lists` is 0.

    MlpMemError for too many lists, or too few probes to find k neighbours.
    """
    if entries < LEAST or lists > entries:
        raise MlpMemError(
            f"search: an inverted file needs one entry per list and at least {LEAST} entries; got "
            f"{entries:,} for {lists:,} lists (0 chooses). Lower lists, or search exactly: "
            'search = "exact" in [targets], retriever "exact" elsewhere'
        )
    lists = lists or lists_for(entries)
    probes_for(entries, lists, k, probes)
    return lists


def code_bytes(kind: str, size: int) -> int:
    """Return the bytes in memory per key of D = size, including its index."""
    return 8 + (size if kind == "ivfsq" else _pieces(size))


def _pieces(size: int) -> int:
    """Return the number of one-byte pieces of a product-quantised key."""
    return next(m for m in range(min(CODE_BYTES, size), 0, -1) if size % m == 0)


def _index(kind: str, size: int, lists: int, entries: int):
    """Return an empty faiss index for keys of D = size."""
    import faiss

    coarse = faiss.IndexFlatL2(size)
    if kind == "ivfsq":
        quantiser = faiss.ScalarQuantizer.QT_8bit
        index = faiss.IndexIVFScalarQuantizer(coarse, size, lists, quantiser, faiss.METRIC_L2)
    else:
        bits = 8 if entries >= 39 * 256 else 4
        index = faiss.IndexIVFPQ(coarse, size, lists, _pieces(size), bits)
    return index

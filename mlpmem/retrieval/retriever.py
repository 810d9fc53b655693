"""Search: the K nearest keys of every query by squared L2, behind one small protocol.

ExactRetriever is plain torch and runs where its keys are; FaissFlatRetriever is exact over the
same fp16 keys on a CPU; FaissIVFPQRetriever is small and approximate. A new one is a class with
`search`.
"""

import logging
import sys
from mmap import mmap
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from mlpmem.errors import MlpMemError
from mlpmem.retrieval.shards import ShardedKeys
from mlpmem.retrieval.top_k import Survivors, above, kth_largest

log = logging.getLogger(__name__)
BLOCK = 65536  # keys scored at once
SAMPLE = 16384  # keys at most whose mean stands for all of them
CACHED = 8192  # by a CPU, in whose cache their float32 copies stay
EXTRA = 32  # candidates beyond k: rounding may have put them behind it
LEAST = 16  # entries of a product-quantised index: the centres of its shortest code
MANY = 16  # queries, from which on products cost a CPU less than faiss, which reads keys for each


class Neighbours(NamedTuple):
    """The nearest entries of every query, nearest first; index -1 where there is none."""

    indices: Tensor  # (Q, K) int64
    distances: Tensor  # (Q, K) float32, squared L2, inf where there is none


class Retriever(Protocol):
    """Whatever finds neighbours."""

    bytes: int  # size of the index in memory
    holds_keys: bool  # whether these bytes include the keys, so that no other copy is needed

    def search(self, queries: Tensor, k: int) -> Neighbours:
        """Return the k nearest keys of queries (Q, D), fewer padded with -1."""


class ExactRetriever:
    """Exact search by blocked products in float32; equal distances are ordered by index, equal keys
    without fail, others as far as no more than k + EXTRA have one distance.

    Of every block only what beats the k-th best so far is looked at again, see top_k.py.
    """

    holds_keys = True

    def __init__(self, keys: np.ndarray | Tensor, device: str | torch.device = "cpu") -> None:
        """Hold keys (N, D) as they are stored, on device."""
        self.keys = torch.as_tensor(writable(keys)).to(device)
        self.bytes = self.keys.nbytes
        some = self.keys[:: max(1, len(self.keys) // SAMPLE)]
        self._mean = some.float().mean(0)  # near it products lose fewer digits

    @torch.inference_mode()
    def search(self, queries: Tensor, k: int) -> Neighbours:
        """Return the k nearest keys of queries (Q, D), fewer padded with -1."""
        queries = queries.to(self.keys.device, torch.float32)
        if not len(queries):
            return Neighbours(queries.new_empty(0, k, dtype=torch.long), queries.new_empty(0, k))
        indices = self._candidates(queries, min(k + EXTRA, len(self.keys)))
        return _ordered(rescore(self.keys, queries, indices), indices, k)

    def _candidates(self, queries: Tensor, k: int) -> Tensor:
        """Return indices (Q, k) of the largest q.k - |k|^2 / 2, in no order."""
        size = max(k, BLOCK if queries.device.type != "cpu" else CACHED)
        queries, found = queries - self._mean, None
        for start in range(0, len(self.keys), size):
            block = self.keys[start : start + size].to(torch.float32, copy=True).sub_(self._mean)
            halves = torch.linalg.vector_norm(block, dim=1).square_().mul_(0.5)
            scores = torch.addmm(halves, queries, block.T, beta=-1)
            if found is None:
                lowest = kth_largest(scores, k)
                below = torch.nextafter(lowest, torch.full_like(lowest, -torch.inf))
                found = Survivors(below, k)
            rows, at, _ = above(scores - found.thresholds[:, None])
            found.add(rows, at + start, scores[rows, at])
        return found.finish()[0]


class _FaissRetriever:
    """What the faiss indexes share: filling in blocks and searching."""

    def __init__(self, index, keys: np.ndarray) -> None:
        """Add keys (N, D) to index."""
        self.index = index
        for start in range(0, len(keys), BLOCK):
            index.add(np.ascontiguousarray(keys[start : start + BLOCK], dtype=np.float32))
        self.bytes = index.ntotal * index.sa_code_size()

    @torch.inference_mode()
    def search(self, queries: Tensor, k: int) -> Neighbours:
        """Return the k nearest keys of queries (Q, D), fewer padded with -1."""
        rows = np.ascontiguousarray(queries.float().cpu().numpy())
        distances, indices = self.index.search(rows, k)
        distances, indices = torch.from_numpy(distances), torch.from_numpy(indices)
        distances = distances.clamp_min(0).masked_fill(indices < 0, torch.inf)
        return _ordered(distances.to(queries.device), indices.to(queries.device), k)


class FaissFlatRetriever(_FaissRetriever):
    """Exact search over fp16 keys: the codes are the keys, distances are summed in float32."""

    holds_keys = True

    def __init__(self, keys: np.ndarray) -> None:
        """Copy keys (N, D) into a flat fp16 index."""
        import faiss

        kind = faiss.ScalarQuantizer.QT_fp16
        super().__init__(faiss.IndexScalarQuantizer(keys.shape[1], kind, faiss.METRIC_L2), keys)
        codes = self.index.codes  # nothing is added later, so they stay where they are
        held = faiss.rev_swig_ptr(codes.data(), codes.size()).view(np.float16)
        self._products = ExactRetriever(held.reshape(keys.shape))

    def search(self, queries: Tensor, k: int) -> Neighbours:
        """Return the k nearest keys of queries (Q, D), fewer padded with -1."""
        if len(queries) < MANY:
            return super().search(queries, k)
        found = self._products.search(queries, k)
        return Neighbours(*(x.to(queries.device) for x in found))


class FaissIVFPQRetriever(_FaissRetriever):
    """Approximate search over product-quantised keys; distances are re-scored on the true keys."""

    holds_keys = False

    def __init__(
        self, keys: np.ndarray, lists: int = 0, code_bytes: int = 0, probes: int = 0, seed: int = 0
    ) -> None:
        """Train on a sample of keys (N, D) and add all; 0 chooses from N, D and k, by the rule."""
        import faiss

        dim = keys.shape[1]
        lists = lists or max(1, min(4096, int(4 * len(keys) ** 0.5), len(keys) // 39 or 1))
        code_bytes = code_bytes or next(m for m in range(min(64, dim), 0, -1) if dim % m == 0)
        bits = 8 if len(keys) >= 39 * 256 else 4
        index = faiss.IndexIVFPQ(faiss.IndexFlatL2(dim), dim, lists, code_bytes, bits)
        index.cp.seed = index.pq.cp.seed = seed + 1
        index.verbose = False
        rows = np.random.default_rng(seed).permutation(len(keys))[: max(256, lists) * 64]
        index.train(np.ascontiguousarray(keys[np.sort(rows)], dtype=np.float32))
        super().__init__(index, keys)
        self.keys, self.probes = torch.as_tensor(writable(keys)), probes

    def search(self, queries: Tensor, k: int) -> Neighbours:
        """Return k near keys of queries (Q, D), fewer padded with -1; see probes_for."""
        index = self.index
        index.nprobe = probes_for(index.ntotal, index.nlist, k, self.probes)
        indices = super().search(queries, k).indices
        return _ordered(rescore(self.keys, queries.float(), indices), indices, k)


def probes_for(entries: int, lists: int, k: int, probes: int = 0) -> int:
    """Return how many lists of an inverted file to probe for k neighbours; 0 chooses, 32 at least.

    MlpMemError where `probes` lists are too few: they must hold 3k entries on average, or all.
    """
    least = min(lists, -(-3 * k * lists // max(1, entries)))
    if probes == 0:
        return max(least, min(32, lists))
    if probes < least:
        raise MlpMemError(
            f"search: {probes} of {lists} lists hold {probes * entries / lists:,.0f} of the "
            f"{entries:,} entries on average, too few to find the {k} nearest among: 3 x {k} is "
            f"the least. Set probes to {least} or more (0 chooses), fewer lists, or a smaller k"
        )
    return min(probes, lists)


RETRIEVERS = {"exact": ExactRetriever, "flat": FaissFlatRetriever, "ivfpq": FaissIVFPQRetriever}


# faiss and torch each bring an OpenMP on macOS, and two in one process crash: torch alone there
DEFAULT = "exact" if sys.platform == "darwin" else "flat"


def make_retriever(kind: str | None, keys: np.ndarray) -> Retriever:
    """Return a retriever of kind "exact", "flat" or "ivfpq" over keys (N, D); None is DEFAULT.

    Keys too few for "ivfpq" are searched by DEFAULT, which is exact, and a warning is logged.
    """
    kind = DEFAULT if kind is None else kind
    if kind not in RETRIEVERS:
        raise MlpMemError(f"retriever {kind!r} is not known, use one of {', '.join(RETRIEVERS)}")
    if len(keys) == 0:
        raise MlpMemError("retriever: the datastore has no entries; give it some text")
    if kind == "ivfpq" and len(keys) < LEAST:
        log.warning(
            "retriever: %d entries are too few for ivfpq, which needs %d or more; they are "
            "searched exactly. Give more text for an index",
            len(keys),
            LEAST,
        )
        kind = DEFAULT
    return RETRIEVERS[kind](keys)


def rescore(keys: Tensor, queries: Tensor, indices: Tensor, rows: int = 64) -> Tensor:
    """Return squared L2 distances (Q, K) of queries to the keys of indices, inf where -1."""
    parts = []
    for start in range(0, len(queries), rows):
        at = indices[start : start + rows]
        found = keys[at.clamp_min(0)].float()  # (rows, K, D)
        apart = (found - queries[start : start + rows, None]).square().sum(-1)
        parts.append(apart.masked_fill(at < 0, torch.inf))
    return torch.cat(parts) if parts else torch.empty(indices.shape)


def _ordered(distances: Tensor, indices: Tensor, k: int) -> Neighbours:
    """Return the first k neighbours by (distance, index), padded to k columns."""
    indices, order = indices.sort(dim=1)
    distances, by_distance = distances.gather(1, order).sort(dim=1, stable=True)
    distances, indices = distances[:, :k], indices.gather(1, by_distance[:, :k])
    short = k - indices.shape[1]
    if short > 0:
        indices = torch.nn.functional.pad(indices, (0, short), value=-1)
        distances = torch.nn.functional.pad(distances, (0, short), value=torch.inf)
    return Neighbours(indices, distances.float())


def writable(keys: np.ndarray | ShardedKeys | Tensor) -> np.ndarray | Tensor:
    """Return keys as torch takes them without a warning: maps copied on write, shards read."""
    if isinstance(keys, ShardedKeys):
        return np.array(keys)
    whole = isinstance(keys, np.memmap) and isinstance(keys.base, mmap)  # a part has its offset too
    if whole and not keys.flags.writeable:
        return np.memmap(keys.filename, keys.dtype, "c", keys.offset, keys.shape)
    return keys if isinstance(keys, Tensor) or keys.flags.writeable else keys.copy()

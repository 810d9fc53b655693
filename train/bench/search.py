"""Exact bulk search: queries/s, against this device's matmuls and faiss Flat, and recall.

The floor is only the products: 2 * N * D FLOP per query at the rate of a large matmul of the same
dtype, measured in turns with the search. Recall is against float64 distances: a neighbour no
farther than the true k-th (to 1e-6) is right. "before re-scoring" uses only the coarse scores.
"""

from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from mlpmem.fast.devices import keep_memory
from mlpmem.retrieval.bulk_search import BulkSearch
from mlpmem.retrieval.shards import ShardedKeys, open_keys
from train.bench.turns import BenchOptions, Figure
from train.run.machine import alternate, matmul_work

QUERIES = {"cpu": 2048, "cuda": 8192}
CHECKED = 64  # queries whose recall is measured
DIM = 256  # of synthetic keys
BLOCK = 65536  # keys converted at once
KS = (128, 1024)


def bench(options: BenchOptions, ks: tuple[int, ...] = KS) -> Iterator[Figure]:
    """Yield rate and recall for synthetic keys and, if given, for a datastore's."""
    keep_memory()
    keys = clustered(options.entries, DIM)
    yield from _figures(f"random {len(keys)}x{DIM}", keys, options.device, ks)
    if options.keys is not None:
        keys = open_keys(options.keys)
        name = f"{options.keys.resolve().parent.name} {len(keys)}x{keys.shape[1]}"
        yield from _figures(name, keys, options.device, ks)


def clustered(entries: int, dim: int) -> np.ndarray:
    """Return keys (N, D) float16: clusters of 100, not centred, wider in some directions."""
    return clustered_on("cpu", entries, dim).numpy()


def clustered_on(device: str, entries: int, dim: int) -> Tensor:
    """Return such keys (N, D) float16, drawn on a device; the same at every call there."""
    rng = torch.Generator(device).manual_seed(0)
    options = {"device": device, "generator": rng}
    centres = 3 * torch.randn(max(1, entries // 100), dim, **options) + 5
    widths = torch.linspace(2, 0.1, dim, device=device)
    keys = torch.empty(entries, dim, device=device, dtype=torch.float16)
    for block in keys.split(BLOCK):
        of = torch.randint(len(centres), (len(block),), **options)
        block.copy_(centres[of] + widths * torch.randn(len(block), dim, **options))
    return keys


def _figures(
    name: str, keys: np.ndarray | ShardedKeys, device: str, ks: tuple[int, ...]
) -> Iterator[Figure]:
    """Yield the figures of one set of keys."""
    rng = np.random.default_rng(1)
    count = min(QUERIES.get(torch.device(device).type, QUERIES["cpu"]), len(keys))
    queries = np.array(keys[np.sort(rng.choice(len(keys), count, replace=False))])
    search, flat = BulkSearch(keys, device), _flat(keys) if device == "cpu" else None
    product, flop = matmul_work(device, search.dtype)
    wide = queries.astype(np.float32)
    for k in (min(k, len(keys)) for k in ks):
        work = {
            "ours": lambda k=k: list(search.search(queries, k)),
            "product": product,
        }
        if flat is not None:
            work["flat"] = lambda k=k: flat.search(wide, k)
        seconds = alternate(work, device=device)
        floor = flop / seconds["product"] / (2 * len(keys) * keys.shape[1])
        peer = count / seconds["flat"] if flat is not None else None
        label = f"search {name} k {k}"
        yield Figure(label, count / seconds["ours"], "queries/s", floor, peer)
        checked = torch.from_numpy(queries[:CHECKED])
        coarse = search.candidates(checked, k).cpu()
        final = next(search.search(checked, k))[2].cpu()
        for metric, indices in (("recall before re-scoring", coarse), ("recall", final)):
            yield Figure(f"{label}: {metric}", recall(keys, checked, indices), "share")


def recall(keys: np.ndarray | ShardedKeys, queries: Tensor, indices: Tensor) -> float:
    """Return the share of indices (q, k) that are no farther than the true k-th neighbour."""
    distances = np.empty((len(queries), len(keys)), np.float64)
    for start in range(0, len(keys), BLOCK):
        block = torch.from_numpy(np.array(keys[start : start + BLOCK])).double()
        for row, query in zip(distances, queries.double(), strict=True):
            row[start : start + BLOCK] = (block - query).square().sum(-1)
    right = []
    for row, at in zip(torch.from_numpy(distances), indices, strict=True):
        kth = row.kthvalue(len(at)).values
        right.append((row[at.unique()] <= kth * (1 + 1e-6)).sum() / len(at))
    return float(torch.stack(right).mean())


def _flat(keys: np.ndarray | ShardedKeys):
    """Return faiss's flat index of the keys; None without faiss."""
    if find_spec("faiss") is None:
        return None
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(keys.shape[1])
    for start in range(0, len(keys), BLOCK):
        index.add(np.ascontiguousarray(keys[start : start + BLOCK], np.float32))
    return index

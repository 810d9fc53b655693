"""Search against the number of keys: one query's ms by every kind, the memory's ms beside it.

Keys are the datastore's own as far as they reach; beyond, they are the same keys moved by a tenth
of their spread, and the figure's name says "simulated". `crossing` says where the lines meet.
"""

import math
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch

from mlpmem.api import Model
from mlpmem.bench.figures import Figure, in_turns, timed
from mlpmem.retrieval.retriever import ExactRetriever

ENTRIES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
QUERIES, PROBES, MOVED = 8, 32, 0.1


def bench(model: Model, entries: Sequence[int] = ENTRIES, rounds: int = 15) -> Iterator[Figure]:
    """Yield ms of one query (kinds x sizes), recall of the approximate kind, and the crossings."""
    k, real = model.settings.k, model.datastore.keys
    queries = torch.from_numpy(
        np.array(real[np.linspace(0, len(real) - 1, QUERIES).astype(int)], dtype=np.float32)
    )
    queries = queries + MOVED * queries.std(0)
    lines: dict[str, list[tuple[int, float]]] = {}
    for n in entries:
        found, recall = _at(model, queries, made_keys(real, n), min(k, n), rounds)
        where = f"keys={n}" + ("/simulated" if n > len(real) else "")
        for kind, ms in found.items():
            lines.setdefault(kind, []).append((n, median(ms)))
            yield timed(f"search/{kind}/ms_per_query/{where}", ms)
        yield Figure(f"search/ivf-sq8/recall/{where}", recall, "share")
    memory = lines.pop("memory", [])
    for kind, line in lines.items() if memory else ():
        level = median(ms for _, ms in memory)
        at = line[0][0] if line[0][1] > level else crossing(line, level)
        if at is not None:  # at the fewest keys tried a search may cost more already
            yield Figure(f"search/{kind}/keys_where_the_memory_is_as_fast", at, "keys")


def _at(
    model: Model, queries: torch.Tensor, keys: np.ndarray, k: int, rounds: int
) -> tuple[dict[str, list[float]], float]:
    """Return ms of every kind over these keys, and the approximate kind's recall."""
    kinds = {"exact-torch-fp16": ExactRetriever(keys), **_faiss(keys.astype(np.float32))}
    turn = iter(range(10**9))

    def work(retriever: Any):
        if isinstance(retriever, ExactRetriever):
            return lambda: retriever.search(queries[[next(turn) % QUERIES]], k) and None
        rows = queries.numpy()
        return lambda: retriever.search(rows[[next(turn) % QUERIES]], k) and None

    pieces = {kind: work(retriever) for kind, retriever in kinds.items()}
    if model.memory is not None:
        hidden = queries.to(model.memory.device, model.memory.dtype)

        @torch.inference_mode()
        def answer() -> None:
            model.memory(hidden[[next(turn) % QUERIES]]).log_softmax(-1)

        pieces["memory"] = answer
    found = in_turns(pieces, rounds)
    right = kinds["flat-fp32"].search(queries.numpy(), k)[1]
    near = kinds["ivf-sq8"].search(queries.numpy(), k)[1]
    shared = sum(len(np.intersect1d(a, b)) for a, b in zip(right, near, strict=True))
    return found, shared / right.size


def _faiss(keys: np.ndarray) -> dict[str, Any]:
    """Return faiss's flat indexes of float32 keys (N, D), in that and in fp16, and an IVF."""
    import faiss

    dim, lists = keys.shape[1], max(1, int(math.sqrt(len(keys))))
    scalar, l2 = faiss.ScalarQuantizer, faiss.METRIC_L2
    made = {
        "flat-fp32": faiss.IndexFlatL2(dim),
        "flat-fp16": faiss.IndexScalarQuantizer(dim, scalar.QT_fp16, l2),
        "ivf-sq8": faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatL2(dim), dim, lists, scalar.QT_8bit, l2
        ),
    }
    made["ivf-sq8"].nprobe = min(PROBES, lists)
    made["ivf-sq8"].cp.max_points_per_centroid = 64
    for index in made.values():
        if not index.is_trained:
            index.train(keys)
        index.add(keys)
    return made


def made_keys(real: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """Return n keys (n, D) float16: real ones evenly spread, or all of them and moved copies."""
    if n <= len(real):
        return np.array(real[np.linspace(0, len(real) - 1, n).astype(int)])
    rng = np.random.default_rng(seed)
    known = np.array(real)
    more = known[rng.integers(0, len(known), n - len(known))].astype(np.float32)
    more += MOVED * known[:4096].astype(np.float32).std(0) * rng.standard_normal(more.shape, "f4")
    return np.concatenate([known, more.astype(np.float16)])


def crossing(line: Sequence[tuple[int, float]], level: float) -> float | None:
    """Return the number of keys at which a line of (keys, ms) reaches level; None if it does not.

    Between two measured points ms are taken to follow a power of the keys.
    """
    for (n, ms), (more, slower) in zip(line, line[1:], strict=False):
        if ms <= level < slower:
            share = math.log(level / ms) / math.log(slower / ms)
            return float(n * (more / n) ** share)
    return None

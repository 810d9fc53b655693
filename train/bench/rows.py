"""From neighbours to sparse target rows: rows/s, against a plain copy and the released builder.

The floor is the rate of a copy over the bytes of a row: distances, values and counts are read once,
the row is written once. The peer is the released code's class on the same neighbours, with its
dense rows and its loop over them. Storage is the size of a row on disk.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mlpmem.engine.distributions import knn_sparse
from mlpmem.fast.devices import keep_memory
from train.bench.released import released_rows
from train.bench.turns import BenchOptions, Figure, Turn
from train.run.machine import alternate, copy_rate
from train.stages.targets import SMALLEST

ROWS, VOCAB, TEMPERATURE = 256, 50257, 16.0
KS = (128, 1024)


def bench(options: BenchOptions, ks: tuple[int, ...] = KS) -> Iterator[Figure]:
    """Yield rows/s and bytes per row for synthetic neighbours."""
    for k in ks:
        with ExitStack() as stack:
            work = {"ours": stack.enter_context(closing(Turn(our_rows, k)))}
            if options.peer is not None:
                peer = Turn(peer_rows, k, str(options.peer))
                work["peer"] = stack.enter_context(closing(peer))
            seconds = alternate(work)
        size = bytes_per_row(*sparse_rows(*neighbours(k)))
        rates = {name: ROWS / taken for name, taken in seconds.items()}
        floor = copy_rate() / (k * 16 + size)
        yield Figure(f"rows k {k}", rates["ours"], "rows/s", floor, rates.get("peer"))
        yield Figure(f"rows k {k}: storage", size, "bytes/row")


def our_rows(k: int) -> Callable[[], object]:
    """Return the work of a turn: the stage's rows, with malloc tuned as in the stage."""
    keep_memory()
    tensors = neighbours(k)
    return lambda: sparse_rows(*tensors)


def peer_rows(k: int, peer: str) -> Callable[[], object]:
    """Return the released builder's work of a turn, on the same neighbours."""
    distances, values, _ = neighbours(k)
    return released_rows(Path(peer), distances, values, TEMPERATURE, VOCAB)


def neighbours(k: int, rows: int = ROWS, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return (distances, values, counts), (rows, k) each: Zipf tokens, nearest first."""
    rng = np.random.default_rng(seed)
    distances = np.sort(20 + 10 * rng.chisquare(8, (rows, k)), axis=1).astype(np.float32)
    values = np.minimum(rng.zipf(1.3, (rows, k)), VOCAB) - 1
    return torch.from_numpy(distances), torch.from_numpy(values), torch.ones(rows, k).int()


def sparse_rows(distances: Tensor, values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return (token_ids, probs) as the stage stores them: float16, without the smallest."""
    token_ids, probs = knn_sparse(distances, values, counts, TEMPERATURE)
    stored = probs >= SMALLEST
    return token_ids[stored], probs[stored].half()


def bytes_per_row(token_ids: Tensor, probs: Tensor) -> float:
    """Return the size on disk: two bytes per id, two per probability, and an offset per row."""
    assert VOCAB <= 2**16, VOCAB
    return (2 * len(token_ids) + 2 * len(probs)) / ROWS + 8

"""Neighbours to sparse target rows: rows/s by a plain copy, and by the released builder's loop.

The floor is the bytes that must be touched (distances, values and counts read, rows written once)
at the rate of a copy. The peer is the released code's own class on the same neighbours, its dense
rows and its loop over them; storage is what the stage keeps of a row on disk.
"""

import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from mlpmem.distributions import knn_sparse
from mlpmem.errors import MlpMemError
from mlpmem.malloc import keep_memory
from train.bench.device import alternate, copy_rate
from train.bench.figures import Figure, Options
from train.targets import SMALLEST

ROWS, VOCAB, TEMPERATURE = 256, 50257, 16.0
KS = (128, 1024)
RELEASED = "knn_utils/saveKNNMulti.py"


def bench(options: Options, ks: tuple[int, ...] = KS) -> Iterator[Figure]:
    """Yield rows/s and bytes a row for made neighbours."""
    keep_memory()
    for k in ks:
        distances, values, counts = neighbours(k)
        work: dict[str, Callable[[], object]] = {
            "ours": lambda d=distances, v=values, c=counts: kept(d, v, c)
        }
        if options.peer is not None:
            work["peer"] = released_rows(options.peer, distances, values)
        seconds = alternate(work)
        size = bytes_a_row(*kept(distances, values, counts))
        floor = copy_rate() / (k * 16 + size)
        peer = ROWS / seconds["peer"] if "peer" in work else None
        yield Figure(f"rows k {k}", ROWS / seconds["ours"], "rows/s", floor, peer)
        yield Figure(f"rows k {k}: storage", size, "bytes/row")


def neighbours(k: int, rows: int = ROWS, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return (distances, values, counts) (rows, k): tokens by Zipf's law, nearest first."""
    luck = np.random.default_rng(seed)
    distances = np.sort(20 + 10 * luck.chisquare(8, (rows, k)), axis=1).astype(np.float32)
    values = np.minimum(luck.zipf(1.3, (rows, k)), VOCAB) - 1
    return torch.from_numpy(distances), torch.from_numpy(values), torch.ones(rows, k).int()


def kept(distances: Tensor, values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return (token_ids, probs) as the stage keeps them: float16, what is too small dropped."""
    token_ids, probs = knn_sparse(distances, values, counts, TEMPERATURE)
    real = probs >= SMALLEST
    return token_ids[real], probs[real].half()


def bytes_a_row(token_ids: Tensor, probs: Tensor) -> float:
    """Return what a row takes on disk: two bytes an id, two a probability, its offset."""
    assert VOCAB <= 2**16, VOCAB
    return (2 * len(token_ids) + 2 * len(probs)) / ROWS + 8


def released_rows(peer: Path, distances: Tensor, values: Tensor) -> Callable[[], object]:
    """Return the released code's way from neighbours to rows, as its loop calls it."""
    maker = _import(peer / RELEASED).KNNSearchMulti
    builder = maker.__new__(maker)  # its constructor loads an index and a model
    builder.knn_temp, builder.vocab_size, builder.threshold = TEMPERATURE, VOCAB, 1e-8
    builder.device, builder.vals = torch.device("cpu"), values.flatten()
    found = torch.arange(values.numel()).view(values.shape)
    return lambda: builder.sparsify_distribution(builder.knns_to_probs(found, -distances))


def _import(path: Path) -> ModuleType:
    """Return a module of the checkout; MlpMemError if it is not there."""
    if not path.is_file():
        raise MlpMemError(
            f"--peer: there is no {path.name} in {path.parent}; give a checkout of the released "
            "code (github.com/Binn0/MLPMemory at 5b04efb)"
        )
    logger = ModuleType("loguru")
    logger.logger = logging.getLogger("released")
    sys.modules.setdefault("loguru", logger)
    spec = importlib.util.spec_from_file_location("released_rows", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

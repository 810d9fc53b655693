"""Targets on disk: found shard by shard, joined into three arrays, read as rows."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from mlpmem.retrieval.bulk_search import QUERY_BLOCK
from train.corpora.writer import ArrayWriter
from train.run.processes import team

if TYPE_CHECKING:
    from train.stages.targets import SearchedTargets


class StoredTargets:
    """Targets that the stage left in a folder, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        """Open offsets.npy, token_ids.npy and probs.npy."""
        self.offsets, self.token_ids, self.probs = (
            np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in ("offsets", "token_ids", "probs")
        )

    def rows(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return token_ids (b, S) int64 and probs (b, S) float32 of rows, padded with prob 0."""
        starts, sizes = self.offsets[at], self.offsets[at + 1] - self.offsets[at]
        columns = np.arange(max(1, int(sizes.max(initial=0))))
        real = columns < sizes[:, None]
        source = np.where(real, starts[:, None] + columns, 0)
        if not len(self.probs):
            return np.zeros(real.shape, np.int64), np.zeros(real.shape, np.float32)
        token_ids = np.where(real, self.token_ids[source], 0).astype(np.int64)
        return token_ids, np.where(real, self.probs[source], 0).astype(np.float32)


def search_all(targets: "SearchedTargets", folder: Path) -> float:
    """Write this process's share of the shards; return the seconds that killed runs had used."""
    us, rows = team(), len(targets.entries)
    starts = range(0, rows, QUERY_BLOCK)
    there = {start for start in starts if _shard(folder, start).is_file()}
    us.wait()  # all have seen the same shards of earlier runs before one writes more
    mine = us.share([start for start in starts if start not in there])
    total = sum(min(QUERY_BLOCK, rows - start) for start in mine)
    with tqdm(total=total, desc="targets", unit="row", unit_scale=True, mininterval=5.0) as bar:
        for start in mine:
            began = time.perf_counter()
            some = np.arange(start, min(start + QUERY_BLOCK, rows))
            token_ids, probs = targets.rows(some)
            _save_shard(_shard(folder, start), token_ids, probs, time.perf_counter() - began)
            bar.update(len(some))
    us.wait()
    return sum(_seconds(_shard(folder, start)) for start in there) / us.world


def _shard(folder: Path, start: int) -> Path:
    """Return where the rows from `start` on are kept until all are there."""
    return folder / f"shard_{start:09d}.npz"


def _save_shard(path: Path, token_ids: np.ndarray, probs: np.ndarray, seconds: float) -> None:
    """Write ragged rows: sizes, ids and probabilities, and what they took."""
    kept = probs > 0
    beside = path.with_name(f"new_{path.name}")
    sizes, ids = kept.sum(-1).astype(np.int32), token_ids[kept].astype(np.int32)
    probs = probs[kept].astype(np.float16)
    np.savez(beside, sizes=sizes, token_ids=ids, probs=probs, seconds=seconds)
    beside.replace(path)


def _seconds(path: Path) -> float:
    """Return what a shard took."""
    with np.load(path, allow_pickle=False) as shard:
        return float(shard["seconds"])


def merge(folder: Path, rows: int, dtype: np.dtype) -> dict:
    """Join the shards into three arrays, one at a time; ids are of dtype.

    Returns mean support, bytes a row, the shards' names.
    """
    paths = [_shard(folder, start) for start in range(0, rows, QUERY_BLOCK)]
    offsets, token_ids, probs = (
        ArrayWriter(folder / f"{name}.npy", kind)
        for name, kind in (("offsets", np.int64), ("token_ids", dtype), ("probs", np.float16))
    )
    offsets.append([0])
    for path in tqdm(paths, "joining", unit="shard", mininterval=5.0):
        with np.load(path, allow_pickle=False) as shard:  # closed, or Windows will not unlink it
            offsets.append(probs.length + np.cumsum(shard["sizes"], dtype=np.int64))
            token_ids.append(shard["token_ids"])
            probs.append(shard["probs"])
    support, size = probs.length, probs.length * (2 + token_ids.dtype.itemsize) + 8 * rows
    assert offsets.length == rows + 1 and token_ids.length == support, (offsets.length, rows)
    for part in (offsets, token_ids, probs):
        part.close()
    return {"mean_support": round(support / rows, 2), "bytes_a_row": round(size / rows),
            "scratch": [path.name for path in paths]}  # fmt: skip

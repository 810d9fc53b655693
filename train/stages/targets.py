"""Stage targets: what the datastore answers at the rows the memory learns from, as sparse rows.

Rows are kept on disk (StoredTargets) or searched again for every batch (SearchedTargets); whoever
trains cannot tell them apart.

Targets on disk: found shard by shard, joined into three arrays, read as rows.
"""

import time
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from mlpmem.engine.distributions import knn_sparse
from mlpmem.errors import MlpMemError
from mlpmem.fast.devices import keep_memory
from mlpmem.retrieval.bulk_search import BulkSearch
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.exact_search import QUERY_BLOCK
from mlpmem.retrieval.inverted_file import InvertedSearch, check_lists
from train.config.tables import TargetsConfig, kind_of_search
from train.corpora.writer import ArrayWriter
from train.run.processes import team
from train.run.stage import StageContext
from train.stages.target_rows import PART, choose_rows

SMALLEST = 1e-6  # float16 holds it; less is dropped


class SparseTargets(Protocol):
    """Whatever has the targets of rows."""

    def rows(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return token_ids (b, S) int64 and probs (b, S) float32 of rows, padded with prob 0."""


class SearchedTargets:
    """Targets found when they are asked for, by exact or approximate search."""

    def __init__(
        self,
        store: Datastore,
        entries: np.ndarray,
        config: TargetsConfig,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        """Prepare the search; entries (R,) of the datastore are the rows."""
        self.store, self.entries, self.config = store, entries, config
        self.keys = _searched_keys(config, store)
        kind = kind_of_search(config, *self.keys.shape)
        if kind == "exact":
            self.search = BulkSearch(self.keys, device, config.search_mib * 2**20)
        else:
            self.search = InvertedSearch(self.keys, kind, config.lists, config.probes, seed)

    def rows(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return token_ids (b, S) int64 and probs (b, S) float32 of rows, padded with prob 0."""
        own, parts = self.entries[at], []
        for start in range(0, len(own), QUERY_BLOCK):
            some = own[start : start + QUERY_BLOCK]
            found = next(self.search.search(self.keys[some], self.config.k + 1))
            parts.append(sparse_targets(self.store, some, *found[1:], self.config.temperature))
        width = max((ids.shape[1] for ids, _ in parts), default=1)
        padded = [[F.pad(x, (0, width - x.shape[1])).numpy() for x in pair] for pair in parts]
        if not padded:
            return np.zeros((0, 1), np.int64), np.zeros((0, 1), np.float32)
        token_ids, probs = (np.concatenate(x) for x in zip(*padded, strict=True))
        return token_ids, np.where(probs >= SMALLEST, probs, 0)

    def recall(self) -> dict:
        """Return what a manifest should say of the search: its kind, and what it misses."""
        if isinstance(self.search, BulkSearch):
            return {"search": "exact"}
        return self.search.described(self.config.k + 1)


def open_targets(
    store: Datastore,
    folder: Path,
    config: TargetsConfig,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> SparseTargets:
    """Return the targets of a finished stage, stored or searched, as its configuration says.

    The seed is the stage's: an inverted file is then the one whose recall it measured.
    """
    if config.rows == "stored":
        return StoredTargets(folder)
    entries = np.load(folder / "rows.npy", mmap_mode="r", allow_pickle=False)
    return SearchedTargets(store, entries, config, device, seed)


def make_targets(context: StageContext) -> dict:
    """Return counts; writes rows.npy (R,) and, where rows are stored, three arrays of targets.

    These are offsets.npy (R + 1,), token_ids.npy and probs.npy.
    """
    config, folder = context.config, context.folder
    keep_memory()
    store = Datastore.load(context.inputs["datastore"])
    _check(config, store)
    chosen = choose_rows(context, store)
    rows = np.load(folder / "rows.npy", mmap_mode="r", allow_pickle=False)
    us = team()
    if not len(rows):
        if us.is_main:  # or they would be held against the recipe that is put right
            for path in folder.glob("rows*"):
                path.unlink()
        raise MlpMemError(
            f"targets: none of {len(store):,} entries is a row to learn from; lower nll_floor "
            f"({config.nll_floor:g}) or raise easy_share ({config.easy_share:g}) in [targets]"
        )
    targets = SearchedTargets(store, rows, config, us.device, context.seed)
    counts = {"tokens": len(rows), "entries": len(store)} | chosen
    if us.is_main:  # one measures it for all
        counts |= targets.recall()
    if config.rows == "searched":
        return counts
    earlier = search_all(targets, folder)
    counts["earlier_seconds"] += earlier
    if us.is_main:
        counts |= merge(folder, len(rows), store.documents.tokens.dtype)
        counts["scratch"] = [*chosen["scratch"], *counts["scratch"]]
    return counts


def _check(config: TargetsConfig, store: Datastore) -> None:
    """Raise MlpMemError where so many neighbours cannot be found, before anything is computed."""
    if len(store) <= config.k:
        raise MlpMemError(
            f"targets: the datastore has {len(store)} entries and an entry must not find itself, "
            f"so k {config.k} is too many; lower k in [targets], or give the corpus more text"
        )
    if kind_of_search(config, *_searched_keys(config, store).shape) != "exact":
        check_lists(len(store), config.k + 1, config.lists, config.probes)


def _searched_keys(config: TargetsConfig, store: Datastore):
    """Return the keys (N, D) that are searched: the datastore's own, or a teacher's.

    MlpMemError unless that has the same entries.
    """
    if not config.teacher:
        return store.keys
    folder = config.teacher
    if not Path(folder).is_dir():
        raise MlpMemError(
            f"targets: there is no teacher {folder}; give the folder of a finished stage datastore "
            "(runs/NAME/datastore), relative to the recipe"
        )
    teacher = Datastore.load(folder)
    parts = (slice(start, start + PART) for start in range(0, len(store), PART))
    same = len(teacher) == len(store) and all(
        np.array_equal(teacher.positions[part], store.positions[part])
        and np.array_equal(teacher.counts[part], store.counts[part])
        and np.array_equal(teacher.values_of(part), store.values_of(part))
        for part in parts
    )
    if not same:
        raise MlpMemError(
            f"targets: teacher {Path(folder).name} has {len(teacher):,} entries that are not the "
            f"{len(store):,} of this datastore; build it from the same corpus with the same "
            "tokenizer, only the decoder may differ"
        )
    return teacher.keys


def sparse_targets(store: Datastore, own: np.ndarray, distances, indices, temperature: float):
    """Return (token_ids, probs) of the rows' leave-one-out kNN distributions, padded.

    A row must not find itself: its own entry loses one count, and goes where that was the only
    one. It is known by its index, since another entry may have the very same key.
    """
    indices = indices.cpu().numpy()
    counts = store.counts[indices] - (indices == own[:, None])
    values = np.where((counts > 0) & (indices >= 0), store.values_of(indices), -1)
    return knn_sparse(
        distances.cpu(),
        torch.from_numpy(values),
        torch.from_numpy(np.maximum(counts, 1)),
        temperature,
    )


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

"""Stage targets: the datastore's distributions at the memory's training rows, in sparse form.

Targets are stored on disk (StoredTargets) or searched again for every batch (SearchedTargets), with
the same interface. Stored targets are searched shard by shard, then merged into three arrays.
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
from train.run.processes import process_group
from train.run.stage import StageContext
from train.stages.target_rows import PART, choose_rows, is_whole

SMALLEST = 1e-6  # probabilities below are dropped; float16 holds this one


class SparseTargets(Protocol):
    """The targets of rows."""

    def rows(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return token_ids (b, S) int64 and probs (b, S) float32 of rows, padded with prob 0."""


class SearchedTargets:
    """Targets searched on demand, by exact or approximate search."""

    def __init__(
        self,
        store: Datastore,
        entries: np.ndarray,
        config: TargetsConfig,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        """Prepare the search; the rows are the datastore's entries (R,)."""
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
            block = own[start : start + QUERY_BLOCK]
            _, *neighbours = next(self.search.search(self.keys[block], self.config.k + 1))
            parts.append(sparse_targets(self.store, block, *neighbours, self.config.temperature))
        width = max((ids.shape[1] for ids, _ in parts), default=1)
        padded = [[F.pad(x, (0, width - x.shape[1])).numpy() for x in pair] for pair in parts]
        if not padded:
            return np.zeros((0, 1), np.int64), np.zeros((0, 1), np.float32)
        token_ids, probs = (np.concatenate(x) for x in zip(*padded, strict=True))
        return token_ids, np.where(probs >= SMALLEST, probs, 0)

    def recall(self) -> dict:
        """Return the search's kind and recall, for the manifest."""
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
    """Return the targets of a finished stage, stored or searched, as configured.

    Give the stage's seed, so that an inverted file is the one whose recall was measured.
    """
    if config.rows == "stored":
        return StoredTargets(folder)
    entries = np.load(folder / "rows.npy", mmap_mode="r", allow_pickle=False)
    return SearchedTargets(store, entries, config, device, seed)


def make_targets(context: StageContext) -> dict:
    """Return counts; writes rows.npy (R,) and, for stored rows, the targets.

    They are offsets.npy (R + 1,), token_ids.npy and probs.npy.
    """
    config, folder = context.config, context.folder
    keep_memory()
    store = Datastore.load(context.inputs["datastore"])
    _check(config, store)
    chosen = choose_rows(context, store)
    rows = np.load(folder / "rows.npy", mmap_mode="r", allow_pickle=False)
    processes = process_group()
    if not len(rows):
        if processes.is_main:  # otherwise the corrected recipe would be refused
            for path in folder.glob("rows*"):
                path.unlink()
        raise MlpMemError(
            f"targets: none of the {len(store):,} entries is chosen as a row; lower nll_floor "
            f"({config.nll_floor:g}) or raise easy_share ({config.easy_share:g}) in [targets]"
        )
    targets = SearchedTargets(store, rows, config, processes.device, context.seed)
    counts = {"tokens": len(rows), "entries": len(store)} | chosen
    if processes.is_main:  # one process measures it for all
        counts |= targets.recall()
    if config.rows == "searched":
        return counts
    counts["earlier_seconds"] += search_all(targets, folder)
    if processes.is_main:
        counts |= merge(folder, len(rows), store.documents.tokens.dtype)
        counts["scratch"] = [*chosen["scratch"], *counts["scratch"]]
    return counts


def _check(config: TargetsConfig, store: Datastore) -> None:
    """Raise MlpMemError if the datastore cannot give k neighbours, before anything is computed."""
    if len(store) <= config.k:
        raise MlpMemError(
            f"targets: k must be less than the {len(store)} entries of the datastore, because none "
            f"finds itself; got {config.k}. Lower k in [targets], or give more text"
        )
    if kind_of_search(config, *_searched_keys(config, store).shape) != "exact":
        check_lists(len(store), config.k + 1, config.lists, config.probes)


def _searched_keys(config: TargetsConfig, store: Datastore):
    """Return the searched keys (N, D): the datastore's own, or a teacher's.

    MlpMemError unless the teacher has the same entries.
    """
    if not config.teacher:
        return store.keys
    folder = Path(config.teacher)
    if not folder.is_dir():
        raise MlpMemError(
            f"targets: teacher {folder} is not a folder; give that of a finished stage datastore "
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
            f"targets: teacher {folder.name} ({len(teacher):,} entries) must have the entries of "
            f"this datastore ({len(store):,}). Build it from the same corpus and tokenizer; only "
            "the decoder may differ"
        )
    return teacher.keys


def sparse_targets(store: Datastore, own: np.ndarray, distances, indices, temperature: float):
    """Return (token_ids, probs) of the rows' leave-one-out kNN distributions, padded.

    A row must not find itself: its own entry loses one count, and is dropped if that was the only
    one. The entry is identified by index, because another may have the same key.
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
    """Targets stored in a folder, memory-mapped."""

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


def search_all(targets: SearchedTargets, folder: Path) -> float:
    """Write this process's share of the shards; return the seconds of earlier, killed runs."""
    processes, rows = process_group(), len(targets.entries)
    starts = range(0, rows, QUERY_BLOCK)
    done = {start for start in starts if is_whole(_shard(folder, start))}
    processes.wait()  # every process must list the same finished shards before one writes more
    share = processes.share([start for start in starts if start not in done])
    total = sum(min(QUERY_BLOCK, rows - start) for start in share)
    with tqdm(total=total, desc="targets", unit="row", unit_scale=True, mininterval=5.0) as bar:
        for start in share:
            started = time.perf_counter()
            block = np.arange(start, min(start + QUERY_BLOCK, rows))
            token_ids, probs = targets.rows(block)
            _save_shard(_shard(folder, start), token_ids, probs, time.perf_counter() - started)
            bar.update(len(block))
    processes.wait()
    return sum(_seconds(_shard(folder, start)) for start in done) / processes.world


def _shard(folder: Path, start: int) -> Path:
    """Return the temporary file of the shard that begins at row `start`."""
    return folder / f"shard_{start:09d}.npz"


def _save_shard(path: Path, token_ids: np.ndarray, probs: np.ndarray, seconds: float) -> None:
    """Write ragged rows atomically: sizes, ids, probabilities, and the seconds they took."""
    mask = probs > 0
    partial = path.with_name(f"new_{path.name}")
    sizes, ids = mask.sum(-1).astype(np.int32), token_ids[mask].astype(np.int32)
    probs = probs[mask].astype(np.float16)
    np.savez(partial, sizes=sizes, token_ids=ids, probs=probs, seconds=seconds)
    partial.replace(path)


def _seconds(path: Path) -> float:
    """Return the seconds a shard took."""
    with np.load(path, allow_pickle=False) as shard:
        return float(shard["seconds"])


def merge(folder: Path, rows: int, dtype: np.dtype) -> dict:
    """Merge the shards into three arrays, with ids of `dtype`.

    Returns the mean support, bytes per row and the shards' names.
    """
    paths = [_shard(folder, start) for start in range(0, rows, QUERY_BLOCK)]
    offsets, token_ids, probs = (
        ArrayWriter(folder / f"{name}.npy", kind)
        for name, kind in (("offsets", np.int64), ("token_ids", dtype), ("probs", np.float16))
    )
    offsets.append([0])
    for path in tqdm(paths, "merging", unit="shard", mininterval=5.0):
        with np.load(path, allow_pickle=False) as shard:  # Windows cannot unlink an open file
            offsets.append(probs.length + np.cumsum(shard["sizes"], dtype=np.int64))
            token_ids.append(shard["token_ids"])
            probs.append(shard["probs"])
    support, size = probs.length, probs.length * (2 + token_ids.dtype.itemsize) + 8 * rows
    assert offsets.length == rows + 1 and token_ids.length == support, (offsets.length, rows)
    for part in (offsets, token_ids, probs):
        part.close()
    return {"mean_support": round(support / rows, 2), "bytes_a_row": round(size / rows),
            "scratch": [path.name for path in paths]}  # fmt: skip

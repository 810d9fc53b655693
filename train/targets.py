"""Stage targets: what the datastore answers at the rows the memory learns from, as sparse rows.

Rows are kept on disk (StoredTargets) or searched again for every batch (SearchedTargets); whoever
trains cannot tell them apart.
"""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from mlpmem.datastore import Datastore
from mlpmem.decoder import Decoder
from mlpmem.distributions import knn_sparse
from mlpmem.errors import MlpMemError
from mlpmem.malloc import keep_memory
from mlpmem.passages import forward_positions
from train.ivf import InvertedSearch, kind_of_search
from train.processes import team
from train.recipe import Targets
from train.search import QUERY_BLOCK, BulkSearch
from train.stage import Context

SMALLEST = 1e-6  # float16 holds it; less is dropped


class SparseTargets(Protocol):
    """Whatever has the targets of rows."""

    def rows(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return token_ids (b, S) int64 and probs (b, S) float32 of rows, padded with prob 0."""


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


class SearchedTargets:
    """Targets found when they are asked for, by exact or approximate search."""

    def __init__(
        self,
        store: Datastore,
        entries: np.ndarray,
        config: Targets,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        """Prepare the search; entries (R,) of the datastore are the rows."""
        self.store, self.entries, self.config = store, entries, config
        self.keys = _teacher_keys(config.teacher, store) if config.teacher else store.keys
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
        """Return what a manifest should say of an approximate search: its kind and recall."""
        if isinstance(self.search, BulkSearch):
            return {"search": "exact"}
        recall = round(self.search.recall(self.config.k + 1), 4)
        return {"search": type(self.search.index).__name__, "recall": recall}


def open_targets(
    store: Datastore, folder: Path, config: Targets, device: torch.device | str = "cpu"
) -> SparseTargets:
    """Return the targets of a finished stage, stored or searched, as its configuration says."""
    if config.rows == "stored":
        return StoredTargets(folder)
    entries = np.load(folder / "rows.npy", allow_pickle=False)
    return SearchedTargets(store, entries, config, device)


def make_targets(context: Context) -> dict:
    """Return counts; writes rows.npy (R,) and, where rows are stored, three arrays of targets.

    These are offsets.npy (R + 1,), token_ids.npy and probs.npy.
    """
    config, folder = context.config, context.folder
    keep_memory()
    store = Datastore.load(context.inputs["datastore"])
    if len(store) <= config.k:
        raise MlpMemError(
            f"targets: the datastore has {len(store)} entries and an entry must not find itself, "
            f"so k {config.k} is too many; lower k in [targets], or give the corpus more text"
        )
    us = team()
    if us.is_main:
        np.save(folder / "rows.npy", _choose_rows(context, store, config))
    us.wait()
    rows = np.load(folder / "rows.npy", allow_pickle=False)
    if not len(rows):
        raise MlpMemError(
            f"targets: none of {len(store):,} entries is a row to learn from; lower nll_floor "
            f"({config.nll_floor:g}) or raise easy_share ({config.easy_share:g}) in [targets]"
        )
    targets = SearchedTargets(store, rows, config, us.device, context.seed)
    counts = {"tokens": len(rows), "entries": len(store)} | targets.recall()
    if config.rows == "searched":
        return counts
    todo = [s for s in range(0, len(rows), QUERY_BLOCK) if not _shard(folder, s).is_file()]
    us.wait()  # all have seen the same shards of earlier runs before one writes more
    for start in tqdm(
        us.share(todo), "targets", unit_scale=QUERY_BLOCK, unit="row", mininterval=5.0
    ):
        some = np.arange(start, min(start + QUERY_BLOCK, len(rows)))
        _save_shard(_shard(folder, start), *targets.rows(some))
    us.wait()
    return counts | _merge(folder, len(rows)) if us.is_main else counts


def _choose_rows(context: Context, store: Datastore, config: Targets) -> np.ndarray:
    """Return the entries to learn from: all that the decoder finds hard, a share of the others."""
    luck = np.random.default_rng(context.seed).random(len(store.positions))
    if not config.judged:
        return np.flatnonzero(luck < config.easy_share)
    decoder = Decoder.load(context.inputs["decoder"], device=team().device)
    nll = np.zeros(len(store.positions), np.float32)
    values = torch.from_numpy(store.values.astype(np.int64))
    places = forward_positions(decoder, store.documents, store.positions)
    for some in tqdm(places, "decoder's nll", unit="batch", mininterval=5.0):
        true = values[some.at].to(some.logits.device)
        nll[some.at] = F.cross_entropy(some.logits.float(), true, reduction="none").cpu()
    return np.flatnonzero((nll > config.nll_floor) | (luck < config.easy_share))


def _teacher_keys(folder: str, store: Datastore):
    """Return another datastore's keys; MlpMemError unless it has the same entries."""
    teacher = Datastore.load(folder)
    same = (
        np.array_equal(teacher.positions, store.positions)
        and np.array_equal(teacher.counts, store.counts)
        and np.array_equal(teacher.values, store.values)
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
    values = np.where((counts > 0) & (indices >= 0), store.values[indices], -1)
    return knn_sparse(
        distances.cpu(),
        torch.from_numpy(values),
        torch.from_numpy(np.maximum(counts, 1)),
        temperature,
    )


def _shard(folder: Path, start: int) -> Path:
    """Return where the rows from `start` on are kept until all are there."""
    return folder / f"shard_{start:09d}.npz"


def _save_shard(path: Path, token_ids: np.ndarray, probs: np.ndarray) -> None:
    """Write ragged rows: sizes, ids and probabilities."""
    kept = probs > 0
    beside = path.with_name(f"new_{path.name}")
    sizes, ids = kept.sum(-1).astype(np.int32), token_ids[kept].astype(np.int32)
    np.savez(beside, sizes=sizes, token_ids=ids, probs=probs[kept].astype(np.float16))
    beside.replace(path)


def _merge(folder: Path, rows: int) -> dict:
    """Join the shards into three arrays; return mean support, bytes a row, the shards' names."""
    paths = sorted(folder.glob("shard_*.npz"))
    shards = []
    for path in paths:
        with np.load(path, allow_pickle=False) as shard:  # closed, or Windows will not unlink it
            shards.append(dict(shard))
    sizes = np.concatenate([shard["sizes"] for shard in shards])
    assert len(sizes) == rows, (len(sizes), rows)
    ids = np.concatenate([shard["token_ids"] for shard in shards])
    ids = ids.astype(np.uint16 if ids.max(initial=0) < 2**16 else np.int32)
    probs = np.concatenate([shard["probs"] for shard in shards])
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]))
    np.save(folder / "token_ids.npy", ids)
    np.save(folder / "probs.npy", probs)
    size = (ids.nbytes + probs.nbytes + 8 * rows) / max(1, rows)
    return {"mean_support": round(float(sizes.mean()), 2), "bytes_a_row": round(size),
            "scratch": [path.name for path in paths]}  # fmt: skip

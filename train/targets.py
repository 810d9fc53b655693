"""Stage targets: what the datastore answers at the rows the memory learns from, as sparse rows."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from mlpmem.datastore import Datastore
from mlpmem.decoder import Decoder
from mlpmem.distributions import knn_sparse
from mlpmem.errors import MlpMemError
from mlpmem.passages import forward_positions
from mlpmem.retriever import writable
from train.recipe import Targets
from train.search import QUERY_BLOCK, BulkSearch
from train.stage import Context

SMALLEST = 1e-6  # float16 holds it; less is dropped


def make_targets(context: Context) -> dict:
    """Return counts; writes rows.npy (R,), offsets.npy (R + 1,), token_ids.npy and probs.npy."""
    config, folder = context.config, context.folder
    store = Datastore.load(context.inputs["datastore"])
    if len(store) <= config.k:
        raise MlpMemError(
            f"targets: the datastore has {len(store)} entries and an entry must not find itself, "
            f"so k {config.k} is too many; lower k in [targets], or give the corpus more text"
        )
    rows = _choose_rows(context, store, config)
    np.save(folder / "rows.npy", rows)
    keys = torch.as_tensor(writable(store.keys))
    todo = [s for s in range(0, len(rows), QUERY_BLOCK) if not _shard(folder, s).is_file()]
    search = BulkSearch(keys, "cuda" if torch.cuda.is_available() else "cpu")
    for start in tqdm(todo, "targets", unit_scale=QUERY_BLOCK, unit="row", mininterval=5.0):
        some = rows[start : start + QUERY_BLOCK]
        _, distances, indices = next(search.search(keys[some], config.k + 1))
        _save_shard(_shard(folder, start), *_sparse(store, some, distances, indices, config))
    support = _merge(folder, len(rows))
    return {"tokens": len(rows), "entries": len(keys), "mean_support": round(support, 2)}


def _choose_rows(context: Context, store: Datastore, config: Targets) -> np.ndarray:
    """Return the entries to learn from: all that the decoder finds hard, a share of the others."""
    decoder = Decoder.load(context.inputs["decoder"])
    nll = np.zeros(len(store.positions), np.float32)
    values = torch.from_numpy(store.values.astype(np.int64))
    places = forward_positions(decoder, store.documents, store.positions)
    for some in tqdm(places, "decoder's nll", unit="batch", mininterval=5.0):
        nll[some.at] = F.cross_entropy(some.logits.float(), values[some.at], reduction="none")
    luck = np.random.default_rng(context.seed).random(len(nll))
    return np.flatnonzero((nll > config.nll_floor) | (luck < config.easy_share))


def _sparse(store: Datastore, own: np.ndarray, distances, indices, config: Targets):
    """Return (token_ids, probs) of the rows' leave-one-out kNN distributions, padded.

    A row must not find itself: its own entry loses one count, and goes where that was the only
    one. It is known by its index, since another entry may have the very same key.
    """
    indices = indices.cpu().numpy()
    counts = store.counts[indices] - (indices == own[:, None])
    values = np.where(counts > 0, store.values[indices], -1)
    return knn_sparse(
        distances.cpu(),
        torch.from_numpy(values),
        torch.from_numpy(np.maximum(counts, 1)),
        config.temperature,
    )


def _shard(folder: Path, start: int) -> Path:
    """Return where the rows from `start` on are kept until all are there."""
    return folder / f"shard_{start:09d}.npz"


def _save_shard(path: Path, token_ids: torch.Tensor, probs: torch.Tensor) -> None:
    """Write ragged rows: sizes, ids and probabilities, those below SMALLEST dropped."""
    kept = probs >= SMALLEST
    beside = path.with_name("new.npz")
    sizes = kept.sum(-1).numpy().astype(np.int32)
    ids = token_ids[kept].numpy().astype(np.int32)
    np.savez(beside, sizes=sizes, token_ids=ids, probs=probs[kept].numpy().astype(np.float16))
    beside.replace(path)


def _merge(folder: Path, rows: int) -> float:
    """Join the shards into three arrays and remove them; return the mean support of a row."""
    paths = sorted(folder.glob("shard_*.npz"))
    shards = []
    for path in paths:
        with np.load(path, allow_pickle=False) as shard:  # closed, or Windows will not unlink it
            shards.append(dict(shard))
    sizes = np.concatenate([shard["sizes"] for shard in shards])
    assert len(sizes) == rows, (len(sizes), rows)
    ids = np.concatenate([shard["token_ids"] for shard in shards])
    small = ids.max(initial=0) < 2**16
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]))
    np.save(folder / "token_ids.npy", ids.astype(np.uint16 if small else np.int32))
    np.save(folder / "probs.npy", np.concatenate([shard["probs"] for shard in shards]))
    for path in paths:
        path.unlink()
    return float(sizes.mean())

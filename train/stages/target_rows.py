"""Which entries the memory learns from: those the decoder finds hard, and a share of the others.

Entries are looked at in parts, of which every process takes its share. A part is written whole or
not at all, so a killed run goes on at the next; what is held is one part, whatever N.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from mlpmem.model.decoder import Decoder
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.passages import forward_positions
from train.corpora.writer import ArrayWriter
from train.run.processes import team
from train.run.stage import StageContext

PART = 2**20  # entries looked at together


def choose_rows(context: StageContext, store: Datastore) -> dict:
    """Return counts for the stage's manifest: "scratch" and "earlier_seconds".

    Writes rows.npy (R,), the chosen entries in their order.
    """
    folder, us = context.folder, team()
    parts = range(0, len(store), PART)
    there = [start for start in parts if _part(folder, start).is_file()]
    us.wait()  # all have seen the same parts of earlier runs before one writes more
    earlier = sum(_read(folder, start)["seconds"] for start in there)
    todo = us.share([start for start in parts if start not in there])
    for start, rows, seconds in _chosen(context, store, todo):
        _write(folder, start, rows, seconds)
    us.wait()
    if us.is_main and not (folder / "rows.npy").is_file():
        beside = folder / "new_rows.npy"
        writer = ArrayWriter(beside, np.int64)
        for start in parts:
            writer.append(_read(folder, start)["rows"])
        writer.close()
        os.replace(beside, folder / "rows.npy")
    us.wait()
    scratch = [_part(folder, start).name for start in parts]
    return {"scratch": scratch, "earlier_seconds": float(earlier) / us.world}


def _chosen(
    context: StageContext, store: Datastore, todo: list[int]
) -> Iterator[tuple[int, np.ndarray, float]]:
    """Yield (first entry, chosen entries, seconds) of every part."""
    config, decoder = context.config, None
    if config.judged and todo:
        decoder = Decoder.load(context.inputs["decoder"], device=team().device)
    total = sum(min(PART, len(store) - start) for start in todo)
    with tqdm(
        total=total,
        desc="decoder's nll",
        unit="entry",
        unit_scale=True,
        mininterval=5.0,
        disable=decoder is None,
    ) as bar:
        for start in todo:
            began, end = time.perf_counter(), min(start + PART, len(store))
            hard = np.zeros(end - start, bool)
            if decoder is not None:
                for at, nll in _nll(decoder, store, start, end):
                    hard[at] = nll > config.nll_floor
                    bar.update(len(at))
            lucky = _luck(context.seed, start, end) < config.easy_share
            yield start, start + np.flatnonzero(hard | lucky), time.perf_counter() - began


def _luck(seed: int, start: int, end: int) -> np.ndarray:
    """Return numbers of [0, 1) of entries start .. end, whatever the parts."""
    bits = np.random.PCG64(seed)
    bits.advance(start)
    return np.random.Generator(bits).random(end - start)


def _nll(
    decoder: Decoder, store: Datastore, start: int, end: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (which of the entries start .. end, the decoder's nll of their values in nats)."""
    positions = np.asarray(store.positions[start:end])
    values = torch.from_numpy(store.values_of(slice(start, end)).astype(np.int64))
    for some in forward_positions(decoder, store.documents, positions):
        true = values[some.at].to(some.logits.device)
        nll = F.cross_entropy(some.logits.float(), true, reduction="none")
        yield some.at, nll.cpu().numpy()


def _part(folder: Path, start: int) -> Path:
    """Return where the rows among the entries from `start` on are kept until all are chosen."""
    return folder / f"rows_{start:012d}.npz"


def _read(folder: Path, start: int) -> dict:
    """Return a part's arrays: rows (r,) int64, seconds ()."""
    with np.load(_part(folder, start), allow_pickle=False) as part:
        return dict(part)


def _write(folder: Path, start: int, rows: np.ndarray, seconds: float) -> None:
    """Write a part whole."""
    path = _part(folder, start)
    beside = path.with_name(f"new_{path.name}")
    np.savez(beside, rows=rows.astype(np.int64), seconds=seconds)
    os.replace(beside, path)

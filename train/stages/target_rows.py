"""The entries that the memory learns from: those hard for the decoder, and a share of the others.

Entries are processed in parts, shared between the processes. Each part is written atomically, so a
killed run resumes at the next. One part is in RAM at a time, for any number of entries N.
"""

import os
import time
import zipfile
import zlib
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
from train.files import print_line
from train.run.processes import process_group
from train.run.stage import StageContext

PART = 2**20  # entries per part


def choose_rows(context: StageContext, store: Datastore) -> dict:
    """Return counts for the stage's manifest: "scratch" and "earlier_seconds".

    Writes rows.npy (R,), the chosen entries in their order.
    """
    folder, processes = context.folder, process_group()
    parts = range(0, len(store), PART)
    done = [start for start in parts if is_whole(_part(folder, start))]
    processes.wait()  # every process must list the same finished parts before one writes more
    earlier = sum(_read(folder, start)["seconds"] for start in done)
    todo = processes.share([start for start in parts if start not in done])
    for start, rows, seconds in _choose(context, store, todo):
        _write(folder, start, rows, seconds)
    processes.wait()
    if processes.is_main:
        partial = folder / "new_rows.npy"
        writer = ArrayWriter(partial, np.int64)
        for start in parts:
            writer.append(_read(folder, start)["rows"])
        writer.close()
        os.replace(partial, folder / "rows.npy")
    processes.wait()
    scratch = [_part(folder, start).name for start in parts]
    return {"scratch": scratch, "earlier_seconds": float(earlier) / processes.world}


def _choose(
    context: StageContext, store: Datastore, todo: list[int]
) -> Iterator[tuple[int, np.ndarray, float]]:
    """Yield (first entry, chosen entries, seconds) of each part in `todo`."""
    config, decoder = context.config, None
    if config.needs_nll and todo:
        decoder = Decoder.load(context.inputs["decoder"], device=process_group().device)
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
            started, end = time.perf_counter(), min(start + PART, len(store))
            hard = np.zeros(end - start, bool)
            if decoder is not None:
                for at, nll in _nll(decoder, store, start, end):
                    hard[at] = nll > config.nll_floor
                    bar.update(len(at))
            sampled = _uniform(context.seed, start, end) < config.easy_share
            yield start, start + np.flatnonzero(hard | sampled), time.perf_counter() - started


def _uniform(seed: int, start: int, end: int) -> np.ndarray:
    """Return uniform numbers in [0, 1) of entries start .. end, the same for any split."""
    bits = np.random.PCG64(seed)
    bits.advance(start)
    return np.random.Generator(bits).random(end - start)


def _nll(
    decoder: Decoder, store: Datastore, start: int, end: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (indices into start .. end, the decoder's nll in nats of those entries' values)."""
    positions = np.asarray(store.positions[start:end])
    values = torch.from_numpy(store.values_of(slice(start, end)).astype(np.int64))
    for batch in forward_positions(decoder, store.documents, positions):
        true = values[batch.at].to(batch.logits.device)
        nll = F.cross_entropy(batch.logits.float(), true, reduction="none")
        yield batch.at, nll.cpu().numpy()


def _part(folder: Path, start: int) -> Path:
    """Return the temporary file of the part that begins at entry `start`."""
    return folder / f"rows_{start:012d}.npz"


def is_whole(path: Path) -> bool:
    """Return whether a killed run left an intact .npz file, by its zip checksums.

    Prints a damaged file's name.
    """
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            if archive.testzip() is None:
                return True
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
        pass
    if process_group().is_main:
        print_line(f"{path.parent.name}: {path.name} is damaged; it is made again")
    return False


def _read(folder: Path, start: int) -> dict:
    """Return a part's arrays: rows (r,) int64, seconds ()."""
    with np.load(_part(folder, start), allow_pickle=False) as part:
        return dict(part)


def _write(folder: Path, start: int, rows: np.ndarray, seconds: float) -> None:
    """Write a part atomically."""
    path = _part(folder, start)
    partial = path.with_name(f"new_{path.name}")
    np.savez(partial, rows=rows.astype(np.int64), seconds=seconds)
    os.replace(partial, path)

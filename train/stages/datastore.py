"""Stage datastore: one key per entry of the memory's documents, in shards.

A key is the decoder's hidden state. Each shard is written atomically by one process, and a killed
run resumes at the next shard.
"""

import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.retrieval.datastore import Datastore, build_keys, save_entries
from mlpmem.retrieval.documents import Documents, entries
from mlpmem.retrieval.shards import Shard, read_index, shard_file, write_index, write_shard
from train.config.tables import DatastoreConfig
from train.files import file_hash, print_line, read_json, write_json
from train.fit.kept_rows import KEPT, save_kept
from train.run.processes import process_group
from train.run.stage import StageContext


class Span(NamedTuple):
    """The entries first .. end that one shard holds."""

    number: int  # of the shard
    first: int
    end: int


def make_datastore(context: StageContext) -> dict:
    """Return counts; writes keys-*.npy with shards.json, positions.npy, counts.npy, documents/.

    Where the corpus has what must stay the decoder's, its rows are in kept/. They are of float32 in
    every recipe, since their targets are the decoder's own probabilities.
    """
    if context.config.built:
        return take_datastore(context) if process_group().is_main else {}
    corpus = context.inputs["corpus"]
    documents, decoder = Documents.load(corpus / "memory"), load_decoder(context)
    counts = build_datastore(context, decoder, documents, *entries(documents), [])
    if (corpus / KEPT / "train").is_dir() and process_group().is_main:
        exact = load_decoder(context, "float32")
        save_kept(context.folder / KEPT, exact, Documents.load(corpus / KEPT / "train"))
    return counts


def take_datastore(context: StageContext) -> dict:
    """Return counts; takes keys, entries and documents of a datastore that is built already.

    MlpMemError if a file of its keys is damaged.
    """
    built, folder = Path(context.config.built), context.folder
    store, (size, shards) = Datastore.load(built), read_index(built)
    for shard in shards:
        link(built / shard.file, folder / shard.file)
        if file_hash(folder / shard.file) != shard.sha256:
            raise MlpMemError(
                f"datastore: {built.name}/{shard.file} is altered (its sha256 is not that of "
                "shards.json); build it again, or leave out built in [datastore]"
            )
    write_index(folder, size, shards)
    save_entries(folder, store.positions, store.counts)
    store.documents.save(folder / "documents")
    return _counts(store.documents, len(store), shards)


def link(old: Path, new: Path) -> None:
    """Link a file into another folder, or copy it where links are not supported."""
    new.unlink(missing_ok=True)  # a killed run may have left half a copy
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)


def _counts(documents: Documents, entries: int, shards: list[Shard]) -> dict:
    """Return the counts of a datastore, and its shards' hashes."""
    return {
        "tokens": len(documents.tokens),
        "entries": entries,
        "passages": len(documents),
        "shards": len(shards),
        "hashes": {shard.file: shard.sha256 for shard in shards},
    }


def load_decoder(context: StageContext, dtype: str = "") -> Decoder:
    """Return the decoder in a dtype, the recipe's if none is given, on this process's device."""
    config = context.config
    dtype, device = getattr(torch, dtype or config.dtype), process_group().device
    return Decoder.load(context.inputs["decoder"], depth=config.depth, dtype=dtype, device=device)


def build_datastore(
    context: StageContext,
    decoder: Decoder,
    documents: Documents,
    positions: np.ndarray,
    counts: np.ndarray,
    existing: list[Shard],
) -> dict:
    """Return counts; writes the keys of all entries after those of the `existing` shards.

    Every process builds its share of the missing shards; the main process writes the other files.
    """
    folder, size, processes = context.folder, decoder.hidden_size, process_group()
    spans = cut(sum(s.entries for s in existing), len(positions), size, context.config)
    spans = [Span(len(existing) + number, first, end) for number, first, end in spans]
    done = [span for span in spans if _is_kept(folder, span)]
    processes.wait()  # every process must list the same finished shards before one writes more
    earlier = sum(read_json(folder / note(span))["seconds"] for span in done)
    share = processes.share([span for span in spans if span not in done])
    _build(decoder, documents, positions, folder, share)
    processes.wait()
    shards = existing + [Shard(**read_json(folder / note(span))["shard"]) for span in spans]
    if processes.is_main:
        write_index(folder, size, shards)
        save_entries(folder, positions, counts)
        documents.save(folder / "documents")
    return _counts(documents, len(positions), shards) | {
        "earlier_seconds": earlier / processes.world,
        "scratch": [note(span) for span in spans],
    }


def cut(start: int, end: int, size: int, config: DatastoreConfig) -> list[Span]:
    """Return the shards of entries start .. end with keys of `size`, numbered from 0."""
    width = max(1, config.shard_mib * 2**20 // (2 * size))
    firsts = range(start, end, width)
    return [Span(number, first, min(first + width, end)) for number, first in enumerate(firsts)]


def note(span: Span) -> str:
    """Return the name of the file that records a finished shard."""
    return shard_file(span.number).replace(".npy", ".json")


def _is_kept(folder: Path, span: Span) -> bool:
    """Return whether a killed run left a shard as it wrote it; a damaged one is built again."""
    path = folder / note(span)
    if not path.is_file():
        return False
    try:
        shard = Shard(**read_json(path)["shard"])
        if file_hash(folder / shard.file) == shard.sha256:
            return True
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if process_group().is_main:
        print_line(f"{folder.name}: {shard_file(span.number)} is damaged; it is built again")
    return False


def _build(
    decoder: Decoder, documents: Documents, positions: np.ndarray, folder: Path, spans: list[Span]
) -> None:
    """Write shards, and a note after each."""
    total = sum(span.end - span.first for span in spans)
    with tqdm(total=total, desc="keys", unit="key", unit_scale=True, mininterval=5.0) as bar:
        for span in spans:
            size, base, started = span.end - span.first, bar.n, time.perf_counter()

            def progress(done: int, of: int, base: int = base, size: int = size) -> None:
                bar.update(base + size * done // of - bar.n)

            where = np.asarray(positions[span.first : span.end])
            keys = build_keys(decoder, documents, where, progress=progress)
            shard = write_shard(folder, span.number, keys)
            seconds = time.perf_counter() - started
            write_json(folder / note(span), {"shard": shard._asdict(), "seconds": seconds})

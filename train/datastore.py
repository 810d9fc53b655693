"""Stage datastore: the decoder over the memory's documents -> a key for every entry, in shards.

A shard is written whole or not at all, by any of the processes; a killed run goes on at the next.
"""

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from mlpmem.datastore import build_keys, save_entries
from mlpmem.decoder import Decoder
from mlpmem.documents import Documents, entries
from mlpmem.shards import Shard, shard_file, write_index, write_shard
from train.files import read_json, write_json
from train.processes import Team, team
from train.recipe import Datastore as DatastoreRecipe
from train.stage import Context


class Span(NamedTuple):
    """The entries first .. end that one shard holds."""

    number: int  # of the shard
    first: int
    end: int


def make_datastore(context: Context) -> dict:
    """Return counts; writes keys-*.npy with shards.json, positions.npy, counts.npy, documents/."""
    documents = Documents.load(context.inputs["corpus"] / "memory")
    return build_datastore(context, documents, *entries(documents), [])


def build_datastore(
    context: Context,
    documents: Documents,
    positions: np.ndarray,
    counts: np.ndarray,
    there: list[Shard],
) -> dict:
    """Return counts; builds the keys of all entries but those of the shards that are there.

    Every process builds its share of the missing shards, the first writes the rest.
    """
    folder, config, us = context.folder, context.config, team()
    decoder = Decoder.load(
        context.inputs["decoder"],
        depth=config.depth,
        dtype=getattr(torch, config.dtype),
        device=us.device,
    )
    spans = cut(sum(s.entries for s in there), len(positions), decoder.hidden_size, config)
    spans = [Span(len(there) + number, first, end) for number, first, end in spans]
    earlier = sum(
        read_json(p)["seconds"] for p in map(folder.joinpath, notes(spans)) if p.is_file()
    )
    us.wait()  # before a note of this run counts among the earlier ones
    _build(decoder, documents, positions, folder, us, spans)
    us.wait()
    if us.is_main:
        made = [Shard(**read_json(folder / note)["shard"]) for note in notes(spans)]
        write_index(folder, decoder.hidden_size, [*there, *made])
        save_entries(folder, positions, counts)
        documents.save(folder / "documents")
        there = [*there, *made]
    return {
        "tokens": len(documents.tokens),
        "entries": len(positions),
        "passages": len(documents),
        "shards": len(there),
        "earlier_seconds": earlier / us.world,
        "scratch": notes(spans),
        "hashes": {shard.file: shard.sha256 for shard in there},
    }


def cut(start: int, end: int, size: int, config: DatastoreRecipe) -> list[Span]:
    """Return the shards of entries start .. end with keys of `size`, numbered from 0."""
    width = max(1, config.shard_mib * 2**20 // (2 * size))
    firsts = range(start, end, width)
    return [Span(number, first, min(first + width, end)) for number, first in enumerate(firsts)]


def notes(spans: list[Span]) -> list[str]:
    """Return the names of the notes that say a shard is finished, and what is in it."""
    return [shard_file(span.number).replace(".npy", ".json") for span in spans]


def _build(
    decoder: Decoder,
    documents: Documents,
    positions: np.ndarray,
    folder: Path,
    us: Team,
    spans: list[Span],
) -> None:
    """Write this process's share of the shards that are not finished yet."""
    todo = [s for s, n in zip(spans, notes(spans), strict=True) if not (folder / n).is_file()]
    mine = us.share(todo)
    total = sum(span.end - span.first for span in mine)
    label = "keys" if us.world == 1 else f"keys, process {us.rank}"
    with tqdm(total=total, desc=label, unit="key", unit_scale=True, mininterval=5.0) as bar:
        for span in mine:
            base, started = bar.n, time.perf_counter()

            def progress(done: int, of: int, base: int = base, span: Span = span) -> None:
                bar.update(base + (span.end - span.first) * done // of - bar.n)

            where = np.asarray(positions[span.first : span.end])
            keys = build_keys(decoder, documents, where, progress=progress)
            shard = write_shard(folder, span.number, keys)
            seconds = time.perf_counter() - started
            note = {"shard": shard._asdict(), "seconds": seconds}
            write_json(folder / notes([span])[0], note)

"""More documents for a finished datastore: `python -m train extend RECIPE --text FILES`.

The new folder links to the old shards, gets shards for the new entries, and replaces the old folder
when it is complete. Entries that the new text repeats get a higher count, not a second key. So the
result equals, entry by entry, a datastore built from all documents at once. A memory trained before
does not know the new text; later stages report that when they run, and `--again` remakes them.
"""

import shutil
from collections import Counter
from contextlib import nullcontext
from functools import partial as bind
from pathlib import Path

import numpy as np

from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.retrieval.documents import Documents, entries, join_documents
from mlpmem.retrieval.shards import read_index
from mlpmem.retrieval.texts import noted
from train.config.corpus import CorpusConfig
from train.config.tables import Recipe
from train.corpora.readers import files_of, read_blocks
from train.corpora.text import write_passages
from train.corpora.writer import DocumentWriter
from train.files import file_hash, print_line, read_json
from train.run.inputs import check_inputs
from train.run.processes import lock_stage, process_group
from train.run.stage import (
    StageContext,
    check_same,
    finished_manifest,
    identify,
    is_same,
    prepare,
    recover,
    run_function,
)
from train.stages.datastore import build_datastore, link, load_decoder

NAME = "datastore"
ADDED = "added"  # folder of the new documents while the stage runs


def extend(recipe: Recipe, root: Path, paths: list[Path]) -> dict:
    """Return the datastore's manifest once the documents of text files are in it.

    They are cut into passages as the recipe's [corpus] says, and none is held out. Files with equal
    content count once, also those already in the datastore. MlpMemError without a finished
    datastore of this recipe, or if a file cannot be read.
    """
    final, folder = root / NAME, root / f"{NAME}.partial"
    paths = _files(paths)
    with lock_stage(root, NAME) if process_group().is_main else nullcontext():
        if process_group().is_main:
            _open(recipe, final, folder, paths)
        process_group().wait()
        known = _known(finished_manifest(final))
        if any(file_hash(path) not in known for path in paths):
            context = StageContext(
                folder, {"decoder": root / "decoder"}, recipe.datastore, recipe.seed
            )
            run_function(final, context, bind(_add, final, paths, recipe.corpus), shared=True)
        return finished_manifest(final)


def _open(recipe: Recipe, final: Path, folder: Path, paths: list[Path]) -> None:
    """Prepare the folder of the extended datastore, unless no file is new."""
    done = finished_manifest(final) or finished_manifest(folder)
    if done is None:
        raise MlpMemError(
            f"extend: there is no finished datastore in {final.parent}; run "
            "`python -m train datastore` with the same recipe and --runs first"
        )
    identity = identify(final.parent, NAME, recipe.datastore, tuple(done["inputs"]), recipe.seed)
    check_same(final, done, identity)
    added = _known(done) | {file_hash(path): path.name for path in paths}
    identity["added"] = [{"file": file, "sha256": sha} for sha, file in added.items()]
    if finished_manifest(final) is not None:
        parts = {name: finished_manifest(final.parent / name) for name in (NAME, *done["inputs"])}
        check_inputs(final.parent, "extend", parts)
    recover(final, folder, identity)
    names = ", ".join(path.name for path in paths)
    if finished_manifest(final).get("added", []) == identity["added"]:
        print_line(f"extend: {names}: already in the datastore")
        return
    _check_unfinished(folder, identity)
    prepare(folder, identity)
    print_line(f"extend: {names}")


def _check_unfinished(folder: Path, identity: dict) -> None:
    """Raise MlpMemError if an unfinished run was adding other files."""
    left = folder / "identity.json"
    if not left.is_file() or not [path for path in folder.iterdir() if path != left]:
        return
    if not is_same(other := read_json(left), identity):
        names = ", ".join(text["file"] for text in other.get("added", [])) or "no text"
        raise MlpMemError(
            f"extend: an unfinished run in {folder} adds {names}; run it again with the same "
            "files, or delete that folder"
        )


def _files(paths: list[Path]) -> list[Path]:
    """Return all files of files, folders and patterns; MlpMemError if there are none."""
    return [file for path in paths for file in files_of(path)]


def _known(manifest: dict) -> dict[str, str]:
    """Return {sha256: name} of the files added to a datastore."""
    return {text["sha256"]: text["file"] for text in manifest.get("added", [])}


def _add(final: Path, paths: list[Path], corpus: CorpusConfig, context: StageContext) -> dict:
    """Return counts; writes the datastore of old and new documents."""
    done, (_, shards) = finished_manifest(final), read_index(final)
    decoder = load_decoder(context)
    texts = {file_hash(path): path for path in paths}  # equal content, one file
    unread = [path for sha, path in texts.items() if sha not in _known(done)]
    if process_group().is_main:
        _read(context.folder / ADDED, unread, corpus, decoder)
    process_group().wait()
    new = Documents.load(context.folder / ADDED)
    documents = join_documents(Documents.load(final / "documents"), new)
    positions, counts = entries(documents)
    before = np.load(final / "positions.npy", allow_pickle=False)
    assert np.array_equal(positions[: len(before)], before), "old entries must stay in their place"
    if process_group().is_main:
        for shard in shards:
            link(final / shard.file, context.folder / shard.file)
    stats = build_datastore(context, decoder, documents, positions, counts, shards)
    if process_group().is_main:
        shutil.rmtree(context.folder / ADDED)
    return stats | {"earlier_seconds": stats["earlier_seconds"] + done["seconds"]}


def _read(folder: Path, paths: list[Path], corpus: CorpusConfig, decoder: Decoder) -> None:
    """Write the documents of files into a folder.

    MlpMemError, and no folder, if a file cannot be read or all are without text.
    """
    counts: Counter = Counter()
    blocks = read_blocks(map(str, paths), corpus, counts)
    stream, tokenizer = (("train", block) for block in blocks), decoder.tokenizer
    try:
        with DocumentWriter(folder, len(tokenizer)) as writer:
            write_passages(stream, {"train": writer}, tokenizer, {"train": corpus.passage})
        if not writer.documents:
            names = ", ".join(path.name for path in paths)
            raise MlpMemError(f"extend: {names}: no text found; give files that hold text")
        if line := noted(counts):
            print_line(f"extend: {line}")
    except MlpMemError:
        shutil.rmtree(folder)
        raise

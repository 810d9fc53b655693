"""Text where it lies -> blocks of documents, streamed: files, JSON lines, Parquet, the Hub.

Nothing is read whole. A block is at most BLOCK characters of one document; what follows in the same
document comes in further blocks. Memory is bounded whatever the length of a file or of a line.
"""

import lzma
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from mlpmem.errors import MlpMemError
from train.config.tables import Corpus
from train.corpora.blocks import PACKED, Block
from train.corpora.plain import read_text
from train.corpora.rows import blocks_of_rows, hub_rows, read_json, read_parquet
from train.hub import HUB

READERS = {
    ".txt": read_text,
    ".md": read_text,
    ".jsonl": read_json,
    ".parquet": read_parquet,
}


def read_blocks(sources: Iterable[str], config: Corpus, counts: Counter) -> Iterator[Block]:
    """Yield the blocks of all documents of `sources`, in their order.

    Counts "empty_files" and "empty_documents", which are skipped. MlpMemError for what cannot be
    read, with the file and the byte or line.
    """
    for source in sources:
        if source.startswith(HUB):
            yield from blocks_of_rows(hub_rows(source.removeprefix(HUB)), config, counts)
            continue
        for path in files_of(Path(source)):
            if not path.stat().st_size:
                counts["empty_files"] += 1
                continue
            try:
                yield from READERS[_kind(path)](path, config, counts)
            except (OSError, EOFError, lzma.LZMAError) as error:
                raise MlpMemError(
                    f"corpus: cannot read {path} ({error}); check the file, or leave it out"
                ) from error


def files_of(path: Path) -> list[Path]:
    """Return the files of a source, a folder's in the order of their names."""
    if path.is_file():
        if _kind(path) not in READERS:
            raise MlpMemError(
                f"corpus: {path} is none of {', '.join(READERS)} (also with {', '.join(PACKED)}); "
                "convert it first"
            )
        return [path]
    found = sorted(p for p in path.rglob("*") if p.is_file() and _kind(p) in READERS)
    if not found:
        what = "a folder without text" if path.is_dir() else "not there"
        raise MlpMemError(
            f"corpus: {path} is {what}; give files or folders of {', '.join(READERS)}, relative to "
            f'the recipe\'s own folder, or "{HUB}owner/name" for a dataset of the Hub'
        )
    return found


def _kind(path: Path) -> str:
    """Return the suffix that says how a file is read, without that of its compression."""
    return Path(path.stem).suffix if path.suffix in PACKED else path.suffix

"""Text where it lies -> blocks of documents, streamed: files, Parquet, datasets of the Hub.

Nothing is read whole. A block is at most BLOCK characters of one document; what follows in the same
document comes in further blocks. Memory is bounded whatever the length of a file or of a line. What
a text file is, and what is refused, is the library's rule (`mlpmem/retrieval/texts.py`); training
adds documents cut at headings and separators, and fields of other names.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from mlpmem.errors import MlpMemError
from mlpmem.retrieval import texts
from train.config.load import HUB
from train.config.tables import CorpusConfig

BLOCK = 2**18  # characters; longer documents are tokenised in parts of this size
TITLE = 60  # characters of a document's beginning that stand for a title it lacks
HINT = f'. Paths count from the recipe\'s own folder; "{HUB}owner/name" is a dataset of the Hub'
LINE = 2**16  # characters of a text's line that are read at once


class Block(NamedTuple):
    """A part of a document."""

    title: str
    text: str
    first: bool  # whether the document begins here


def beginning(text: str) -> str:
    """Return the first words of a text, as a title."""
    words = " ".join(text[: 4 * TITLE].split())
    return words if len(words) <= TITLE else words[:TITLE].rsplit(" ", 1)[0] + " …"


def read_json(path: Path, config: CorpusConfig, counts: Counter) -> Iterator[Block]:
    """Yield the blocks of a JSON-lines file, a document a line."""
    with texts.opened(path) as file:
        rows = texts.json_rows(texts.decoded(file, path, counts), path, counts)
        places = ((f"line {number} of {path}", row) for number, row in rows)
        yield from blocks_of_rows(places, config, counts)


def read_parquet(path: Path, config: CorpusConfig, counts: Counter) -> Iterator[Block]:
    """Yield the blocks of a Parquet file, a document a row."""
    yield from blocks_of_rows(_parquet_rows(path, config), config, counts)


def _parquet_rows(path: Path, config: CorpusConfig) -> Iterator[tuple[str, dict]]:
    """Yield (where, row) of the columns needed, a few rows at a time."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise MlpMemError(_missing(str(path), error)) from error
    try:
        with parquet.ParquetFile(path) as file:
            there = set(file.schema_arrow.names)
            fields = {config.text_field, config.title_field, "messages"}
            columns = sorted(there & fields) or sorted(there)
            number = 0
            for batch in file.iter_batches(64, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number} of {path}", row
    except arrow.ArrowInvalid as error:
        raise MlpMemError(
            f"corpus: {path} is not a Parquet file ({error}); write it again"
        ) from error


def hub_rows(name: str) -> Iterator[tuple[str, dict]]:
    """Yield (where, row) of a Hub dataset "owner/name[:configuration[:split]]", streamed."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MlpMemError(_missing(f"{HUB}{name}", error)) from error
    owner_name, _, rest = name.partition(":")
    configuration, _, split = rest.partition(":")
    try:
        rows = datasets.load_dataset(
            owner_name, configuration or None, split=split or "train", streaming=True
        )
        for number, row in enumerate(rows, 1):
            yield f"row {number} of {HUB}{name}", row
    except (OSError, ValueError) as error:
        why = str(error).partition("\n")[0]
        raise MlpMemError(
            f"corpus: cannot read {HUB}{name} ({why}); write "
            f'"{HUB}owner/name", "{HUB}owner/name:configuration" or '
            f'"{HUB}owner/name:configuration:split", and check the network'
        ) from error


def _missing(source: str, error: ModuleNotFoundError) -> str:
    """Return what to say where a reader's package is not installed."""
    return (
        f"corpus: {source} is read by {error.name}, which is not installed here; install it with "
        'pip install -e ".[train]", or give .txt, .md or .jsonl files'
    )


def blocks_of_rows(
    rows: Iterator[tuple[str, Any]], config: CorpusConfig, counts: Counter
) -> Iterator[Block]:
    """Yield the blocks of rows (where, {text, title} or a chat); see texts.row_text."""
    for where, row in rows:
        title, text = texts.row_text(row, where, config.text_field, config.title_field)
        if not text.strip():
            counts["empty_documents"] += 1
            continue
        title = title or beginning(text)
        for start in range(0, len(text), BLOCK):
            yield Block(title, text[start : start + BLOCK], start == 0)


def read_text(path: Path, config: CorpusConfig, counts: Counter) -> Iterator[Block]:
    """Yield the blocks of a text file, cut into documents at headings and separators."""
    heading = re.compile(config.heading, re.MULTILINE) if config.heading else None
    title = "" if config.heading or config.separator else path.name
    parts, size, first, documents = [], 0, True, 0
    for before, line, after in _with_neighbours(_lines(path, counts)):
        found = heading.match(before + line + after, len(before)) if heading else None
        ends = found or (config.separator and line.rstrip("\n") == config.separator)
        if ends or (parts and size + len(line) > BLOCK):
            if made := _block(parts, title, first):
                yield made
                title, first, documents = made.title, False, documents + made.first
            parts, size = [], 0
        if ends:
            title, first = _title(found), True
        if found or not ends:
            parts.append(line)
            size += len(line)
    if made := _block(parts, title, first):
        yield made
        documents += made.first
    counts["empty_documents"] += not documents


def _block(parts: list[str], title: str, first: bool) -> Block | None:
    """Return the block of these lines; None where nothing stands, or a document has not begun."""
    text = "".join(parts)
    return Block(title or beginning(text), text, first) if text.strip() or not first else None


def _title(heading: re.Match | None) -> str:
    """Return what a heading says, nothing for a separator."""
    return heading.group(1 if heading.re.groups else 0).strip() if heading else ""


def _with_neighbours(lines: Iterator[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (what stands before, line, line after): a heading may look at what is around it.

    Before are a line and the end of the one before that; a file has an empty line at either end.
    """
    before, line = "\n", next(lines, "")
    for after in chain(lines, ["\n"]):
        yield before, line, after
        before, line = before[-1:] + line, after


def _lines(path: Path, counts: Counter) -> Iterator[str]:
    """Yield the lines of a text file with their ends, those beyond LINE characters in parts."""
    with texts.opened(path) as file:
        yield from texts.lines(texts.decoded(file, path, counts), LINE)


READERS = {
    ".txt": read_text,
    ".md": read_text,
    ".jsonl": read_json,
    ".parquet": read_parquet,
}


def read_blocks(sources: Iterable[str], config: CorpusConfig, counts: Counter) -> Iterator[Block]:
    """Yield the blocks of all documents of `sources`, in their order.

    Counts what is left out, see texts.noted. MlpMemError for what cannot be read, with the file and
    the byte, line or row.
    """
    for source in sources:
        if source.startswith(HUB):
            yield from blocks_of_rows(hub_rows(source.removeprefix(HUB)), config, counts)
            continue
        for path in texts.filled(files_of(source, counts, HINT), counts):
            try:
                yield from READERS[texts.kind_of(path)](path, config, counts)
            except OSError as error:
                raise MlpMemError(
                    f"corpus: cannot read {path} ({error}); check the file, or leave it out"
                ) from error


def files_of(source: str | Path, counts: Counter | None = None, hint: str = "") -> list[Path]:
    """Return the files of a source: of a folder or a pattern in the order of their names."""
    return texts.files_of(source, tuple(READERS), counts, hint)

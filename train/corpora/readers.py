"""Streams text files, web pages, PDFs, Parquet and Hub datasets as blocks of documents.

A block is at most BLOCK characters of one document; a longer document comes in several blocks. So
memory is bounded, whatever the length of a file or a line. The library decides what a text file is
and what is refused (`mlpmem/retrieval/texts.py`, `rows.py`). Training adds documents cut at
headings and separators, and other names of fields.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from mlpmem.errors import MlpMemError
from mlpmem.retrieval import texts
from mlpmem.retrieval.rows import FIELDS, row_text
from train.config.corpus import CorpusConfig
from train.config.load import HUB

BLOCK = 2**18  # characters that are tokenised at once
TITLE = 60  # characters of a title made of a document's beginning
HINT = f'. Paths are relative to the recipe; "{HUB}owner/name" is a dataset of the Hub'
LINE = 2**16  # characters of a line that are read at once


class Block(NamedTuple):
    """A part of a document."""

    title: str
    text: str
    first: bool  # the document begins here


def beginning(text: str) -> str:
    """Return the first words of a text, as a title."""
    words = " ".join(text[: 4 * TITLE].split())
    return words if len(words) <= TITLE else words[:TITLE].rsplit(" ", 1)[0] + " …"


def read_json(path: Path, config: CorpusConfig, counts: Counter) -> Iterator[Block]:
    """Yield the blocks of a JSON-lines file, one document per line."""
    with texts.opened(path) as file:
        rows = texts.json_rows(texts.decoded(file, path, counts), path, counts)
        located = ((f"line {number} of {path}", row) for number, row in rows)
        yield from blocks_of_rows(located, config, counts)


def read_parquet(path: Path, config: CorpusConfig, counts: Counter) -> Iterator[Block]:
    """Yield the blocks of a Parquet file, one document per row."""
    yield from blocks_of_rows(_parquet_rows(path, config), config, counts)


def _parquet_rows(path: Path, config: CorpusConfig) -> Iterator[tuple[str, dict]]:
    """Yield (where, row) of the columns needed, a few rows at a time."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise MlpMemError(_missing_package(str(path), error)) from error
    try:
        with parquet.ParquetFile(path) as file:
            names = set(file.schema_arrow.names)
            fields = {config.text_field, config.title_field, *FIELDS}
            columns = sorted(names & fields) or sorted(names)
            number = 0
            for batch in file.iter_batches(64, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number} of {path}", row
    except arrow.ArrowInvalid as error:
        raise MlpMemError(
            f"corpus: {path} is not a valid Parquet file ({error}); write it again"
        ) from error


def hub_rows(name: str) -> Iterator[tuple[str, dict]]:
    """Yield (where, row) of a Hub dataset "owner/name[:configuration[:split]]", streamed."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MlpMemError(_missing_package(f"{HUB}{name}", error)) from error
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
            f'corpus: cannot read {HUB}{name} ({why}); write "{HUB}owner/name", '
            f'"{HUB}owner/name:configuration" or "{HUB}owner/name:configuration:split", and check '
            "the network"
        ) from error


def _missing_package(source: str, error: ModuleNotFoundError) -> str:
    """Return the error message for a reader whose package is not installed."""
    return (
        f"corpus: {source} is read by {error.name}, which is not installed; install it with "
        'pip install -e ".[train]", or give .txt, .md or .jsonl files'
    )


def blocks_of_rows(
    rows: Iterator[tuple[str, Any]], config: CorpusConfig, counts: Counter
) -> Iterator[Block]:
    """Yield the blocks of rows (where, {text, title} or a chat); see rows.row_text."""
    for where, row in rows:
        title, text = row_text(row, where, config.text_field, config.title_field)
        if not text.strip():
            counts["empty_documents"] += 1
            continue
        title = title or beginning(text)
        for start in range(0, len(text), BLOCK):
            yield Block(title, text[start : start + BLOCK], start == 0)


def read_text(path: Path, config: CorpusConfig, counts: Counter) -> Iterator[Block]:
    """Yield the blocks of a text file; headings and separators begin new documents."""
    heading = re.compile(config.heading, re.MULTILINE) if config.heading else None
    title = "" if config.heading or config.separator else path.name
    parts, size, first, documents = [], 0, True, 0
    for before, line, after in _with_neighbours(_lines(path, counts)):
        match = heading.match(before + line + after, len(before)) if heading else None
        ends = match or (config.separator and line.rstrip("\n") == config.separator)
        if ends or (parts and size + len(line) > BLOCK):
            if block := _block(parts, title, first):
                yield block
                title, first, documents = block.title, False, documents + block.first
            parts, size = [], 0
        if ends:
            title, first = _title(match), True
        if match or not ends:
            parts.append(line)
            size += len(line)
    if block := _block(parts, title, first):
        yield block
        documents += block.first
    counts["empty_documents"] += not documents


def _block(parts: list[str], title: str, first: bool) -> Block | None:
    """Return the block of these lines; None for blank lines before a document."""
    text = "".join(parts)
    return Block(title or beginning(text), text, first) if text.strip() or not first else None


def _title(heading: re.Match | None) -> str:
    """Return a heading's title, "" for a separator."""
    return heading.group(1 if heading.re.groups else 0).strip() if heading else ""


def _with_neighbours(lines: Iterator[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (text before, line, line after), which a heading's look-around may match.

    The text before is one line, preceded by the newline that ends its predecessor. At both ends of
    a file an empty line is assumed.
    """
    before, line = "\n", next(lines, "")
    for after in chain(lines, ["\n"]):
        yield before, line, after
        before, line = before[-1:] + line, after


def _lines(path: Path, counts: Counter) -> Iterator[str]:
    """Yield the lines of a text file with their newlines, in parts of at most LINE characters."""
    with texts.opened(path) as file:
        yield from texts.lines(texts.decoded(file, path, counts), LINE)


READERS = {
    ".txt": read_text,
    ".md": read_text,
    ".jsonl": read_json,
    ".html": read_text,
    ".htm": read_text,
    ".pdf": read_text,
    ".parquet": read_parquet,
}


def read_blocks(sources: Iterable[str], config: CorpusConfig, counts: Counter) -> Iterator[Block]:
    """Yield the blocks of all documents of `sources`, in order.

    `counts` receives what is skipped, see texts.noted. MlpMemError names the file and the byte,
    line or row that cannot be read.
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
    """Return the files of a source; those of a folder or a pattern are sorted by name."""
    return texts.files_of(source, tuple(READERS), counts, hint)

"""Text where it lies -> blocks of documents, streamed: files, JSON lines, Parquet, the Hub.

Nothing is read whole. A block is at most BLOCK characters of one document; what follows in the same
document comes in further blocks. Memory is bounded whatever the length of a file or of a line.

Plain text -> blocks: a file is cut into documents at headings and separators.

Rows -> blocks, a document a row: JSON lines, Parquet, datasets of the Hub.

What readers of text yield, and what they share: blocks of documents, packed files, titles.
"""

import bz2
import codecs
import gzip
import json
import lzma
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mlpmem.errors import MlpMemError
from train.config.load import HUB
from train.config.tables import Corpus

BLOCK = 2**18  # characters; longer documents are tokenised in parts of this size
TITLE = 60  # characters of a document's beginning that stand for a title it lacks
PACKED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


class Block(NamedTuple):
    """A part of a document."""

    title: str
    text: str
    first: bool  # whether the document begins here


def open_bytes(path: Path) -> BinaryIO:
    """Return a file opened for reading bytes, unpacked on the way."""
    return PACKED.get(path.suffix, open)(path, "rb")


def beginning(text: str) -> str:
    """Return the first words of a text, as a title."""
    words = " ".join(text[: 4 * TITLE].split())
    return words if len(words) <= TITLE else words[:TITLE].rsplit(" ", 1)[0] + " …"


ROW = 2**26  # bytes a line of JSON may have: it can only be parsed whole


def read_json(path: Path, config: Corpus, counts: Counter) -> Iterator[Block]:
    """Yield the blocks of a JSON-lines file, a document a line."""
    yield from blocks_of_rows(_json_rows(path), config, counts)


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (file:line, value) of every line that is not blank."""
    with open_bytes(path) as file:
        for number in range(1, 2**62):
            line, where = file.readline(ROW), f"{path}:{number}"
            if not line:
                return
            if len(line) == ROW:
                raise MlpMemError(
                    f"corpus: {where}: the line is longer than {ROW >> 20} MiB and can only be "
                    "read whole; write its text as a .txt file, or cut it into several lines"
                )
            if line.strip():
                try:
                    yield where, json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise MlpMemError(
                        f"corpus: {where}: no JSON in UTF-8 ({error}); correct the line, or use "
                        ".txt for plain text"
                    ) from error


def read_parquet(path: Path, config: Corpus, counts: Counter) -> Iterator[Block]:
    """Yield the blocks of a Parquet file, a document a row."""
    yield from blocks_of_rows(_parquet_rows(path, config), config, counts)


def _parquet_rows(path: Path, config: Corpus) -> Iterator[tuple[str, dict]]:
    """Yield (file:row, row) of the columns needed, a few rows at a time."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise MlpMemError(_missing(str(path), error)) from error
    try:
        with parquet.ParquetFile(path) as file:
            there = set(file.schema_arrow.names)
            columns = sorted(there & {config.text_field, config.title_field}) or sorted(there)
            number = 0
            for batch in file.iter_batches(64, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", row
    except arrow.ArrowInvalid as error:
        raise MlpMemError(f"corpus: {path} is no Parquet file ({error}); write it again") from error


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
            yield f"{HUB}{name}:{number}", row
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


def whole(text: str) -> str:
    """Return a text with U+FFFD for halves of a pair of surrogates, as JSON cut in an emoji has."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def blocks_of_rows(
    rows: Iterator[tuple[str, Any]], config: Corpus, counts: Counter
) -> Iterator[Block]:
    """Yield the blocks of rows (where, {text, title}); MlpMemError for a row without text."""
    for where, row in rows:
        text = row.get(config.text_field) if isinstance(row, dict) else None
        if not isinstance(text, str):
            there = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise MlpMemError(
                f"corpus: {where}: no text in {config.text_field!r}; there is {there}. Set "
                "text_field in the recipe's [corpus], or correct the row"
            )
        if not text.strip():
            counts["empty_documents"] += 1
            continue
        text = whole(text)
        title = whole(str(row.get(config.title_field) or beginning(text)))
        for start in range(0, len(text), BLOCK):
            yield Block(title, text[start : start + BLOCK], start == 0)


LINE = 2**16  # bytes of a text's line that are read at once


def read_text(path: Path, config: Corpus, counts: Counter) -> Iterator[Block]:
    """Yield the blocks of a text file, cut into documents at headings and separators."""
    heading = re.compile(config.heading, re.MULTILINE) if config.heading else None
    title = "" if config.heading or config.separator else path.name
    parts, size, first, documents = [], 0, True, 0
    for before, line, after in _with_neighbours(_lines(path)):
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


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file with their ends, those beyond LINE bytes in pieces."""
    decoder, at = codecs.getincrementaldecoder("utf-8")(), 0
    with open_bytes(path) as file:
        while raw := file.readline(LINE):
            held = len(decoder.getstate()[0])
            text = _decode(decoder, raw, path, at - held)
            at += len(raw)
            if text:
                yield text.removeprefix("\ufeff").replace("\r\n", "\n")
        _decode(decoder, b"", path, at - len(decoder.getstate()[0]), final=True)


def _decode(decoder: Any, raw: bytes, path: Path, at: int, final: bool = False) -> str:
    """Return raw as text; MlpMemError that names the byte of the file where it is no UTF-8."""
    try:
        return decoder.decode(raw, final)
    except UnicodeDecodeError as error:
        raise MlpMemError(
            f"corpus: {path}: byte {at + error.start} (0x{error.object[error.start]:02x}) is no "
            "UTF-8; convert the file (iconv -f latin1 -t utf-8, or whatever it was written in), or "
            "leave it out"
        ) from error


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

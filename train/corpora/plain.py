"""Plain text -> blocks: a file is cut into documents at headings and separators."""

import codecs
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from mlpmem.errors import MlpMemError
from train.config.tables import Corpus
from train.corpora import blocks
from train.corpora.blocks import Block, beginning, open_bytes

LINE = 2**16  # bytes of a text's line that are read at once


def read_text(path: Path, config: Corpus, counts: Counter) -> Iterator[Block]:
    """Yield the blocks of a text file, cut into documents at headings and separators."""
    heading = re.compile(config.heading, re.MULTILINE) if config.heading else None
    title = "" if config.heading or config.separator else path.name
    parts, size, first, documents = [], 0, True, 0
    for before, line, after in _with_neighbours(_lines(path)):
        found = heading.match(before + line + after, len(before)) if heading else None
        ends = found or (config.separator and line.rstrip("\n") == config.separator)
        if ends or (parts and size + len(line) > blocks.BLOCK):
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

"""Text files as documents: one set of rules for library, page and training, without torch.

A source is a file, a folder or a pattern. Endings may have any case, and a file may be packed. Text
is UTF-8, or UTF-16 with a byte order mark. A .txt or .md file is one document, and so is the text
of a web page or a PDF (see `converted/`). Each line of a .jsonl file is one: an object with "text",
or a chat in one of the shapes of `rows.py`. The error of a value that is not text names its file
and line. Files and lines left out are counted; see `noted`.

Everything up to `documents_in` streams: a file is read in pieces, a line of text in parts.
"""

import bz2
import codecs
import glob
import gzip
import io
import lzma
import os
import zlib
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from mlpmem.errors import MlpMemError
from mlpmem.formats import parse_json, valid
from mlpmem.model.tokenizer import encode_text
from mlpmem.retrieval.converted import converted
from mlpmem.retrieval.documents import Documents, join_passages
from mlpmem.retrieval.rows import row_text

if TYPE_CHECKING:
    from mlpmem.model.decoder import Decoder

PLAIN_KINDS = (".txt", ".md", ".jsonl")  # their bytes are text
TEXT_KINDS = (*PLAIN_KINDS, *converted.KINDS)
PACKED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
CHUNK = 256  # tokens of a passage made of plain text
PIECE = 2**16  # bytes read at once
ROW = 2**26  # characters of a .jsonl line at most, as a line is parsed whole
UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}  # by byte order mark
SHOWN = 200  # characters of a source in an error
SKIPPED = {  # key of a count -> its name in a message
    "empty_files": "empty file",
    "empty_documents": "empty document",
    "empty_lines": "empty line",
    "hidden_files": "hidden file",
    "other_files": "file",
}


def kind_of(path: str | Path) -> str:
    """Return a file's ending in lower case, without that of its packing."""
    path = Path(path)
    return Path(path.stem if path.suffix.lower() in PACKED else path.name).suffix.lower()


def files_of(
    source: str | Path,
    kinds: Collection[str] = TEXT_KINDS,
    counts: Counter | None = None,
    hint: str = "",
) -> list[Path]:
    """Return the text files of a source, sorted: of a folder or pattern, those of `kinds`.

    Counts "hidden_files" and "other_files:ENDING", which are left out. A single file must be of
    `kinds`. MlpMemError, ending with `hint`, if there is nothing to read.
    """
    allowed = f"{', '.join(kinds)} files (also with {', '.join(PACKED)})"
    if os.path.isfile(source):
        if kind_of(source) not in kinds:
            raise MlpMemError(f"{source} must be one of {allowed}; convert it first")
        return [Path(source)]
    folder, skipped = os.path.isdir(source), Counter()
    matches = [source] if folder else glob.glob(str(source), recursive=True)
    candidates = {file for match in matches for file in _below(Path(match), skipped)}
    for file in candidates:
        if kind_of(file) not in kinds:
            skipped[f"other_files:{file.suffix.lower()}"] += 1
    files = sorted(file for file in candidates if kind_of(file) in kinds)
    if not files:
        problem = "holds no text" if folder or matches else "does not exist"
        note = f" ({noted(skipped)})" if skipped else ""
        raise MlpMemError(
            f"{str(source)[:SHOWN]} {problem}{note}; give {allowed}, folders of them, or a pattern "
            f"such as notes/*.txt{hint}"
        )
    if counts is not None:
        counts.update(skipped)
    return files


def _below(path: Path, counts: Counter) -> list[Path]:
    """Return a file itself, or the files below a folder that are not hidden."""
    if path.is_file():
        return [path]
    files = [file for file in path.rglob("*") if file.is_file()]
    visible = [
        file
        for file in files
        if not any(name.startswith(".") for name in file.relative_to(path).parts)
    ]
    if len(visible) < len(files):
        counts["hidden_files"] += len(files) - len(visible)
    return visible


def noted(counts: Mapping[str, int]) -> str:
    """Return a line on what was left out or read as UTF-16, "" for nothing."""
    parts = []
    for name, count in sorted(counts.items()):
        kind, _, ending = name.partition(":")
        if count and kind in SKIPPED:
            of = f" of {ending or 'no ending'}" if kind == "other_files" else ""
            parts.append(f"{count} {SKIPPED[kind]}{'s' * (count > 1)}{of}")
    lines = [f"left out: {', '.join(parts)}"] if parts else []
    if utf16 := counts.get("utf16_files"):
        lines.append(f"read as UTF-16: {utf16} file{'s' * (utf16 > 1)}")
    return "; ".join(lines)


@contextmanager
def opened(path: Path) -> Generator[BinaryIO]:
    """Open a file for reading bytes, unpacking it; MlpMemError if it cannot be read."""
    try:
        with PACKED.get(path.suffix.lower(), open)(path, "rb") as file:
            yield cast(BinaryIO, file)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise MlpMemError(f"cannot read {path} ({why}); check the file, or remove it") from error


def decoded(file: BinaryIO, name: object, counts: Counter | None = None) -> Iterator[str]:
    """Yield a file's text in pieces, see `cleaned`; MlpMemError with the byte that is not text.

    Counts "utf16_files", which have a byte order mark. `name` tells the kind of file.
    """
    if (kind := kind_of(str(name))) in converted.KINDS:
        yield from cleaned([converted.converted(file.read(converted.BYTES + 1), kind, name)], name)
        return
    raw = file.read(PIECE)
    encoding = UTF16.get(raw[:2], "utf-8")
    if encoding != "utf-8" and counts is not None:
        counts["utf16_files"] += 1
    yield from cleaned(_pieces(file, raw, encoding, name), name)


def _pieces(file: BinaryIO, raw: bytes, encoding: str, name: object) -> Iterator[str]:
    """Yield the text of bytes already read of a file, then of the rest."""
    decoder, at, line, more = codecs.getincrementaldecoder(encoding)(), 0, 1, True
    while more:
        more = bool(raw)
        begin = at - len(decoder.getstate()[0])
        try:
            text = decoder.decode(raw, final=not more)
        except UnicodeDecodeError as error:
            byte, before = error.object[error.start], error.object[: error.start]
            line += before.decode(encoding, "ignore").count("\n")
            raise MlpMemError(
                f"{name}: byte {begin + error.start} (0x{byte:02x}, line {line}) is not "
                f"{encoding[:6].upper()}; save the file as UTF-8 in an editor, or convert it from "
                "what it is, such as Latin-1: iconv -f latin1 -t utf-8"
            ) from error
        yield text
        line += text.count("\n")
        at += len(raw)
        raw = file.read(PIECE) if more else b""


def cleaned(pieces: Iterable[str], name: object) -> Iterator[str]:
    """Yield pieces without byte order mark, "\\n" for "\\r\\n"; MlpMemError for NUL."""
    held, line, first = "", 1, True
    for piece in pieces:
        piece = held + piece
        if first and piece:
            piece, first = piece.removeprefix("\ufeff"), False
        held = "\r" if piece.endswith("\r") else ""  # its "\n" may come with the next piece
        piece = piece.removesuffix("\r").replace("\r\n", "\n")
        if (at := piece.find("\0")) >= 0:
            raise MlpMemError(
                f"{name}: line {line + piece.count(chr(10), 0, at)} has a NUL character, so it is "
                "not plain text, or UTF-16 without a byte order mark; save it as UTF-8"
            )
        line += piece.count("\n")
        if piece:
            yield piece
    if held:
        yield held


def lines(pieces: Iterable[str], most: int) -> Iterator[str]:
    """Yield lines with their ends; a line longer than `most` characters comes in such parts.

    A line ends only at "\\n": other separators may be inside a text.
    """
    parts, size = [], 0
    for piece in pieces:
        for line in io.StringIO(piece, newline="\n"):
            while line:
                part, line = line[: most - size], line[most - size :]
                parts.append(part)
                size += len(part)
                if size == most or part.endswith("\n"):
                    yield "".join(parts)
                    parts, size = [], 0
    if parts:
        yield "".join(parts)


def json_rows(pieces: Iterable[str], name: object, counts: Counter) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) of JSON lines; counts "empty_lines", which are left out."""
    for number, line in enumerate(lines(pieces, ROW), start=1):
        if len(line) == ROW and not line.endswith("\n"):
            raise MlpMemError(
                f"line {number} of {name} must have at most {ROW:,} characters; save its text as a "
                ".txt file, or cut it into several lines"
            )
        if not line.strip():
            counts["empty_lines"] += 1
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise MlpMemError(
                f"line {number} of {name} must be JSON ({error}); correct the line, or name the "
                "file .txt if it is plain text"
            ) from error
        yield number, row


def documents_in(
    pieces: Iterable[str], name: str | Path, counts: Counter
) -> Iterator[tuple[str, str]]:
    """Yield (title, text) of each document of a file; a row without a title is titled "FILE:LINE".

    Counts "empty_lines" and "empty_documents", which are left out.
    """
    for title, text in _titled(pieces, name, counts):
        if text.strip():
            yield title, text
        else:
            counts["empty_documents"] += 1


def _titled(pieces: Iterable[str], name: str | Path, counts: Counter) -> Iterator[tuple[str, str]]:
    """Yield (title, text) of each document, including empty ones."""
    short = Path(name).name
    if kind_of(name) != ".jsonl":
        yield short, valid("".join(pieces))
        return
    for number, row in json_rows(pieces, name, counts):
        title, text = row_text(row, f"line {number} of {name}")
        yield title or f"{short}:{number}", text


def titled_texts(name: str, content: str, counts: Counter | None = None) -> list[tuple[str, str]]:
    """Return (title, text) of every document in a file's content."""
    counts = Counter() if counts is None else counts
    return list(documents_in(cleaned([content], name), name, counts))


def filled(paths: Iterable[Path], counts: Counter) -> Iterator[Path]:
    """Yield the files that are not empty; counts "empty_files"."""
    for path in paths:
        if path.stat().st_size:
            yield path
        else:
            counts["empty_files"] += 1


def read_texts(
    sources: Iterable[str | Path],
    counts: Counter | None = None,
    failed: list[str] | None = None,
) -> list[tuple[str, str]]:
    """Return (title, text) of every document of files, folders and patterns.

    The error of an unreadable file is raised. With `failed` it is added there, and the other files
    are read; the first error is raised if none is left.
    """
    counts, texts, first = Counter() if counts is None else counts, [], None
    paths = [path for source in sources for path in files_of(source, counts=counts)]
    for path in filled(paths, counts):
        try:
            with opened(path) as file:
                texts += documents_in(decoded(file, path, counts), path, counts)
        except MlpMemError as error:
            if failed is None:
                raise
            failed.append(str(error))
            first = first or error
    if first and not texts:
        raise first
    return texts


def read_text(
    decoder: "Decoder",
    sources: Iterable[str | Path],
    chunk: int = CHUNK,
    counts: Counter | None = None,
    failed: list[str] | None = None,
) -> Documents:
    """Return the documents of files, folders and patterns, in passages of `chunk` tokens.

    `failed` is that of `read_texts`.
    """
    return cut_text(decoder, read_texts(sources, counts, failed), chunk)


def cut_text(
    decoder: "Decoder", titled: Sequence[tuple[str, str]], chunk: int = CHUNK
) -> Documents:
    """Return (title, text) pairs as documents, in passages of `chunk` tokens."""
    chunk = min(chunk, decoder.max_positions)
    passages: list[tuple[int, list[int]]] = []
    for index, (_, text) in enumerate(titled):
        passages += [(index, ids) for ids in _passages(decoder, text, chunk)]
    if not passages or not any(text.strip() for _, text in titled):
        raise MlpMemError("text: the files must hold some text; give other files")
    titles = [title for title, _ in titled]
    return join_passages(passages, titles, ["text"] * len(titles))


def _passages(decoder: "Decoder", text: str, chunk: int) -> list[list[int]]:
    """Return a document's passages: BOS (or EOS) before each, EOS after the last."""
    tokenizer = decoder.tokenizer
    ids = encode_text(tokenizer, text)
    if not ids:
        return []
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    start = end if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids, width = ids + end, max(1, chunk - len(start))
    return [start + ids[at : at + width] for at in range(0, len(ids), width)]

"""Text files as documents: one set of rules for library, page and training. No torch.

A source is a file, a folder or a pattern. Endings count in any case; each file may be packed. Bytes
are UTF-8, or UTF-16 that begins with a byte order mark. A .txt or .md file is one document; so is
each line of a .jsonl file: an object with a "text", or with "messages" (a chat). A value that is
not text is refused with its file and line. What is left out is counted, see `noted`.

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
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mlpmem.errors import MlpMemError
from mlpmem.formats import is_number, parse_json, valid
from mlpmem.model.tokenizer import encode_text
from mlpmem.retrieval.documents import Documents, join_passages

if TYPE_CHECKING:
    from mlpmem.model.decoder import Decoder

TEXT_KINDS = (".txt", ".md", ".jsonl")
PACKED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
CHUNK = 256  # tokens of a passage made of plain text
PIECE = 2**16  # bytes read at once
ROW = 2**26  # characters of a .jsonl line at most: it can only be parsed whole
UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}  # by their marks
SHOWN = 200  # characters of a source in a sentence
LEFT = {  # what is left out, as it is counted and as it is said
    "empty_files": "empty file",
    "empty_documents": "empty document",
    "empty_lines": "empty line",
    "hidden_files": "hidden file",
    "other_files": "file",
}
WHAT = {str: "a string", bool: "true or false", list: "a list", dict: "an object"}


def kind_of(path: str | Path) -> str:
    """Return the ending that says how a file is read, in lower case, without its packing's."""
    path = Path(path)
    return Path(path.stem if path.suffix.lower() in PACKED else path.name).suffix.lower()


def files_of(
    source: str | Path,
    kinds: Collection[str] = TEXT_KINDS,
    counts: Counter | None = None,
    hint: str = "",
) -> list[Path]:
    """Return the text files of a source; a folder's or a pattern's are those of `kinds`, by name.

    Counts "hidden_files" and "other_files:ENDING", which are left out. A file that is named itself
    must be of `kinds`. MlpMemError, which ends with `hint`, where there is nothing to read.
    """
    allowed = f"{', '.join(kinds)} files (also with {', '.join(PACKED)})"
    if os.path.isfile(source):
        if kind_of(source) not in kinds:
            raise MlpMemError(f"{source} is not one of {allowed}; convert it first")
        return [Path(source)]
    folder, left = os.path.isdir(source), Counter()
    matches = [source] if folder else glob.glob(str(source), recursive=True)
    found = {file for match in matches for file in _below(Path(match), left)}
    for file in found:
        if kind_of(file) not in kinds:
            left[f"other_files:{file.suffix.lower()}"] += 1
    files = sorted(file for file in found if kind_of(file) in kinds)
    if not files:
        what = "holds no text" if folder or matches else "is not there"
        raise MlpMemError(
            f"{str(source)[:SHOWN]} {what}{f' ({noted(left)})' if left else ''}; give {allowed}, "
            f"folders of them, or a pattern such as notes/*.txt{hint}"
        )
    if counts is not None:
        counts.update(left)
    return files


def _below(path: Path, counts: Counter) -> list[Path]:
    """Return a file itself, or the files below a folder, but for what is hidden."""
    if path.is_file():
        return [path]
    found = [file for file in path.rglob("*") if file.is_file()]
    shown = [
        file
        for file in found
        if not any(name.startswith(".") for name in file.relative_to(path).parts)
    ]
    if len(shown) < len(found):
        counts["hidden_files"] += len(found) - len(shown)
    return shown


def noted(counts: Mapping[str, int]) -> str:
    """Return a line on what was left out and what was read in another encoding, "" for nothing."""
    left = []
    for name, count in sorted(counts.items()):
        what, _, ending = name.partition(":")
        if count and what in LEFT:
            of = f" of {ending or 'no ending'}" if what == "other_files" else ""
            left.append(f"{count} {LEFT[what]}{'s' * (count > 1)}{of}")
    lines = [f"left out: {', '.join(left)}"] if left else []
    if utf16 := counts.get("utf16_files"):
        lines.append(f"read as UTF-16: {utf16} file{'s' * (utf16 > 1)}")
    return "; ".join(lines)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes, unpacked on the way; MlpMemError where it cannot be read."""
    try:
        with PACKED.get(path.suffix.lower(), open)(path, "rb") as file:
            yield file
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise MlpMemError(f"cannot read {path} ({why}); check the file, or leave it out") from error


def decoded(file: BinaryIO, name: object, counts: Counter | None = None) -> Iterator[str]:
    """Yield a file's text in pieces, see `cleaned`; MlpMemError with the byte that is not text.

    Counts "utf16_files", which only their byte order mark tells.
    """
    raw = file.read(PIECE)
    encoding = UTF16.get(raw[:2], "utf-8")
    if encoding != "utf-8" and counts is not None:
        counts["utf16_files"] += 1
    yield from cleaned(_pieces(file, raw, encoding, name), name)


def _pieces(file: BinaryIO, raw: bytes, encoding: str, name: object) -> Iterator[str]:
    """Yield the text of what was read of a file, and of the rest."""
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
    """Yield pieces of a text without byte order mark, "\\r\\n" as "\\n"; MlpMemError for NUL."""
    held, line, first = "", 1, True
    for piece in pieces:
        piece = held + piece
        if first and piece:
            piece, first = piece.removeprefix("\ufeff"), False
        held = "\r" if piece.endswith("\r") else ""  # its "\n" may come with the next piece
        piece = piece.removesuffix("\r").replace("\r\n", "\n")
        if (at := piece.find("\0")) >= 0:
            raise MlpMemError(
                f"{name}: line {line + piece.count(chr(10), 0, at)} holds a NUL character, so this "
                "is not plain text, or UTF-16 without a byte order mark; save it as UTF-8"
            )
        line += piece.count("\n")
        if piece:
            yield piece
    if held:
        yield held


def lines(pieces: Iterable[str], most: int) -> Iterator[str]:
    """Yield lines with their ends; one of more than `most` characters comes in parts of so many.

    A line ends at "\\n" only: other separators stand inside texts.
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
                f"line {number} of {name} is longer than {ROW:,} characters and can only be parsed "
                "whole; write its text as a .txt file, or cut it into several lines"
            )
        if not line.strip():
            counts["empty_lines"] += 1
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise MlpMemError(
                f"line {number} of {name} is not JSON ({error}); correct the line, or name the "
                "file .txt if it is plain text"
            ) from error
        yield number, row


def row_text(
    row: Any, where: str, text_field: str = "text", title_field: str = "title"
) -> tuple[str, str]:
    """Return (title, text) of a row, the title "" where it has none.

    Without a text, "messages" are read as a chat. MlpMemError, which begins with `where`, for a row
    or a value of another kind.
    """
    if not isinstance(row, dict):
        raise MlpMemError(f'{where} is {_what(row)}; it must be an object with "{text_field}"')
    text, title = row.get(text_field), row.get(title_field)
    if text is None and row.get("messages") is not None:
        text = chat_text(_messages(row["messages"], where))
    elif text_field not in row:
        raise MlpMemError(
            f'{where} has neither "{text_field}" nor "messages" but {", ".join(row) or "nothing"}; '
            "rename the field that holds the text, or in a recipe set text_field in [corpus]"
        )
    if not isinstance(text, str):
        raise MlpMemError(
            f'{where}: "{text_field}" is {_what(text)}; it must be a string. Correct the row, or '
            "leave it out"
        )
    if "\0" in text:
        raise MlpMemError(f"{where}: the text holds a NUL character; take it out")
    if is_number(title):
        title = str(title)
    if not isinstance(title, str | None):
        raise MlpMemError(f'{where}: "{title_field}" is {_what(title)}; it must be a string')
    return valid(title or ""), valid(text)


def chat_text(messages: Sequence[Mapping[str, str]]) -> str:
    """Return a chat as text: a block "role: content" per message, an empty line between blocks.

    This is the one place where a chat becomes a document, so a chat template can take over here.
    """
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _messages(value: Any, where: str) -> list[dict[str, str]]:
    """Return checked messages; content in parts, all of type "text", is joined."""
    if not isinstance(value, list):
        raise MlpMemError(f'{where}: "messages" is {_what(value)}; it must be a list of messages')
    found = []
    for number, message in enumerate(value, start=1):
        role, content = (
            (message.get("role"), message.get("content"))
            if isinstance(message, dict)
            else (None, None)
        )
        if isinstance(content, list):
            parts = [part.get("text") if isinstance(part, dict) else part for part in content]
            content = "".join(parts) if all(isinstance(part, str) for part in parts) else None
        if not isinstance(role, str) or not isinstance(content, str):
            raise MlpMemError(
                f'{where}: message {number} must have "role" and "content", both strings; correct '
                "it, or leave the row out"
            )
        found.append({"role": role, "content": content})
    return found


def _what(value: Any) -> str:
    """Return what a JSON value is, in words."""
    return "null" if value is None else WHAT.get(type(value), "a number")


def documents_in(
    pieces: Iterable[str], name: str | Path, counts: Counter
) -> Iterator[tuple[str, str]]:
    """Yield (title, text) of each document of a file; a row without a title is "FILE:LINE".

    Counts "empty_lines" and "empty_documents", which are left out.
    """
    for title, text in _titled(pieces, name, counts):
        if text.strip():
            yield title, text
        else:
            counts["empty_documents"] += 1


def _titled(pieces: Iterable[str], name: str | Path, counts: Counter) -> Iterator[tuple[str, str]]:
    """Yield (title, text) of each document, empty ones too."""
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
    """Yield the files that have any bytes; counts "empty_files", which are left out."""
    for path in paths:
        if path.stat().st_size:
            yield path
        else:
            counts["empty_files"] += 1


def read_texts(
    sources: Iterable[str | Path], counts: Counter | None = None
) -> list[tuple[str, str]]:
    """Return (title, text) of every document of files, folders and patterns."""
    counts, found = Counter() if counts is None else counts, []
    paths = [path for source in sources for path in files_of(source, counts=counts)]
    for path in filled(paths, counts):
        with opened(path) as file:
            found += documents_in(decoded(file, path, counts), path, counts)
    return found


def read_text(
    decoder: "Decoder",
    sources: Iterable[str | Path],
    chunk: int = CHUNK,
    counts: Counter | None = None,
) -> Documents:
    """Return the documents of files, folders and patterns, in passages of `chunk` tokens."""
    return cut_text(decoder, read_texts(sources, counts), chunk)


def cut_text(
    decoder: "Decoder", titled: Sequence[tuple[str, str]], chunk: int = CHUNK
) -> Documents:
    """Return (title, text) pairs as documents, cut into passages of `chunk` tokens.

    Each passage is keyed on its own.
    """
    chunk = min(chunk, decoder.max_positions)
    passages: list[tuple[int, list[int]]] = []
    for index, (_, text) in enumerate(titled):
        passages += [(index, ids) for ids in _passages(decoder, text, chunk)]
    if not passages or not any(text.strip() for _, text in titled):
        raise MlpMemError("text: the files hold no text; give .txt, .md or .jsonl files with some")
    titles = [title for title, _ in titled]
    return join_passages(passages, titles, ["text"] * len(titles))


def _passages(decoder: "Decoder", text: str, chunk: int) -> list[list[int]]:
    """Return a document's passages: BOS (where there is one) before each, EOS after the last."""
    tokenizer = decoder.tokenizer
    ids = encode_text(tokenizer, text)
    if not ids:
        return []
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    start = end if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids, width = ids + end, max(1, chunk - len(start))
    return [start + ids[at : at + width] for at in range(0, len(ids), width)]

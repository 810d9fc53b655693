"""What readers of text yield, and what they share: blocks of documents, packed files, titles."""

import bz2
import gzip
import lzma
from pathlib import Path
from typing import BinaryIO, NamedTuple

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

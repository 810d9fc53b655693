"""A decoder's tokenizer: read from a folder or the hub, and known again by its hash.

Tokens as bytes: what a token id stands for in UTF-8, and text that grows token by token.

A character may be spread over several tokens, so tokens are bytes first and text second.
"""

import hashlib
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from mlpmem.errors import MlpMemError
from mlpmem.formats import is_gguf

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def load_tokenizer(source: str, **options: Any) -> Any:
    """Return the tokenizer of a folder, GGUF file or hub id; tokenizer.json as it is, if there.

    A family's own tokenizer class may add tokens and rules to what the file says. MlpMemError for
    a folder without a vocabulary, of which transformers would make a tokenizer that knows nothing.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = Path(source)
    if is_gguf(folder):
        from mlpmem.model.gguf import read_header
        from mlpmem.model.gguf_model import read_tokenizer

        return read_tokenizer(read_header(folder))
    if folder.is_dir() and not has_vocabulary(folder):
        raise MlpMemError(f"there is no tokenizer: none of {', '.join(VOCABULARIES)}")
    try:
        return PreTrainedTokenizerFast.from_pretrained(source, **options)
    except (OSError, ValueError):
        return AutoTokenizer.from_pretrained(source, **options)


def has_vocabulary(folder: Path) -> bool:
    """Return whether a folder holds a tokenizer's vocabulary."""
    return any((folder / name).is_file() for name in VOCABULARIES)


def tokenizer_hash(tokenizer: Any) -> str:
    """Return a sha256 over the sorted vocabulary and the merges of a tokenizer."""
    digest = hashlib.sha256()
    for piece, i in sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])):
        digest.update(f"{i}\t{piece}\n".encode("utf-8", "surrogatepass"))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    merges = json.loads(backend.to_str())["model"].get("merges") if backend is not None else None
    for merge in merges or []:
        line = merge if isinstance(merge, str) else " ".join(merge)
        digest.update(f"{line}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


PARTED = " ¶ "  # stands for the special tokens between two turns of a passage


def text_of(decoder: Any, ids: Sequence[int]) -> str:
    """Return tokens as text, special ones as a mark: what they part must not run together."""
    groups = groupby(ids, key=lambda i: i in decoder.special_ids)
    return "".join(PARTED if special else decoder.decode(list(some)) for special, some in groups)


def token_bytes(tokenizer: Any, vocab_size: int) -> list[bytes]:
    """Return the bytes of token ids 0 .. V-1: special tokens are their name, unknown ids empty."""
    names = tokenizer.convert_ids_to_tokens(list(range(min(vocab_size, len(tokenizer)))))
    added = set(tokenizer.get_added_vocab())
    convert = _byte_level if _is_byte_level(tokenizer) else _sentencepiece
    found = [
        b"" if name is None else name.encode() if name in added else convert(name) for name in names
    ]
    return found + [b""] * (vocab_size - len(found))


class TextStream:
    """Text of tokens as they come: a character shows with the token that completes it."""

    def __init__(self) -> None:
        """Begin with nothing pending."""
        self._pending = b""

    def push(self, piece: bytes) -> str:
        """Return the text this token shows; U+FFFD while its character is incomplete."""
        data = self._pending + piece
        cut = _complete(data)
        self._pending = data[cut:]
        return data[:cut].decode("utf-8", "replace") or (
            "\N{REPLACEMENT CHARACTER}" if piece else ""
        )


def _complete(data: bytes) -> int:
    """Return how many leading bytes are whole characters (a broken start counts as whole)."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0b1100_0000 == 0b1000_0000:
            continue
        need = 1 + (byte >= 0xC2) + (byte >= 0xE0) + (byte >= 0xF0) - 4 * (byte > 0xF4)
        return len(data) - back if need > back else len(data)
    return len(data)


def _is_byte_level(tokenizer: Any) -> bool:
    """Return whether the vocabulary is spelled in the 256 byte characters."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return hasattr(tokenizer, "byte_decoder")
    spec = json.loads(backend.to_str())
    return "ByteLevel" in json.dumps([spec.get("decoder"), spec.get("pre_tokenizer")])


def _byte_alphabet() -> dict[str, int]:
    """Return the byte of each character that byte-level vocabularies are spelled with.

    Printable Latin-1 bytes stand for themselves, the other 68 are moved, in order, to 256 and up.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(moved)}


_ALPHABET = _byte_alphabet()


def _byte_level(name: str) -> bytes:
    """Return the bytes of a byte-level piece; a piece in another alphabet is taken as text."""
    try:
        return bytes(_ALPHABET[character] for character in name)
    except KeyError:
        return name.encode()


def _sentencepiece(name: str) -> bytes:
    """Return the bytes of a SentencePiece piece: <0x0A> is a byte, U+2581 a space."""
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return bytes([int(name[3:5], 16)])
    return name.replace("\u2581", " ").encode()

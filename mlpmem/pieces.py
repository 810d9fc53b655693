"""Tokens as bytes: what a token id stands for in UTF-8, and text that grows token by token.

A character may be spread over several tokens, so tokens are bytes first and text second.
"""

import json
from typing import Any


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

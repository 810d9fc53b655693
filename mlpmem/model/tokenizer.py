"""A decoder's tokenizer: text to token ids, and token ids to bytes.

Text of a person or a file never becomes a control token (`encode_text`). A character may consist of
several tokens, so tokens are bytes first and text second.
"""

import codecs
import hashlib
import json
from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from mlpmem.errors import MlpMemError
from mlpmem.formats import is_gguf, valid
from mlpmem.model.templates import render

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def load_tokenizer(source: str, **options: Any) -> Any:
    """Return the tokenizer of a folder, GGUF file or Hub id, from an unchanged tokenizer.json.

    A family's tokenizer class, which may add tokens and rules, is used only without that file.
    MlpMemError for a folder without a vocabulary, which transformers would replace by an empty one.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = Path(source)
    if is_gguf(folder):
        from mlpmem.model.gguf.reader import read_header
        from mlpmem.model.gguf.vocabulary import read_tokenizer

        return read_tokenizer(read_header(folder))
    if folder.is_dir() and not has_vocabulary(folder):
        raise MlpMemError(f"it has no tokenizer; it needs one of {', '.join(VOCABULARIES)}")
    try:
        return PreTrainedTokenizerFast.from_pretrained(source, **options)
    except (OSError, ValueError):
        return AutoTokenizer.from_pretrained(source, **options)


def has_vocabulary(folder: Path) -> bool:
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


_LITERAL: WeakKeyDictionary[Any, tuple[int, Any]] = WeakKeyDictionary()


def encode_text(
    tokenizer: Any, text: str, *, add_special_tokens: bool = False, special: bool = False
) -> list[int]:
    """Return the token ids of a text, with add_special_tokens also BOS if the tokenizer adds one.

    The name of a control token in the text, such as </s>, is plain text; with special=True it
    becomes the control token.
    """
    return encode_texts(tokenizer, [text], add_special_tokens=add_special_tokens, special=special)[
        0
    ]


def encode_texts(
    tokenizer: Any,
    texts: Sequence[str],
    *,
    add_special_tokens: bool = False,
    special: bool = False,
) -> list[list[int]]:
    """Return the token ids of several texts; see `encode_text`."""
    texts = [valid(text) for text in texts]
    try:
        backend = None if special else _literal_backend(tokenizer)
        if backend is not None:
            encodings = backend.encode_batch(texts, add_special_tokens=add_special_tokens)
            return [encoding.ids for encoding in encodings]
        options = {"add_special_tokens": add_special_tokens, "verbose": False}
        if not special:  # a tokenizer written in Python
            options["split_special_tokens"] = True
        return [tokenizer.encode(text, **options) for text in texts]
    except BaseException as error:
        if not is_panic(error):
            raise
        raise MlpMemError(
            f"this decoder's tokenizer cannot split the text ({str(error)[:100]}); a regular "
            "expression of its tokenizer.json fails on it. Shorten the text, or correct the file"
        ) from error


def is_panic(error: BaseException) -> bool:
    """Return whether an error is a panic of tokenizers, which is not a subclass of Exception."""
    return type(error).__name__ == "PanicException"


def continuation_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text that continues another text.

    SentencePiece tokenizers put a space before a text. A line end in front absorbs that space, and
    does not merge with other tokens.
    """
    anchor = encode_text(tokenizer, "\n")
    ids = encode_text(tokenizer, f"\n{text}")
    if ids[: len(anchor)] == anchor:
        return ids[len(anchor) :]
    return encode_text(tokenizer, text)


def text_parts(decoder: Any, ids: Sequence[int], text: str | None = None) -> list[bytes]:
    """Return the UTF-8 of each token's part of the text, (T,); empty for control tokens.

    A space that the tokenizer put before the text does not count. A character of several tokens is
    divided between them.
    """
    parts = [b"" if i in decoder.special_ids else decoder.token_bytes[i] for i in ids]
    if text is not None and b"".join(parts) == b" " + valid(text).encode():
        first = next(i for i, part in enumerate(parts) if part)
        parts[first] = parts[first][1:]
    return parts


def byte_spans(parts: Sequence[bytes]) -> list[tuple[int, int]]:
    """Return where each token's bytes stand in the text they make, (begin, end)."""
    return list(pairwise(accumulate(map(len, parts), initial=0)))


def _literal_backend(tokenizer: Any) -> Any:
    """Return a copy of a tokenizer's backend that ignores control tokens, None without a backend.

    All threads share the backend's own switch, so only a copy has it set. The copy is renewed if
    tokens were added.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    size, copy = _LITERAL.get(tokenizer, (-1, None))
    if size != len(tokenizer):
        copy = type(backend).from_str(backend.to_str())
        copy.no_truncation()
        copy.no_padding()
        copy.encode_special_tokens = True
        _LITERAL[tokenizer] = len(tokenizer), copy
    return copy


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids of control tokens: those with a role, and those flagged as special."""
    flagged = getattr(tokenizer, "added_tokens_decoder", {}).items()
    named = {i for i in tokenizer.all_special_ids if i is not None}  # None: not in the vocabulary
    return frozenset(named | {i for i, token in flagged if token.special})


def turn_ends(tokenizer: Any) -> list[int]:
    """Return the control token that a chat template puts after an answer, as a list of 0 or 1."""
    if not getattr(tokenizer, "chat_template", None):
        return []
    answer = "qzxj"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    try:
        text = render(tokenizer, messages)
    except MlpMemError:  # an invalid template is reported at the first chat
        return []
    after = tokenizer.encode(text.rpartition(answer)[2], add_special_tokens=False, verbose=False)
    return [i for i in after[:1] if i in special_ids(tokenizer)]


PARTED = " ¶ "  # replaces the special tokens between two turns of a passage


def passage_text(decoder: Any, ids: Sequence[int]) -> str:
    """Return tokens as text, with PARTED for special ones, so that the parts stay separate."""
    groups = groupby(ids, key=lambda i: i in decoder.special_ids)
    return "".join(PARTED if special else decoder.decode(list(group)) for special, group in groups)


def token_bytes(tokenizer: Any, vocab_size: int) -> list[bytes]:
    """Return the bytes of token ids 0 .. V-1: a special token's name, b"" for unknown ids."""
    names = tokenizer.convert_ids_to_tokens(list(range(min(vocab_size, len(tokenizer)))))
    added = set(tokenizer.get_added_vocab())
    convert = _byte_level if _is_byte_level(tokenizer) else _sentencepiece
    pieces = [
        b"" if name is None else name.encode() if name in added else convert(name) for name in names
    ]
    return pieces + [b""] * (vocab_size - len(pieces))


PARTIAL = "\N{REPLACEMENT CHARACTER}"  # the text of a token whose character is incomplete


class TextStream:
    """The text of a stream of tokens: a character appears with the token that completes it."""

    def __init__(self) -> None:
        self._pending = b""

    def push(self, piece: bytes) -> str:
        """Return the text that this token adds; U+FFFD while its character is incomplete."""
        data = self._pending + piece
        cut = _complete(data)
        self._pending = data[cut:]
        return data[:cut].decode("utf-8", "replace") or (PARTIAL if piece else "")


def whole_text(data: bytes) -> str:
    """Return bytes as text, without the beginning of a character at their end."""
    return data[: _complete(data)].decode("utf-8", "replace")


class TextEnd:
    """The end of a growing text, as long as a stop text can still begin in it."""

    def __init__(self) -> None:
        """Begin with no text."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""

    def stops(self, piece: bytes, stops: Sequence[str]) -> bool:
        """Return whether the text has a stop text that ends with this token's characters.

        The stop texts are the same in every call. A character that is not whole is not text yet.
        """
        text = self._text + self._decoder.decode(piece)
        longest = max(map(len, stops))
        self._text = text[max(0, len(text) - longest + 1) :]
        return any(stop in text for stop in stops)


def _complete(data: bytes) -> int:
    """Return how many leading bytes are complete characters; invalid bytes count as complete."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data[-3:])  # a beginning has three bytes at most
    pending, _ = decoder.getstate()
    return len(data) - len(pending)


def _is_byte_level(tokenizer: Any) -> bool:
    """Return whether the vocabulary uses the 256 byte characters."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return hasattr(tokenizer, "byte_decoder")
    spec = json.loads(backend.to_str())
    return "ByteLevel" in json.dumps([spec.get("decoder"), spec.get("pre_tokenizer")])


def _byte_alphabet() -> dict[str, int]:
    """Return the byte of each character in byte-level vocabularies.

    Printable Latin-1 bytes are their own characters; the other 68 are mapped, in order, to 256 and
    up.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(moved)}


_ALPHABET = _byte_alphabet()


def _byte_level(name: str) -> bytes:
    """Return the bytes of a byte-level piece; a piece in another alphabet is plain text."""
    try:
        return bytes(_ALPHABET[character] for character in name)
    except KeyError:
        return name.encode()


def _sentencepiece(name: str) -> bytes:
    """Return the bytes of a SentencePiece piece: <0x0A> is a byte, U+2581 is a space."""
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return bytes([int(name[3:5], 16)])
    return name.replace("\u2581", " ").encode()

"""From the steps of a generation to pieces of text, with the tokens that they hold.

A character shows with the token that completes it. Text that may begin a stop text is held back
until it does not, so no piece is ever taken back.
"""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlpmem.engine.trace import RankedToken, Step, Trace

# of a run that was stopped, nothing: an error follows
FINISH = {"eos": "stop", "stop_string": "stop", "stop": "", "length": "length"}


@dataclass(frozen=True)
class Token:
    """A token of an answer, or of an echoed prompt."""

    token_id: int
    offset: int  # characters of the answer's text before it
    control: bool
    names: Sequence[bytes]  # of every token id: UTF-8, or a control token's name
    ranked: Sequence[RankedToken] = ()  # itself, then the likeliest ones
    lmbda: float | None = None

    @property
    def text(self) -> str:
        """Return its text, or how part of a character is spelled."""
        return spelled(self.names[self.token_id])


@dataclass(frozen=True)
class Piece:
    """What one choice gained."""

    index: int
    text: str
    tokens: Sequence[Token] = ()
    finish: str = ""  # why the choice ends, "" while it goes on


class Writing:
    """One choice while it is written."""

    def __init__(self, decoder: Any, index: int, stop: Sequence[str], begin: int = 0) -> None:
        """Begin after `begin` characters of an echoed prompt."""
        self._decoder, self._index, self._stop, self._begin = decoder, index, stop, begin
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._text, self._sent = "", 0
        self._held: list[Token] = []

    def push(self, step: Step, lmbda: float | None) -> Piece | None:
        """Return what a step shows, None while all of it is held back."""
        decoder, token = self._decoder, step.token_id
        control = token in decoder.special_ids
        offset = self._begin + len(self._text)
        lmbda = lmbda if step.lmbda is None else step.lmbda
        names = decoder.token_bytes
        self._held.append(Token(token, offset, control, names, step.ranked, lmbda))
        self._text += "" if control else self._utf8.decode(names[token])
        return self._released(self._safe())

    def _safe(self) -> int:
        """Return how many characters cannot belong to a stop text."""
        found = [self._text.index(stop) for stop in self._stop if stop in self._text]
        return min([*found, len(self._text) - begun(self._text, self._stop)])

    def _released(self, until: int) -> Piece | None:
        """Return the text up to a character, with the tokens that begin in it."""
        tokens = [token for token in self._held if token.offset - self._begin < until]
        text, self._sent = self._text[self._sent : until], until
        self._held = self._held[len(tokens) :]
        return Piece(self._index, text, tokens) if text or tokens else None

    def end(self, trace: Trace) -> Piece:
        """Return the rest: what was held back, without what a stop text cut off."""
        rest, cut = trace.text[self._sent :], self._begin + len(trace.text)
        whole = trace.finish != "stop_string"
        tokens = [token for token in self._held if whole or token.offset < cut]
        return Piece(self._index, rest, tokens, FINISH[trace.finish])


def begun(text: str, stop: Sequence[str]) -> int:
    """Return how many characters at the end of a text may begin a stop text."""
    most = max((len(one) for one in stop), default=1) - 1
    for size in range(min(most, len(text)), 0, -1):
        if any(len(one) > size and one.startswith(text[-size:]) for one in stop):
            return size
    return 0


def echoed(
    decoder: Any,
    prompt: str | Sequence[int],
    ids: Sequence[int],
    ranked: Sequence[tuple[float, Sequence[RankedToken]]],
) -> tuple[str, list[Token]]:
    """Return a prompt's text and its tokens; `ranked` has all but the first.

    Token ids are spelled with the names of control tokens. In front of a typed text the tokenizer
    may put one, which has no place in the text.
    """
    names, special = decoder.token_bytes, decoder.special_ids
    text = prompt if isinstance(prompt, str) else decoder.spelled(ids)
    parts = [names[i] for i in ids]
    if isinstance(prompt, str):
        if ids[0] in special and not prompt.startswith(spelled(parts[0])):
            parts[0] = b""
        if b"".join(parts) == b" " + text.encode():  # SentencePiece puts a space before a text
            first = next(i for i, part in enumerate(parts) if part)
            parts[first] = parts[first][1:]
    tokens, offset, utf8 = [], 0, codecs.getincrementaldecoder("utf-8")("replace")
    for token, part, (lmbda, found) in zip(ids, parts, [(None, ()), *ranked], strict=True):
        place = min(offset, len(text))
        tokens.append(Token(token, place, token in special, names, found, lmbda))
        offset += len(utf8.decode(part))
    return text, tokens


def spelled(data: bytes) -> str:
    """Return a token's text; part of a character is spelled as OpenAI does, `bytes:\\xe2`."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

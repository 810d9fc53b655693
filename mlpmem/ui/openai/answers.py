"""The shapes of OpenAI's protocol: models, answers, chunks of a stream, and errors.

Fields of our own stand beside its own: `system` and `lmbda` of an answer, `lmbda` and the sources'
log-probs of a token. A probability of 0 is -9999 where the protocol wants a number, null elsewhere.
"""

import json
import math
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlpmem.engine.trace import RankedToken
from mlpmem.ui.door.routes import RefusedError
from mlpmem.ui.openai.pieces import Piece, Token, spelled

LEAST = -9999.0  # nats, the protocol's log-prob of a token with probability 0
CODES = {
    404: "not_found", 405: "method_not_allowed", 408: "timeout", 413: "request_too_large",
    429: "rate_limit_exceeded", 500: "internal_error", 503: "unavailable",
}  # fmt: skip


class ApiError(RefusedError):
    """Raised for a request that cannot be answered, with the field at fault."""

    def __init__(
        self, status: int, sentence: str, param: str | None = None, code: str | None = None
    ) -> None:
        """Store what the error's shape needs."""
        super().__init__(status, sentence)
        self.param, self.code = param, code


def error(refused: RefusedError) -> tuple[int, dict]:
    """Return (status, body) of a refused request; what is not valid has status 400 here."""
    status = 400 if refused.status == 422 else refused.status
    kind = "rate_limit_error" if status == 429 else "invalid_request_error"
    sentence = refused.sentence
    sentence += "" if sentence.endswith((".", "!", "?")) else "."
    return status, {
        "error": {
            "message": sentence,
            "type": "server_error" if status >= 500 else kind,
            "param": getattr(refused, "param", None),
            "code": getattr(refused, "code", None) or CODES.get(status),
        }
    }


def models(names: Mapping[str, str], since: int) -> dict:
    """Return the list of models; names are {model: system}."""
    rows = [model(name, system, since) for name, system in names.items()]
    return {"object": "list", "data": rows}


def model(name: str, system: str, since: int) -> dict:
    """Return one model."""
    row = {"id": name, "object": "model", "created": since, "owned_by": "mlpmem"}
    return {**row, "system": system}


@dataclass(frozen=True)
class Head:
    """What every part of an answer repeats; a run yields it first."""

    chat: bool
    model: str
    system: str
    lmbda: float | str  # AUTO if every token has its own
    ranked: int | None  # likeliest tokens asked for; None: no log-probs
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def fields(self, chunk: bool = False) -> dict:
        """Return the first fields of an answer, or of a chunk of it."""
        kind = "text_completion"
        if self.chat:
            kind = "chat.completion.chunk" if chunk else "chat.completion"
        name = f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}"
        own = {"system": self.system, "lmbda": self.lmbda}
        return {"id": name, "object": kind, "created": self.created, "model": self.model, **own}


@dataclass(frozen=True)
class Usage:
    """Tokens read and written; a run yields it last. `cached` of those read were read before."""

    prompt: int
    completion: int
    cached: int = 0

    def fields(self) -> dict:
        """Return the field `usage`."""
        both = self.prompt + self.completion
        counts = {"prompt_tokens": self.prompt, "completion_tokens": self.completion,
                  "total_tokens": both}  # fmt: skip
        details = {"prompt_tokens_details": {"cached_tokens": self.cached}} if self.cached else {}
        return counts | details


def whole(parts: Iterable[Head | Piece | Usage]) -> dict:
    """Return the answer of a run's parts."""
    head, *pieces, usage = parts
    assert isinstance(head, Head) and isinstance(usage, Usage), "a run begins and ends with them"
    by_index: dict[int, list[Piece]] = {}
    for piece in pieces:
        assert isinstance(piece, Piece)
        by_index.setdefault(piece.index, []).append(piece)
    choices = [_joined(head, by_index[index]) for index in sorted(by_index)]
    return {**head.fields(), "choices": choices, "usage": usage.fields()}


def _joined(head: Head, pieces: Sequence[Piece]) -> dict:
    """Return one choice of all its pieces."""
    text = "".join(piece.text for piece in pieces)
    tokens = [token for piece in pieces for token in piece.tokens]
    said: dict[str, Any] = {"text": text}
    if head.chat:
        said = {"message": {"role": "assistant", "content": text, "refusal": None}}
    log_probs = {"logprobs": _log_probs(head, tokens)}
    end = {"finish_reason": pieces[-1].finish or None}
    return {"index": pieces[0].index, **said, **log_probs, **end}


def chunks(
    head: Head, part: Piece | Usage, opened: set[int], include_usage: bool
) -> Iterator[dict]:
    """Yield the chunks of a stream for one part; `opened` are the choices that have begun."""
    if isinstance(part, Usage):
        if include_usage:
            yield {**head.fields(True), "choices": [], "usage": part.fields()}
        return
    extra = {"usage": None} if include_usage else {}
    for choice in _choices(head, part, part.index not in opened):
        yield {**head.fields(True), "choices": [choice], **extra}
    opened.add(part.index)


def _choices(head: Head, piece: Piece, first: bool) -> Iterator[dict]:
    """Yield a piece as the choices of one to three chunks."""
    if head.chat and first:
        yield _choice(head, piece.index, {"role": "assistant", "content": ""}, None)
    if piece.text or piece.tokens:
        log_probs = _log_probs(head, piece.tokens)
        yield _choice(head, piece.index, {"content": piece.text}, None, log_probs)
    if piece.finish:
        yield _choice(head, piece.index, {}, piece.finish)


def _choice(
    head: Head, index: int, delta: dict, finish: str | None, log_probs: dict | None = None
) -> dict:
    """Return the choice of a chunk."""
    said = {"delta": delta} if head.chat else {"text": delta.get("content", "")}
    return {"index": index, **said, "logprobs": log_probs, "finish_reason": finish}


def _log_probs(head: Head, tokens: Sequence[Token]) -> dict | None:
    """Return the field `logprobs` of some tokens, None if nobody asked."""
    if head.ranked is None:
        return None
    return _of_chat(tokens) if head.chat else _of_text(tokens)


def _of_text(tokens: Sequence[Token]) -> dict:
    """Return log-probs as completions have them: one list per field."""
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [_number(t.ranked[0]) if t.ranked else None for t in tokens],
        "top_logprobs": [_likeliest(token) for token in tokens],
        "text_offset": [token.offset for token in tokens],
        "token_ids": [token.token_id for token in tokens],
        "lmbda": [token.lmbda for token in tokens],
        "sources": [_sources(token.ranked[0]) if token.ranked else None for token in tokens],
    }


def _likeliest(token: Token) -> dict[str, float] | None:
    """Return the likeliest tokens, then the chosen one, by text; None for a prompt's first."""
    if not token.ranked:
        return None
    chosen, *best = token.ranked
    found: dict[str, float] = {}
    for one in (*best, chosen):  # of two tokens with one text, the likelier
        found.setdefault(spelled(token.names[one.token_id]), _number(one))
    return found


def _of_chat(tokens: Sequence[Token]) -> dict:
    """Return log-probs as chats have them: one object per token; control tokens are not content."""
    rows = []
    for token in tokens:
        if token.control or not token.ranked:
            continue
        chosen, *best = token.ranked
        row = _row(token, chosen) | {"top_logprobs": [_row(token, one) for one in best]}
        rows.append(row | {"lmbda": token.lmbda})
    return {"content": rows, "refusal": None}


def _row(token: Token, one: RankedToken) -> dict:
    """Return a token of a chat's log-probs."""
    data = token.names[one.token_id]
    return {"token": spelled(data), "logprob": _number(one), "bytes": list(data),
            "sources": _sources(one)}  # fmt: skip


def _number(one: RankedToken) -> float:
    """Return a token's log-prob by the mix."""
    return max(LEAST, one.log_probs["fused"])


def _sources(one: RankedToken) -> dict[str, float | None]:
    """Return a token's log-probs by source, null for a probability of 0."""
    return {
        name: value if math.isfinite(value) else None
        for name, value in one.log_probs.items()
        if name != "fused"
    }


def encoded(value: dict) -> bytes:
    """Return a value as JSON; a lone surrogate, which UTF-8 cannot hold, becomes "?"."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")

"""The work of one request: its prompts are read, echoed and continued, all as one batch."""

from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mlpmem.errors import MlpMemError
from mlpmem.model.prompts import chat_ids, read_ids
from mlpmem.ui.door.bounds import BOUNDS
from mlpmem.ui.openai import names
from mlpmem.ui.openai.answers import ApiError, Head, Usage
from mlpmem.ui.openai.names import Answerer
from mlpmem.ui.openai.pieces import Piece, Writing, echoed
from mlpmem.ui.openai.requests import Asked
from mlpmem.ui.request.limits import Deadline
from mlpmem.ui.service.service import Service

if TYPE_CHECKING:
    from mlpmem.engine.prefix import PrefixCache

NEW_TOKENS = 16  # of a completion that names no number, as the protocol says


def run(
    service: Service, asked: Asked, stop: Deadline, prefix: "PrefixCache | None" = None
) -> Iterator[Head | Piece | Usage]:
    """Yield the head of an answer, its pieces and its usage; stop ends it before the next token.

    Choice i * n + s is sample s of prompt i, and equals a run of its own with seed + s. prefix has
    what the client's earlier requests made the decoder read.
    """
    answerer = names.find(service, asked.model, asked.options.lmbda)
    for source in asked.sources:
        if not answerer.model.can_ask(source, answerer.model.store):
            raise ApiError(400, f"{asked.model} has no source {source}. Leave it out", "sources")
    prompts, new_tokens = _read(service, answerer, asked)
    yield Head(asked.chat, asked.model, answerer.column, answerer.lmbda, asked.ranked)
    begins = [0] * len(prompts)
    if asked.echo:
        for i, ids in enumerate(prompts):
            if stop.is_set():
                return
            text, tokens = _echo(answerer, asked, i, ids, stop)
            begins[i] = len(text)
            for sample in range(asked.samples):
                yield Piece(i * asked.samples + sample, text, tokens)
    if not new_tokens:
        for index in range(asked.samples * len(prompts)):
            yield Piece(index, "", (), "length")
    written = cached = 0
    if new_tokens:
        rest = prompts, new_tokens, begins, stop, prefix
        written, cached = yield from _written(answerer, asked, *rest)
    yield Usage(sum(map(len, prompts)), written, cached)


def _read(service: Service, answerer: Answerer, asked: Asked) -> tuple[list[list[int]], int]:
    """Return (token ids of every prompt, tokens to write); ApiError if one does not fit."""
    decoder, room = answerer.model.decoder, asked.new_tokens
    if asked.chat:
        room = min(BOUNDS.new_tokens, decoder.max_positions // 2) if room is None else room
        most = decoder.max_positions - room
        read = [chat_ids(decoder, asked.messages, most, service.model.questions)]
    else:
        special = asked.options.special
        read = [read_ids(decoder, each, "the prompt", special) for each in asked.prompts]
        if room is None:
            left = decoder.max_positions - max(map(len, read))
            room = max(1, min(NEW_TOKENS, BOUNDS.new_tokens, left))
    for ids in read:
        if len(ids) + room > decoder.max_positions:
            raise ApiError(
                400, f"The prompt has {len(ids):,} tokens and {room} new ones were asked for; this "
                f"decoder reads and writes {decoder.max_positions:,} in all. Shorten the prompt or "
                "ask for fewer tokens", "messages" if asked.chat else "prompt",
                "context_length_exceeded",
            )  # fmt: skip
    if answerer.context is not None:
        if asked.echo:
            raise ApiError(400, f"{asked.model} puts passages before the prompt, so there is no "
                           "echo. Leave echo out", "echo")  # fmt: skip
        read = [answerer.context(ids, room) for ids in read]
    return read, room


def _echo(
    answerer: Answerer, asked: Asked, i: int, ids: Sequence[int], stop: Deadline
) -> tuple[str, list[Any]]:
    """Return a prompt's text, and its tokens where log-probs are asked for."""
    model, prompt = answerer.model, asked.prompts[i]
    if asked.ranked is None:
        return (prompt if isinstance(prompt, str) else model.decoder.spelled(ids)), []
    found = []
    if len(ids) > 1:
        found = model.ranked(
            ids, answerer.system, asked.ranked, lmbda=answerer.lmbda, sources=asked.sources,
            cancel=stop,
        )  # fmt: skip
    if len(found) < len(ids) - 1:
        raise MlpMemError("the request was stopped; send it again")
    return echoed(model.decoder, prompt, ids, found)


def _written(
    answerer: Answerer,
    asked: Asked,
    prompts: list[list[int]],
    new_tokens: int,
    begins: Sequence[int],
    stop: Deadline,
    prefix: "PrefixCache | None",
) -> Generator[Piece, None, tuple[int, int]]:
    """Yield the pieces of every choice; return the tokens written, and those read before."""
    model, options = answerer.model, asked.options.as_arguments()
    options |= {"lmbda": {answerer.system: answerer.lmbda}, "special": False, "cancel": stop}
    options["max_new_tokens"] = new_tokens
    fixed = answerer.lmbda if not isinstance(answerer.lmbda, str) else None
    writings = {
        (i, sample): Writing(model.decoder, i * asked.samples + sample, asked.options.stop, begin)
        for i, begin in enumerate(begins)
        for sample in range(asked.samples)
    }
    written, reused = 0, dict[int, int]()
    events = model.stream_batch(
        prompts, [answerer.system], samples=asked.samples, ranked=asked.ranked,
        sources=asked.sources, prefix=prefix, **options,
    )  # fmt: skip
    for event in events:
        if event.kind == "done":
            continue
        for (i, _, sample), value in event.values.items():
            writing = writings[i, sample]
            if event.kind == "part":
                written += len(value.steps)
                reused[i] = int(value.cost.get("reused_tokens", 0))
                yield writing.end(value)
            elif piece := writing.push(value, fixed):
                yield piece
    return written, sum(reused.values())

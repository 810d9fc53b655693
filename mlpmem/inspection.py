"""A text as it stands, token by token: what every source gives each of its tokens, and why.

One forward pass; what comes after it is done some rows at a time, so that a long text needs no
more memory than a short one. What comes out is a Trace, as of a generation that wrote this text.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch

from mlpmem.engine.fused import FusedModel
from mlpmem.engine.steps import rows_of
from mlpmem.engine.trace import AUTO, Step, Trace
from mlpmem.errors import MlpMemError
from mlpmem.evidence import Evidence, gaps
from mlpmem.pieces import TextStream
from mlpmem.running import Event
from mlpmem.sources import Store
from mlpmem.token_ids import read_ids

MAX_TOKENS = 512
ROWS = 32  # positions whose (rows, V) log-probs exist at a time
TOP = 5  # candidates of every source, and neighbours: a long text has to travel


def inspect(
    model: FusedModel,
    text: str,
    system: str | None = None,
    *,
    lmbda: float | str | None = None,
    store: Store | None = None,
    stop: Any = None,
) -> Iterator[Event]:
    """Return Events: "progress" with {"done", "total"} tokens, last "done" with {system: Trace}.

    Everything is checked before anything is computed. The trace's prompt is the first token, which
    nothing comes before. stop.is_set() is asked before every chunk; a stop ends without a trace.
    """
    store = store or model.store
    system = model.check_system(system, store)
    lmbda = model.lmbdas([system], lmbda, store)[system]
    ids = check_length(model, text)
    return _run(model, store, ids, system, lmbda, stop)


def check_length(model: FusedModel, text: str) -> list[int]:
    """Return the text's token ids; MlpMemError for fewer than two or more than can be read."""
    ids = read_ids(model.decoder, text, "the text")
    most = min(MAX_TOKENS, model.decoder.max_positions)
    if len(ids) < 2:
        raise MlpMemError(f"the text has {len(ids)} tokens; two or more are needed, write more")
    if len(ids) > most:
        raise MlpMemError(
            f"the text has {len(ids):,} tokens; at most {most} are inspected at once. "
            "Leave some of it out"
        )
    return ids


@torch.inference_mode()
def _run(
    model: FusedModel,
    store: Store | None,
    ids: list[int],
    system: str,
    lmbda: float | str,
    stop: Any,
) -> Iterator[Event]:
    """Yield progress after every chunk of rows, then the trace."""
    begin = time.perf_counter()
    output = model.decoder.forward(torch.tensor([ids]))
    steps: list[Step] = []
    written, evidence = TextStream(), Evidence()
    total = len(ids) - 1
    for start in range(0, total, ROWS):
        if stop is not None and stop.is_set():
            return
        at = slice(start, min(start + ROWS, total))
        sources = model.sources(output.hidden[0, at], output.logits[0, at], store)
        taken = ids[at.start + 1 : at.stop + 1]
        rows = rows_of(model.decoder, sources, [[token] for token in taken], store, TOP)
        auto = lmbda == AUTO
        weights = [lmbda] * len(taken)
        if auto:
            found = gaps(sources["lm"], sources[system], torch.tensor(taken))
            before = evidence.read([system] * len(taken), found)
            weights = model.weights(sources, system, lmbda, before).tolist()
        for row, token, weight in zip(rows, taken, weights, strict=True):
            piece = _piece(model.decoder, written, token)
            ms = 1000 * (time.perf_counter() - begin) / (len(steps) + 1)
            own = {"lmbda": weight} if auto else {}
            place = system, weight, len(steps), token
            steps.append(row.step(model.decoder.pieces, *place, text=piece, ms=ms, **own))
        yield Event("progress", {"done": len(steps), "total": total})
    yield Event("done", {system: _trace(model, ids, system, lmbda, steps)})


def _piece(decoder: Any, written: TextStream, token: int) -> str:
    """Return the text a token adds; a special token's own name."""
    if token in decoder.special_ids:
        return decoder.pieces[token]
    return written.push(decoder.token_bytes[token])


def _trace(
    model: FusedModel, ids: list[int], system: str, lmbda: float | str, steps: list[Step]
) -> Trace:
    """Return what is kept of a scored text."""
    used = asdict(model.settings)
    for name in ("lmbda", "auto"):
        used.pop(name)
    return Trace(
        system=system,
        prompt=model.decoder.decode(ids[:1]),
        prompt_ids=ids[:1],
        lmbda=lmbda,
        settings={"scored": True, **used},
        model={"bundle": model.name, "tokenizer_hash": model.decoder.tokenizer_hash},
        steps=steps,
        finish="end",
        text=model.decoder.decode(ids[1:]),
    )


@torch.inference_mode()
def probe(
    model: FusedModel, ids: Sequence[int], text: str, store: Store | None = None
) -> list[dict[str, Any]]:
    """Return [{"id", "text", "named", "p"}, ...]: what every source gives a named token after ids.

    A text stands for its first token, as it is written and, where it has none, after a space: one
    row each. p has a probability for "lm" and the other sources there are.
    """
    if not text:
        raise MlpMemError("no token is named; write a word, such as Lima")
    tokenizer = model.decoder.tokenizer
    found: dict[int, str] = {}
    for named in dict.fromkeys([text if text[0].isspace() else f" {text}", text]):
        first = tokenizer.encode(named, add_special_tokens=False, verbose=False)[:1]
        for token in first:
            found.setdefault(token, named)
    spread = model.distributions(ids, lmbda=0.0, store=store)  # the mix is not asked for
    spread.pop("fused")
    return [
        {
            "id": token,
            "text": model.decoder.pieces[token],
            "named": named,
            "p": {source: float(logs[token].exp()) for source, logs in spread.items()},
        }
        for token, named in found.items()
    ]

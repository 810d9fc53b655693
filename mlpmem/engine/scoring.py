"""A text's nll and perplexity by every source, and by every lambda, from one pass.

Mixing acts on a token's probability alone, so a grid of lambdas costs nothing beyond the pass.

A text as it stands, token by token: what every source gives each of its tokens, and why.

One forward pass; what comes after it is done some rows at a time, so that a long text needs no
more memory than a short one. What comes out is a Trace, as of a generation that wrote this text.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpmem.engine.distributions import interpolate, mix_nll
from mlpmem.engine.fused import FusedModel
from mlpmem.engine.generation import Cancel, Event
from mlpmem.engine.router import Evidence, gaps, reached, read_prompt
from mlpmem.engine.settings import check_lmbda
from mlpmem.engine.steps import positions_of
from mlpmem.engine.trace import AUTO, PARTS, Step, Trace
from mlpmem.errors import MlpMemError
from mlpmem.model.prompts import check_ids, check_prompt, read_ids
from mlpmem.model.tokenizer import TextStream, byte_spans, continuation_ids
from mlpmem.retrieval.datastore import Store

ROWS = 256  # positions whose (rows, V) log-probs exist at a time


@dataclass(frozen=True)
class Score:
    """The nll of every token but the first, given those before it."""

    ids: list[int]  # (T,)
    tokens: list[str]  # (T,) displayable; a part of a character is U+FFFD
    token_bytes: list[bytes]  # (T,) UTF-8, control tokens empty
    offsets: list[tuple[int, int]]  # (T,) begin and end of each in the text's UTF-8
    nll: Mapping[str, np.ndarray]  # source -> (T - 1,) float64 nats
    lmbda: Mapping[str, float | str]  # the model's own, by system; "auto" is the router's
    routed: Mapping[str, np.ndarray]  # system -> (T - 1,) lambda of every token, by its router

    def mixed(self, source: str, lmbda: float | str | None = None) -> np.ndarray:
        """Return the nll (T - 1,) under a system's mix; lmbda None is the model's own, 0 for "lm".

        With "auto" every token has the lambda that the system's router chose for it.
        """
        parts = PARTS.get(source, ()) or ("lm",)
        if source not in PARTS or not self.nll.keys() >= set(parts):
            raise MlpMemError(f"source {source!r} was not scored, there is {', '.join(self.nll)}")
        weight = self.lmbda.get(source, 0.0) if lmbda is None else lmbda
        nlls = [self.nll[part] for part in parts]
        other = mix_nll(*nlls, 0.5) if len(nlls) == 2 else nlls[0]
        if isinstance(weight, str) and weight == AUTO and source in self.routed:
            weight = self.routed[source]
        else:
            weight = check_lmbda(weight)
        return mix_nll(self.nll["lm"], other, weight).numpy()

    def perplexity(self, source: str = "lm", lmbda: float | str | None = None) -> float:
        """Return exp of the mean nll under the mix, inf where a token had no probability."""
        return float(np.exp(self.mixed(source, lmbda).mean()))

    def grid(self, source: str, lmbdas: Sequence[float]) -> list[float]:
        """Return the perplexity at every lambda."""
        return [self.perplexity(source, lmbda) for lmbda in lmbdas]


@torch.inference_mode()
def score(model: FusedModel, text: str | Sequence[int], store: Store | None = None) -> Score:
    """Return the Score of a text (or token ids); MlpMemError for fewer than two tokens.

    A text longer than the decoder reads is scored in windows that overlap by half, every token
    once, in the first window that holds it.
    """
    decoder, store = model.decoder, store or model.store
    ids = read_ids(decoder, text, "the text")
    if len(ids) < 2:
        raise MlpMemError(f"the text has {len(ids)} tokens; scoring needs two or more, write more")
    length = min(len(ids), decoder.max_positions, 2048)
    parts: dict[str, list[torch.Tensor]] = {}
    routed: dict[str, list[torch.Tensor]] = {}
    systems = [system for system in PARTS if model.can_ask(system, store)]
    evidence = Evidence()
    done = 1  # tokens scored, the first needs none
    for start in range(0, len(ids), max(1, length // 2)):
        window = torch.tensor([ids[start : start + length]])
        output = decoder.forward(window)
        end = start + window.shape[1]
        for begin in range(done, end, ROWS):
            at = torch.arange(begin, min(begin + ROWS, end))
            hidden, logits = output.states((0, at - 1 - start))
            sources = model.sources(hidden, logits, store)
            targets = torch.tensor(ids)[at].to(logits.device).view(1, -1, 1)
            nll = -sources.log_probs.gather(-1, targets.expand(len(sources.names), -1, 1))
            for name, row in zip(sources.names, nll[..., 0].double().cpu(), strict=True):
                parts.setdefault(name, []).append(row)
            for system in model.routed(store).keys() & systems:
                found = gaps(sources["lm"], sources[system], torch.tensor(ids)[at])
                before = evidence.read([system] * len(at), found)
                weights = model.weights(sources, system, AUTO, before).double().cpu()
                routed.setdefault(system, []).append(weights)
        done = end
        if end == len(ids):
            break
    nll, routed = (
        {name: torch.cat(rows).numpy() for name, rows in found.items()} for found in (parts, routed)
    )
    pieces = [decoder.pieces[i] for i in ids]
    parts_of_text = [b"" if i in decoder.special_ids else decoder.token_bytes[i] for i in ids]
    spans = byte_spans(parts_of_text, text if isinstance(text, str) else None)
    return Score(ids, pieces, parts_of_text, spans, nll, model.lmbdas(systems, None, store), routed)


MAX_TOKENS = 512
INSPECTED = 32  # positions whose (rows, V) log-probs exist at a time
TOP = 5  # candidates of every source, and neighbours: a long text has to travel


def inspect(
    model: FusedModel,
    text: str,
    system: str | None = None,
    *,
    lmbda: float | str | None = None,
    store: Store | None = None,
    cancel: Cancel | None = None,
) -> Iterator[Event]:
    """Return Events: "progress" with {"done", "total"} tokens, last "done" with {system: Trace}.

    Everything is checked before anything is computed. The trace's prompt is the first token, which
    nothing comes before. cancel.is_set() is asked before every chunk; then it ends without a trace.
    """
    store = store or model.store
    system = model.check_system(system, store)
    lmbda = model.lmbdas([system], lmbda, store)[system]
    ids = check_length(model, text)
    return _run(model, store, ids, system, lmbda, cancel)


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
    cancel: Cancel | None,
) -> Iterator[Event]:
    """Yield progress after every chunk of rows, then the trace."""
    begin = time.perf_counter()
    output = model.decoder.forward(torch.tensor([ids]))
    steps: list[Step] = []
    written, evidence = TextStream(), Evidence()
    total = len(ids) - 1
    for start in range(0, total, INSPECTED):
        if cancel is not None and cancel.is_set():
            return
        at = slice(start, min(start + INSPECTED, total))
        sources = model.sources(*output.states((0, at)), store)
        taken = ids[at.start + 1 : at.stop + 1]
        rows = positions_of(model.decoder, sources, [[token] for token in taken], store, TOP)
        auto = lmbda == AUTO
        weights = [] if auto else [float(lmbda)] * len(taken)
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
def distributions(
    model: FusedModel,
    prompt: str | Sequence[int],
    system: str | None = None,
    lmbda: float | str | None = None,
    store: Store | None = None,
) -> dict[str, Tensor]:
    """Return log-probs (V,) of the next token by every source, and "fused" by the system's mix."""
    store = store or model.store
    system = model.check_system(system, store)
    lmbda = model.lmbdas([system], lmbda, store)[system]
    ids = check_prompt(model.decoder, prompt, 1)
    output = model.decoder.forward(torch.tensor([ids]), last=1 + reached(ids, lmbda == AUTO))
    routed, evidence = {system: system} if lmbda == AUTO else {}, Evidence()
    hidden, logits = output.states(0)
    read_prompt(evidence, model, (hidden, logits), ids, routed, store)
    sources = model.sources(hidden[-1:], logits[-1:], store)
    weights = model.weights(sources, system, lmbda, evidence.now([system]))
    fused = interpolate(sources["lm"], sources[system], weights)
    return {name: sources[name][0] for name in sources.names} | {"fused": fused[0]}


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
    found: dict[int, str] = {}
    for named in dict.fromkeys([text if text[0].isspace() else f" {text}", text]):
        for token in continuation_ids(model.decoder.tokenizer, named)[:1]:
            found.setdefault(token, named)
    check_ids(model.decoder, list(found), "the named token")
    spread = distributions(model, ids, lmbda=0.0, store=store)  # the mix is not asked for
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

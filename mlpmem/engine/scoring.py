"""Reading a given text: its nll and perplexity, and a Trace of it, by every source.

All of it takes one forward pass. The log-probs after it are computed for a few rows at a time, so a
long text needs no more memory than a short one. A mix needs only the token's probability by each
source, so any lambda can be scored afterwards.
"""

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpmem.engine.call import Cancel, Event
from mlpmem.engine.distributions import interpolate
from mlpmem.engine.fused import FusedModel
from mlpmem.engine.router import Evidence, gaps, reached, read_prompt
from mlpmem.engine.settings import check_lmbda
from mlpmem.engine.steps import mixed_nll, positions_of, ranked_tokens
from mlpmem.engine.trace import AUTO, PARTS, RankedToken, Step, Trace
from mlpmem.errors import MlpMemError
from mlpmem.model.prompts import check_ids, check_prompt, read_ids
from mlpmem.model.tokenizer import TextStream, byte_spans, continuation_ids, text_parts
from mlpmem.retrieval.datastore import Store
from mlpmem.retrieval.own.words import prefixes

ROWS = 256  # positions whose (rows, V) log-probs are held at once


@dataclass(frozen=True)
class Score:
    """The nll of every token but the first, by every source."""

    ids: list[int]  # (T,)
    tokens: list[str]  # (T,) for display; part of a character is U+FFFD
    token_bytes: list[bytes]  # (T,) UTF-8 of the text, in parts; empty for control tokens
    offsets: list[tuple[int, int]]  # (T,) start and end of each in the text's UTF-8
    nll: Mapping[str, np.ndarray]  # source -> (T - 1,) float64 nats
    lmbda: Mapping[str, float | str]  # the model's own, by system; "auto" is a router's
    routed: Mapping[str, np.ndarray]  # system -> (T - 1,) its router's lambda per token

    def mixed(self, source: str, lmbda: float | str | None = None) -> np.ndarray:
        """Return the nll (T - 1,) under a system's mix; lmbda None is the model's own, 0 for "lm".

        "auto" is the router's lambda per token.
        """
        parts = PARTS.get(source, ()) or ("lm",)
        if source not in PARTS or not self.nll.keys() >= set(parts):
            raise MlpMemError(f"source must be one of {', '.join(self.nll)}; got {source!r}")
        weight = self.lmbda.get(source, 0.0) if lmbda is None else lmbda
        if isinstance(weight, str) and weight == AUTO and source in self.routed:
            weight = self.routed[source]
        else:
            weight = check_lmbda(weight)
        return mixed_nll(self.nll, source, weight).numpy()

    def perplexity(self, source: str = "lm", lmbda: float | str | None = None) -> float:
        """Return exp of the mean nll under the mix, inf if a token had probability 0."""
        return float(np.exp(self.mixed(source, lmbda).mean()))

    def grid(self, source: str, lmbdas: Sequence[float]) -> list[float]:
        """Return the perplexity at every lambda."""
        return [self.perplexity(source, lmbda) for lmbda in lmbdas]


@torch.inference_mode()
def score(model: FusedModel, text: str | Sequence[int], store: Store | None = None) -> Score:
    """Return the Score of a text (or token ids); MlpMemError for fewer than two tokens.

    A text longer than the decoder reads is scored in windows that overlap by half; each token is
    scored once, in its first window.
    """
    decoder, store = model.decoder, store or model.store
    ids = read_ids(decoder, text, "the text")
    if len(ids) < 2:
        raise MlpMemError(f"the text must have two tokens or more; got {len(ids)}. Write more")
    nlls: dict[str, list[torch.Tensor]] = {}
    routed: dict[str, list[torch.Tensor]] = {}
    systems = [system for system in PARTS if model.can_ask(system, store)]
    evidence = Evidence()
    for tokens, hidden, logits, read in _chunks(decoder, ids):
        sources = model.sources(hidden, logits, store, read=read)
        targets = tokens.to(logits.device).view(1, -1, 1)
        nll = -sources.log_probs.gather(-1, targets.expand(len(sources.names), -1, 1))
        for name, row in zip(sources.names, nll[..., 0].double().cpu(), strict=True):
            nlls.setdefault(name, []).append(row)
        for system in model.routed(store).keys() & systems:
            weights = _routed(model, sources, system, evidence, tokens)
            routed.setdefault(system, []).append(weights)
    nll, routed = (
        {name: torch.cat(rows).numpy() for name, rows in by_name.items()}
        for by_name in (nlls, routed)
    )
    pieces = [decoder.pieces[i] for i in ids]
    parts = text_parts(decoder, ids, text if isinstance(text, str) else None)
    lmbdas = model.lmbdas(systems, None, store)
    return Score(ids, pieces, parts, byte_spans(parts), nll, lmbdas, routed)


def _chunks(
    decoder: Any, ids: list[int]
) -> Iterator[tuple[Tensor, Tensor, Tensor, list[Sequence[int]]]]:
    """Yield (tokens (R,), what precedes them) of all but the first token.

    Hidden states (R, D), logits (R, V) and the ids that each row has read precede a token.

    Texts longer than the decoder reads come in windows; see `score`.
    """
    length = min(len(ids), decoder.max_positions, 2048)
    done = 1
    for start in range(0, len(ids), max(1, length // 2)):
        window = torch.tensor([ids[start : start + length]])
        output = decoder.forward(window)
        end = start + window.shape[1]
        for begin in range(done, end, ROWS):
            at = torch.arange(begin, min(begin + ROWS, end))
            hidden, logits = output.states((0, at - 1 - start))
            yield torch.tensor(ids)[at], hidden, logits, prefixes(ids, begin, len(at))
        done = end
        if end == len(ids):
            break


def _routed(
    model: FusedModel, sources: Any, system: str, evidence: Evidence, tokens: Tensor
) -> Tensor:
    """Return a router's lambda (R,) float64 before tokens (R,), and add them to the evidence."""
    token_gaps = gaps(sources["lm"], sources[system], tokens)
    before = evidence.read([system] * len(tokens), token_gaps)
    return model.weights(sources, system, AUTO, before).double().cpu()


@torch.inference_mode()
def ranked(
    model: FusedModel,
    text: str | Sequence[int],
    system: str | None = None,
    *,
    lmbda: float | str | None = None,
    most: int = 0,
    sources: Collection[str] | None = None,
    store: Store | None = None,
    cancel: Cancel | None = None,
) -> list[tuple[float, list[RankedToken]]]:
    """Return per token but the first: lambda, and the token with the mix's `most` likeliest ones.

    The token is the first in its list. Its "fused" log-prob is the negative of Score.mixed. A
    cancelled call returns the tokens it has read.
    """
    decoder, store = model.decoder, store or model.store
    system = model.check_system(system, store)
    lmbda = model.lmbdas([system], lmbda, store)[system]
    parts = {part for name in (system, *(sources or ())) for part in PARTS[name]}
    evidence = Evidence()
    found: list[tuple[float, list[RankedToken]]] = []
    for tokens, hidden, logits, read in _chunks(decoder, read_ids(decoder, text, "the text")):
        if cancel is not None and cancel.is_set():
            break
        there = model.sources(hidden, logits, store, parts, read=read)
        if lmbda == AUTO:
            weights = _routed(model, there, system, evidence, tokens)
        else:
            weights = torch.full((len(tokens),), float(lmbda), dtype=torch.float64)
        fused = interpolate(there["lm"], there[system], weights)
        lists = ranked_tokens(there, system, fused, weights, tokens.tolist(), most)
        found += zip(weights.tolist(), lists, strict=True)
    return found


MAX_TOKENS = 512
INSPECTED = 32  # as ROWS, between two Events of progress
TOP = 5  # candidates per source, and neighbours: fewer than a generation's, to keep a trace small


def inspect(
    model: FusedModel,
    text: str | Sequence[int],
    system: str | None = None,
    *,
    lmbda: float | str | None = None,
    store: Store | None = None,
    cancel: Cancel | None = None,
    special: bool = False,
) -> Iterator[Event]:
    """Return Events of a text or token ids: "progress" with {"done", "total"} tokens, then "done".

    "done" has {system: Trace}. All parameters are checked before anything is computed. The trace's
    prompt is the first token. cancel.is_set() is checked before every chunk; if it is set, there is
    no trace. With special, names of control tokens in the text become control tokens.
    """
    store = store or model.store
    system = model.check_system(system, store)
    lmbda = model.lmbdas([system], lmbda, store)[system]
    ids = check_length(model, text, special)
    parts = text_parts(model.decoder, ids, text if isinstance(text, str) else None)
    return _run(model, store, ids, parts, system, lmbda, cancel)


def check_length(model: FusedModel, text: str | Sequence[int], special: bool = False) -> list[int]:
    """Return the text's token ids; MlpMemError for fewer than two, or too many."""
    ids = read_ids(model.decoder, text, "the text", special)
    most = min(MAX_TOKENS, model.decoder.max_positions)
    if len(ids) < 2:
        raise MlpMemError(f"the text must have two tokens or more; got {len(ids)}. Write more")
    if len(ids) > most:
        raise MlpMemError(
            f"the text must have at most {most} tokens to be inspected; got {len(ids):,}. "
            "Shorten it"
        )
    return ids


@torch.inference_mode()
def _run(
    model: FusedModel,
    store: Store | None,
    ids: list[int],
    parts: list[bytes],
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
        tokens = ids[at.start + 1 : at.stop + 1]
        read = prefixes(ids, at.start + 1, len(tokens))
        sources = model.sources(*output.states((0, at)), store, read=read)
        rows = positions_of(model.decoder, sources, [[token] for token in tokens], store, TOP, TOP)
        auto = lmbda == AUTO
        weights = [] if auto else [float(lmbda)] * len(tokens)
        if auto:
            token_gaps = gaps(sources["lm"], sources[system], torch.tensor(tokens))
            before = evidence.read([system] * len(tokens), token_gaps)
            weights = model.weights(sources, system, lmbda, before).tolist()
        for row, token, weight in zip(rows, tokens, weights, strict=True):
            special = token in model.decoder.special_ids
            part = parts[len(steps) + 1]
            piece = model.decoder.pieces[token] if special else written.push(part)
            ms = 1000 * (time.perf_counter() - begin) / (len(steps) + 1)
            own = {"lmbda": weight} if auto else {}
            choice = system, weight, len(steps), token
            steps.append(row.step(model.decoder.pieces, *choice, text=piece, ms=ms, **own))
        yield Event("progress", {"done": len(steps), "total": total})
    yield Event("done", {system: _trace(model, ids, parts, system, lmbda, steps)})


def _trace(
    model: FusedModel,
    ids: list[int],
    parts: list[bytes],
    system: str,
    lmbda: float | str,
    steps: list[Step],
) -> Trace:
    """Return the Trace of a scored text."""
    first, *rest = parts
    settings = asdict(model.settings)
    for name in ("lmbda", "auto"):
        settings.pop(name)
    return Trace(
        system=system,
        prompt=first.decode("utf-8", "replace"),
        prompt_ids=ids[:1],
        lmbda=lmbda,
        settings={"scored": True, **settings},
        model={"bundle": model.name, "tokenizer_hash": model.decoder.tokenizer_hash},
        steps=steps,
        finish="end",
        text=b"".join(rest).decode("utf-8", "replace"),
    )


@torch.inference_mode()
def distributions(
    model: FusedModel,
    prompt: str | Sequence[int],
    system: str | None = None,
    lmbda: float | str | None = None,
    store: Store | None = None,
) -> dict[str, Tensor]:
    """Return log-probs (V,) of the next token by every source, and "fused" by the mix."""
    store = store or model.store
    system = model.check_system(system, store)
    lmbda = model.lmbdas([system], lmbda, store)[system]
    ids = check_prompt(model.decoder, prompt, 1)
    count = reached(ids, lmbda == AUTO and model.reads_evidence(system, store))
    output = model.decoder.forward(torch.tensor([ids]), last=1 + count)
    routed, evidence = {system: system} if lmbda == AUTO else {}, Evidence()
    hidden, logits = output.states(0)
    read_prompt(evidence, model, (hidden, logits), ids, routed, store, count)
    sources = model.sources(hidden[-1:], logits[-1:], store, read=[ids])
    weights = model.weights(sources, system, lmbda, evidence.now([system]))
    fused = interpolate(sources["lm"], sources[system], weights)
    return {name: sources[name][0] for name in sources.names} | {"fused": fused[0]}


@torch.inference_mode()
def probe(
    model: FusedModel, ids: Sequence[int], text: str, store: Store | None = None
) -> list[dict[str, Any]]:
    """Return [{"id", "named", "p", "tokens"}, ...]: a named word's probability after ids.

    There is one row for the word with a space before it and one as written, if their tokens differ;
    "id" is the first token. "tokens" has every token's probability by source, given those before
    it: "lm", and "memory" and "knn" if available. "p" is their product, the whole word's.
    """
    if not text:
        raise MlpMemError("the token must have a text; write a word, such as Lima")
    words: dict[tuple[int, ...], str] = {}
    for named in dict.fromkeys([text if text[0].isspace() else f" {text}", text]):
        if tokens := tuple(continuation_ids(model.decoder.tokenizer, named)):
            words.setdefault(tokens, named)
    rows = []
    for tokens, named in words.items():
        check_ids(model.decoder, list(tokens), "the named token")
        probs = _follow(model, ids, tokens, store or model.store)
        p = {source: math.prod(token[source] for token in probs) for source in probs[0]}
        rows.append({"id": tokens[0], "named": named, "p": p, "tokens": probs})
    return rows


def _follow(
    model: FusedModel, ids: Sequence[int], tokens: Sequence[int], store: Store | None
) -> list[dict[str, float]]:
    """Return every token's probability by source after ids and the tokens before it."""
    count = len(tokens)
    context = check_prompt(model.decoder, [*ids, *tokens[:-1]], 1)
    hidden, logits = model.decoder.forward(torch.tensor([context]), last=count).states(0)
    read = prefixes(context, len(context) - count + 1, count)
    sources = model.sources(hidden[-count:], logits[-count:], store, read=read)
    at = torch.tensor(tokens, device=sources.log_probs.device)
    found = sources.log_probs[:, torch.arange(count), at].exp().T.tolist()  # (count, S)
    return [dict(zip(sources.names, row, strict=True)) for row in found]

"""The gate of a person's own texts: lambda per token, fitted to the texts in seconds.

A gate is a router that also reads how a search went (`own.search.NEAR`), each number relative to
what is usual in this store. Its rows are made of the texts themselves. A few of a sentence's words
are asked about, at times with one that no sentence has; the sentence as the answer should be given
(1), unless it is left out of the search (0). Requests that have nothing to do with any text should
be answered by the decoder (0).
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from mlpmem.engine.fused import FusedModel, Sources
from mlpmem.engine.general import ASKED, GENERAL
from mlpmem.engine.router import FEATURES, Router, RouterConfig, features
from mlpmem.errors import MlpMemError
from mlpmem.model.prompts import chat_ids
from mlpmem.model.tokenizer import continuation_ids
from mlpmem.retrieval.datastore import Store
from mlpmem.retrieval.own.search import NEAR
from mlpmem.retrieval.own.words import prefixes

if TYPE_CHECKING:
    from mlpmem.model.decoder import Decoder

QUESTIONS, EACH = 24, 6  # about sentences, and at most about one of them
LEAST = 4  # tokens of a sentence that is asked about
SHARE = 1 / 3  # of a sentence's words that a question about it has
FOREIGN = 1  # words of other requests in it, at most: those who ask have words of their own
FIRST = 8  # tokens of an answer that is not in the store
OPEN, GENERAL_KIND, LEFT_OUT = 0, 1, 2
SHARES = (0.5, 0.4, 0.1)  # of the weight
CERTAINTY = "lm_top", "lm_entropy", "lm_of_other"
RISE = 0.009  # of general requests' perplexity, a share, at most
NARROWEST, WIDEST = 40.0, 4.0  # logits that a gate is shut and opened by, at most
UNITS = 8  # of its hidden layer
DECAY, STEPS = 1e-3, 200  # of L-BFGS
ROWS = 64
EDGES = ".,;:!?"  # of a word
_passes: WeakKeyDictionary = WeakKeyDictionary()
_lock = Lock()


@dataclass(frozen=True)
class Answer:
    """Token ids of a question and its answer, from index `start`."""

    ids: list[int]
    start: int

    @property
    def ends(self) -> bool:
        """Return whether there is a token of the answer."""
        return len(self.ids) > self.start


Pass = tuple[
    Answer, Tensor, Tensor
]  # with hidden states (R, K) and logits (R, V) before its tokens


@torch.inference_mode()
def reference_states(model: FusedModel) -> Tensor:
    """Return a decoder's states (R, D) of general requests and their answers.

    MlpMemError if the decoder reads too few tokens for any of them.
    """
    if not general_answers(model.decoder, model.questions):
        raise MlpMemError(
            f"text: the decoder reads {model.decoder.max_positions} tokens, too few for a question "
            "and its answer; take another decoder"
        )
    states = [hidden for _, hidden, _ in _general(model)]
    return torch.cat(states)[:, : model.decoder.hidden_size]


def _general(model: FusedModel) -> list[Pass]:
    """Return general requests with their answers, in the form of chats; computed once a decoder."""
    decoder = model.decoder
    with _lock:
        if decoder not in _passes:
            answers = general_answers(decoder, model.questions)
            _passes[decoder] = [_pass(decoder, answer) for answer in answers]
        return _passes[decoder]


def general_answers(decoder: "Decoder", questions: bool) -> list[Answer]:
    """Return general requests with their answers; questions is the form of a bundle's prompts."""
    encoded = [(q, continuation_ids(decoder.tokenizer, text)) for q, text in GENERAL]
    answers = [_answer(decoder, questions, q, ids) for q, ids in encoded]
    return [answer for answer in answers if answer.ends]


def _answer(decoder: "Decoder", questions: bool, question: str, ids: list[int]) -> Answer:
    """Return a question with the token ids of its answer."""
    asked = chat_ids(decoder, question, questions=questions)
    return Answer([*asked, *ids][: decoder.max_positions], len(asked))


@torch.inference_mode()
def _pass(decoder: "Decoder", answer: Answer) -> Pass:
    """Return the decoder's states before every token of an answer, logits in half precision."""
    read = torch.tensor([answer.ids[:-1]])
    output = decoder.forward(read, last=len(answer.ids) - answer.start)
    hidden, logits = output.states(0)
    return answer, hidden, logits.half()


@torch.inference_mode(False)
def fit_gate(
    model: FusedModel, store: Store, seed: int = 1, stop: Callable[[], bool] | None = None
) -> Router:
    """Return the gate of a store of own texts; MlpMemError if stop() returns True."""
    decoder, parts = model.decoder, []
    for part in _rows(model, store, random.Random(seed)):
        parts.append(part)
        if stop is not None and stop():
            raise MlpMemError("making the datastore was stopped; start it again to get it")
    read = torch.cat([rows for rows, _ in parts])
    kinds = torch.cat([torch.full((len(rows),), kind) for rows, kind in parts])
    weights = torch.cat([torch.full((len(rows),), 1 / len(rows)) for rows, _ in parts])
    for kind, share in enumerate(SHARES):
        there = kinds == kind
        weights[there] *= share / weights[there].sum().clamp_min(1e-9)
    wanted = (kinds == OPEN).float()
    shape = "knn", decoder.vocab_size, decoder.tokenizer_hash, UNITS, len(NEAR)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        gate = Router(RouterConfig(*shape))
    gate.mean.copy_(read.mean(0))
    gate.scale.copy_(read.std(0).clamp_min(1e-2))
    doubted = _doubted(read, random.Random(seed))
    _fit(gate, torch.cat([read, doubted]), wanted.repeat(2), weights.repeat(2) / 2)
    _open_wide(gate, read[kinds == GENERAL_KIND])
    return gate.eval().requires_grad_(False)


def _doubted(read: Tensor, rng: random.Random) -> Tensor:
    """Return rows (R, F) with the decoder's certainty of other rows.

    A decoder can be as sure of a wrong answer as of a right one. Questions about a text are as good
    as never in the form of its training; those that people ask may be, and then it is sure.
    """
    others = rng.sample(range(len(read)), len(read))
    columns = [FEATURES.index(name) for name in CERTAINTY]
    doubted = read.clone()
    doubted[:, columns] = read[others][:, columns]
    return doubted


def _fit(gate: Router, read: Tensor, wanted: Tensor, weights: Tensor) -> None:
    """Fit a gate in place to lower the weighted cross-entropy of labels (R,)."""
    optimizer = torch.optim.LBFGS(gate.parameters(), max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(gate(read), wanted, weights, reduction="sum")
        loss = loss + DECAY * sum(p.square().sum() for p in gate.parameters())
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)


@torch.no_grad()
def _open_wide(gate: Router, general: Tensor) -> None:
    """Open a gate as far as general requests (R, F) allow.

    If the text gave their tokens no probability at all, their perplexity would rise by RISE.
    """
    logits, most = gate(general), math.log1p(RISE)
    low, high = -NARROWEST, WIDEST
    for _ in range(30):
        middle = (low + high) / 2
        if float(softplus(logits + middle).mean()) <= most:  # softplus(x) is -log(1 - sigmoid(x))
            low = middle
        else:
            high = middle
    gate.out.bias.add_(low)


def _rows(model: FusedModel, store: Store, rng: random.Random) -> Iterator[tuple[Tensor, int]]:
    """Yield (what a gate reads (R, F), its kind) of every answer that it is fitted to."""
    for made in _general(model):
        yield _read(model, store, made), GENERAL_KIND
    for unit, ids in _sentences(store, rng):
        question = _with_foreign(_question(model.decoder.decode(ids).strip(), rng), rng)
        answer = _answer(model.decoder, model.questions, question, ids)
        if not answer.ends:  # the question alone fills the decoder's positions
            continue
        made = _pass(model.decoder, answer)
        yield _read(model, store, made), OPEN
        assert store.texts is not None
        left = store._replace(texts=store.texts.leaving(unit))
        yield _read(model, left, made)[:FIRST], LEFT_OUT


def _sentences(store: Store, rng: random.Random) -> list[tuple[int, list[int]]]:
    """Return (number, token ids) of some of a store's sentences, each up to EACH times."""
    assert store.texts is not None, "only own texts have a gate"
    every = [(u, ids.tolist()) for u, ids in enumerate(store.texts.parts) if len(ids)]
    parts = [part for part in every if len(part[1]) >= LEAST] or every
    chosen = rng.sample(parts, min(QUESTIONS, len(parts)))
    return (chosen * EACH)[:QUESTIONS]


def _question(text: str, rng: random.Random) -> str:
    """Return a question with a third of a sentence's words, as one who has not read it asks.

    Short words say little, and a text without spaces is asked about by a part of it.
    """
    words = text.split()
    if len(words) < 3:
        start = rng.randint(0, len(text) // 2)
        return rng.choice(ASKED).format(text[start : start + max(2, len(text) // 3)])
    long = [i for i, word in enumerate(words) if len(word) > 3] or list(range(len(words)))
    chosen = sorted(rng.sample(long, max(1, round(len(long) * SHARE))))
    return rng.choice(ASKED).format(" ".join(words[i].strip(EDGES) for i in chosen))


def _with_foreign(question: str, rng: random.Random) -> str:
    """Return a question with up to FOREIGN words of general requests among its own."""
    words = question.split()
    for word in rng.sample(foreign_words(), rng.randint(0, FOREIGN)):
        words.insert(rng.randint(1, len(words)), word)
    return " ".join(words)


def foreign_words() -> list[str]:
    """Return the longer words of general requests, each once, in order."""
    words = (word.strip(EDGES).lower() for request, _ in GENERAL for word in request.split())
    return sorted({word for word in words if len(word) > 3})


@torch.inference_mode()
def _read(model: FusedModel, store: Store, made: Pass) -> Tensor:
    """Return what a gate reads (R, F) before every token of an answer."""
    answer, hidden, logits = made
    read = prefixes(answer.ids, answer.start, len(hidden))
    rows = []
    for at in range(0, len(hidden), ROWS):
        part = slice(at, at + ROWS)
        sources = model.sources(
            hidden[part], logits[part].float(), store, ("knn",), read=read[part]
        )
        rows.append(_features(sources))
    return torch.cat(rows).clone()


def _features(sources: Sources) -> Tensor:
    """Return the features of "knn" with those of its search behind them, without evidence."""
    none = torch.zeros(len(sources["lm"]))
    read = features(sources["lm"], sources["knn"], none, sources.nearest("knn"))
    assert sources.near is not None and read.shape[1] == len(FEATURES)
    return torch.cat([read, sources.near.to(read)], 1)

"""Training rows: new wordings as keys and values, and old text with the old memory's features.

R rows, K what a memory reads of a position (D, or more with context vectors). A chat model reads
both as chats, and learns and keeps what it answers.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlpmem.api import Model
from mlpmem.engine.general import GENERAL
from mlpmem.errors import MlpMemError
from mlpmem.retrieval.documents import Documents, join_passages
from mlpmem.retrieval.passages import forward_positions
from mlpmem.teaching.facts import asking_documents, chat_turns, form_marks
from mlpmem.teaching.wordings import Wording

PROMPTS = 0.6  # of the replayed rows that are of answers, where the corpus asks questions
GROUP = 32  # old chats that are read together


class Rows(NamedTuple):
    """What the copy learns: at these keys, these next tokens."""

    keys: Tensor  # (R, K) float32
    values: Tensor  # (R,) int64


def new_rows(
    model: Model, wordings: Sequence[Wording], stop: Callable[[], bool] | None = None
) -> Rows:
    """Return the rows of wordings: of all tokens, or of the answer and the token after it."""
    decoder = model.decoder
    end = decoder.tokenizer.eos_token_id
    passages, wanted = [], []
    for wording in wordings:
        head = model.chat_ids(wording.question) if wording.question else []
        ids = [*head, *decoder.encode(wording.text), *([] if end is None else [end])]
        passages.append((0, ids[: decoder.max_positions]))
        wanted.append(_wanted(decoder, passages[-1][1], wording, len(head)))
    documents = join_passages(passages, ["taught"], ["text"])
    starts = documents.offsets[:-1]
    places = [s + np.array(w, np.int64) for s, w in zip(starts, wanted, strict=True)]
    positions = np.concatenate(places).astype(np.int64)
    keys = keys_of(model, documents, positions, stop)
    return Rows(keys, torch.from_numpy(documents.tokens[positions].astype(np.int64)))


def _wanted(decoder, ids: Sequence[int], wording: Wording, head: int = 0) -> list[int]:
    """Return the indices of a wording's tokens to learn; never the first, which has no context.

    head is the number of tokens in front of the wording's text.
    """
    if wording.answer is None:
        return [*range(max(1, head), len(ids))]
    start, end = wording.answer
    places, at, after = [], 0, 0
    for place, token in enumerate(ids[head:], head):
        size = 0 if token in decoder.special_ids else len(decoder.pieces[token])
        if size and at < end and at + size > start:
            places.append(place)
            after = place + 1
        at += size
    return [p for p in dict.fromkeys([*places, after]) if 0 < p < len(ids)]


def keys_of(
    model: Model,
    documents: Documents,
    positions: np.ndarray,
    stop: Callable[[], bool] | None = None,
) -> Tensor:
    """Return what the memory reads at positions, (R, K) float32; MlpMemError if stop() is true."""
    keys = torch.empty(len(positions), model.decoder.state_size)
    for places in forward_positions(model.decoder, documents, positions, head=False):
        if stop is not None and stop():
            raise MlpMemError("the teaching was cancelled; nothing has changed")
        keys[torch.from_numpy(places.at)] = places.hidden.float().cpu()
    return keys


def old_keys(model: Model, most: int, seed: int, stop: Callable[[], bool] | None = None) -> Tensor:
    """Return keys (R, K) of at most `most` positions of the model's own corpus, drawn by seed.

    They are read from the datastore where it holds all that the memory reads, else computed. Where
    the corpus asks questions, PROMPTS of them are of answers. A model without a corpus has none.
    """
    rng = np.random.default_rng(seed)
    store = model.store
    documents = store.datastore.documents if store is not None else model.documents
    if documents is None or not len(documents):
        return torch.empty(0, model.decoder.state_size)
    if store is not None:
        positions = store.datastore.positions
    else:
        positions = np.setdiff1d(np.arange(len(documents.tokens)), documents.offsets[:-1])
    chosen = rng.permutation(len(positions))[:most]
    if model.questions:
        asked = np.flatnonzero(_answer_tokens(model, documents)[positions])
        count = min(len(asked), round(PROMPTS * most))
        chosen = np.union1d(rng.choice(asked, count, replace=False), chosen[: most - count])
    chosen = np.sort(chosen)
    if store is not None and model.decoder.state_size == store.datastore.keys.shape[1]:
        return torch.from_numpy(np.asarray(store.datastore.keys[chosen], np.float32))
    return keys_of(model, documents, np.asarray(positions[chosen]), stop)


def old_chats(model: Model, seed: int, stop: Callable[[], bool] | None = None) -> Iterator[Tensor]:
    """Yield keys (R, K) of answers by group: general requests, then the corpus's chats by seed."""
    documents, decoder = asking_documents(model), model.decoder
    order = np.random.default_rng(seed).permutation(0 if documents is None else len(documents))
    chats = (chat_turns(decoder, documents.passage(p).tolist()) for p in order)
    old = chain(GENERAL, (chat for chat in chats if chat is not None))
    while group := [*islice(old, GROUP)]:
        wordings = [Wording(answer, question=question) for question, answer in group]
        yield new_rows(model, wordings, stop).keys


def _answer_tokens(model: Model, documents: Documents) -> np.ndarray:
    """Return which tokens are of answers, (M,) bool: those after "Answer:" up to the end."""
    decoder = model.decoder
    _, mark = form_marks(decoder)
    tokens = np.asarray(documents.tokens)
    ends = np.ones(len(tokens) - len(mark) + 1, bool)
    for i, token in enumerate(mark):
        ends &= tokens[i : len(ends) + i] == token
    inside = np.zeros(len(tokens) + 1, np.int64)
    starts = np.flatnonzero(ends) + len(mark)
    stops = np.flatnonzero(np.isin(tokens, sorted(decoder.special_ids)))
    following = stops[np.minimum(np.searchsorted(stops, starts), len(stops) - 1)] + 1
    inside[starts] += 1
    np.add.at(inside, np.maximum(following, starts), -1)
    return np.cumsum(inside)[:-1] > 0


def batches(count: int, size: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Yield indices (b,) of `count` rows without end, each row once before any twice."""
    while True:
        yield from torch.randperm(count, generator=rng).split(size)

"""The context vector: which words were read so far, as decayed means of their input embeddings.

With half-life L, in tokens, it is at position t

    c_t = sum_{s <= t} 2^(-(t - s) / L) w_s e_s / sum_{s <= t} 2^(-(t - s) / L) w_s

of embeddings e_s and token weights w_s. A memory that reads it beside the hidden state learns which
names were asked about, which the last state of a small decoder has nearly forgotten. It needs no
attention and no positions: one multiply-add of D numbers per token and half-life.

With the token ids that begin a question in a chat, s starts at the last of them: names of earlier
questions are left out. There, one more vector may be what was `asked`: the mean over the sentences
that end with a question mark, each decayed from its own end, so that of two names in a question the
one that is asked about stands alone, or, in one sentence, the last one stands out. Without such a
sentence it is that over the last one that has ended, and until one has, the mean of the longest
half-life. A question is over at the control token behind its words, so nothing of an answer counts
as asked.

Sums run token by token in float32, so a text that is read in pieces gives the same bits. n vectors,
m sums, P positions read before.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mlpmem.errors import MlpMemError
from mlpmem.fast.attention import GrowingLayer

MOST_LIVES, LONGEST = 4, 1e6  # half-lives, and tokens of one
MOST_TURN = 2  # token ids that begin a question
SENTENCE_LIFE = 8.0  # half-life in tokens within a sentence that asks
TINY = 1e-30  # in place of no weight at all: the mean of no words is 0
ENDED, ASKED, CLOSED = 1.0, 2.0, 3.0  # what a token ends: a sentence, one that asks, a question
QUESTION_MARKS, FULL_STOPS = frozenset("?？؟"), frozenset(".!。！…")
CLOSING = " \"'”’»)]"  # may follow a full stop in a token


def check_half_lives(half_lives: Sequence[float], where: str) -> None:
    """Raise MlpMemError unless half-lives are distinct positive numbers of tokens."""
    good = all(
        isinstance(x, int | float) and not isinstance(x, bool) and 0 < x <= LONGEST
        for x in half_lives
    )
    if not good or len(half_lives) > MOST_LIVES or len(set(half_lives)) < len(half_lives):
        raise MlpMemError(
            f"{where}: context must be up to {MOST_LIVES} different half-lives in tokens, above 0 "
            f"and at most {LONGEST:g}; got {list(half_lives)!r}. Correct it, or leave it empty"
        )


def check_turn(turn: Sequence[int], vocab_size: int, where: str) -> None:
    """Raise MlpMemError unless turn is at most two token ids."""
    good = all(isinstance(x, int) and not isinstance(x, bool) and 0 <= x < vocab_size for x in turn)
    if not good or len(turn) > MOST_TURN:
        raise MlpMemError(
            f"{where}: turn must be up to {MOST_TURN} token ids below {vocab_size}; got "
            f"{list(turn)!r}. Correct it, or leave it empty"
        )


class ContextLayer(GrowingLayer):
    """Running sums in a decoder's cache, as keys (B, m, P, D + 2); its values are empty.

    The last numbers of a sum are that of the weights, and a flag: of the first sum, 1 at the first
    of two tokens that begin a question; of a sentence, 1 where the question is over. The layer
    stands behind the decoder's own, so a crop, a choice of rows or a beam's reordering of the cache
    is one of the sums too.
    """


@dataclass(frozen=True, eq=False)
class Context:
    """What of a text's words a memory reads."""

    half_lives: tuple[float, ...]
    weights: Tensor  # (V,) float32 of token ids, 0 for those that are no words
    turn: tuple[int, ...] = ()  # the one or two token ids that begin a question in a chat
    ends: Tensor | None = None  # (V,) of what tokens end, 0 for nothing; None: without `asked`

    @property
    def vectors(self) -> int:
        """Return n."""
        return len(self.half_lives) + (self.ends is not None)

    def read(
        self, embeddings: Tensor, ids: Tensor, mask: Tensor | None, layer: ContextLayer | None
    ) -> Tensor:
        """Return context vectors (B, T, n D) float32 of ids (B, T) with embeddings (B, T, D).

        mask is 0 on padding (B, past + T), or says which tokens each may see (B, 1, T, T) bool: a
        token then continues the sums of the last other token that it sees. A layer holds the sums
        of what was read before, and takes the new ones.
        """
        weights = self.weights.to(ids.device)[ids]  # (B, T)
        parents = None
        if mask is not None and mask.dim() == 4:
            parents = _parents(mask[:, 0])
        elif mask is not None:
            weights = weights * mask[:, -ids.shape[1] :]
        sums = self._sums(embeddings.float(), ids, weights, parents, layer)  # (B, m, T, D + 2)
        if layer is not None:
            layer.update(sums, sums[..., :0])
        means = sums[..., :-2] / sums[..., -2:-1].clamp_min(TINY)
        if self.ends is not None:
            said = sums[..., -2:-1] > 0
            longest = means[:, self.half_lives.index(max(self.half_lives))]
            last = torch.where(said[:, -2], means[:, -2], longest)
            asked = torch.where(said[:, -1], means[:, -1], last)
            means = torch.cat([means[:, : len(self.half_lives)], asked[:, None]], 1)
        return means.transpose(1, 2).flatten(2)

    @cached_property
    def decay(self) -> Tensor:
        """Return what a step leaves of each sum, (m, 1); nothing is lost of one that has ended."""
        asked = () if self.ends is None else (SENTENCE_LIFE, math.inf, math.inf)
        return 2.0 ** (-1 / torch.tensor((*self.half_lives, *asked)))[:, None]

    def _sums(
        self,
        embeddings: Tensor,
        ids: Tensor,
        weights: Tensor,
        parents: Tensor | None,
        layer: ContextLayer | None,
    ) -> Tensor:
        """Return running sums (B, m, T, D + 2) of weighted embeddings and of the weights.

        With `ends`, the last three sums are of the sentence at hand, of the one that ended last,
        and of those that asked.
        """
        batch, length, size = embeddings.shape
        lives = len(self.decay)
        added = embeddings.new_zeros(batch, length, size + 2)
        past = layer is not None and layer.is_initialized and layer.get_seq_length()
        now = layer.keys[:, :, -1] if past else added.new_zeros(batch, lives, size + 2)
        opens = ids == self.turn[0] if len(self.turn) == MOST_TURN else torch.zeros_like(ids).bool()
        begins = self._begins(ids, opens, parents, now[:, 0, -1] == 1)
        left = self.decay.to(ids.device) * ~begins.T[..., None, None]  # (T, B, m, 1)
        if self.ends is not None:
            weights = weights * ~begins  # what begins a question is no word of it
        torch.mul(embeddings, weights[..., None], out=added[..., :-2])
        added[..., -2] = weights
        sums = added.new_zeros(length + 1, batch, lives, size + 2)  # the last row stays 0
        rows = torch.arange(batch, device=weights.device)
        ends = None if self.ends is None else self.ends.to(ids.device)[ids]
        for t in range(length):
            before = now if parents is None else sums[parents[:, t], rows]
            now = torch.addcmul(added[:, t, None], before, left[t], out=sums[t])
            if ends is not None:
                _end(now, before[:, -2:] * left[t][:, -2:], ends[:, t, None])
        sums[:length, :, 0, -1] = opens.T
        return sums[:length].permute(1, 2, 0, 3)

    def _begins(self, ids: Tensor, opens: Tensor, parents: Tensor | None, opened: Tensor) -> Tensor:
        """Return which tokens (B, T) begin a question, so that nothing before them is left.

        opens are the first of two ids of `turn`; opened says whether the last token before was one.
        """
        if not self.turn:
            return torch.zeros_like(ids).bool()
        begins = ids == self.turn[-1]
        if len(self.turn) == MOST_TURN and parents is not None:
            begins &= (parents >= 0) & opens.gather(1, parents.clamp_min(0))
        elif len(self.turn) == MOST_TURN:
            begins &= torch.cat([opened[:, None], opens[:, :-1]], 1)
        return begins


def _end(sums: Tensor, before: Tensor, ends: Tensor) -> None:
    """Set the last three sums (B, m, D + 2) after a token that ends (B, 1) a sentence or nothing.

    before (B, 2, D + 2) are those of the sentence that ended last, and of those that asked.
    """
    sentence, over = sums[:, -3, :-1], sums[:, -3, -1:] > 0
    ended = (ends > 0) & (sentence[:, -1:] > 0) & ~over  # one without a word is none
    sums[:, -1, :-1] = before[:, 1, :-1] + sentence * (ended & (ends == ASKED))
    sums[:, -2, :-1] = torch.where(ended, sentence, before[:, 0, :-1])
    sums[:, -3, -1:] = (over | ((ends == CLOSED) & (sums[:, -2, -2:-1] > 0))).to(sums)
    sentence *= ends == 0


def _parents(sees: Tensor) -> Tensor:
    """Return the last other token that each sees, (B, T), or -1; sees is (B, T, T) bool."""
    length = sees.shape[-1]
    places = torch.arange(length, device=sees.device)
    before = sees & (places[None, :] < places[:, None])
    return torch.where(before, places, -1).amax(-1)


def take_layer(cache: Any) -> ContextLayer | None:
    """Remove the context layer from a cache and return it, or a new one."""
    if cache is None:
        return None
    if cache.layers and isinstance(cache.layers[-1], ContextLayer):
        return cache.layers.pop()
    return ContextLayer()


def word_weights(special_ids: Sequence[int] | frozenset[int], vocab_size: int) -> Tensor:
    """Return weights (V,): 1 for words, 0 for control tokens."""
    weights = torch.ones(vocab_size)
    weights[[i for i in special_ids if i < vocab_size]] = 0.0  # a tokenizer may have more
    return weights


def sentence_ends(pieces: Sequence[str], special_ids: Collection[int] = ()) -> Tensor:
    """Return what tokens with these texts end, (V,): CLOSED, ASKED, ENDED, or 0 for nothing.

    A control token ends a question. A full stop inside a name ("St. Louis") ends a sentence, too;
    nothing here knows better.
    """
    ends = [
        CLOSED if i in special_ids
        else ASKED if QUESTION_MARKS & set(piece)
        else ENDED if "\n" in piece or piece.rstrip(CLOSING)[-1:] in FULL_STOPS
        else 0.0
        for i, piece in enumerate(pieces)
    ]  # fmt: skip
    return torch.tensor(ends)

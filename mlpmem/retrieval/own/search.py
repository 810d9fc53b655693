"""The nearest entries of a store of sentences, by state, by shared words and by order.

    score = - A d^2 + B share + C min(followed, 4)   in nats

d^2 is the mean squared difference of the states, each number in units of its deviation: in raw
states a few numbers of great variance decide alone. `share` is that of the words read which the
entry's sentence has (`words`), and `followed` how many of the last tokens read stand before the
entry too, so that a sentence that was begun goes on. The kNN weights are exp(score), normalised.
A passage's last entry is found only where it follows: what was not begun does not end.

N entries, D numbers of a state, U sentences, R rows.
"""

from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlpmem.retrieval.documents import Documents
from mlpmem.retrieval.own.words import Words
from mlpmem.retrieval.retriever import Neighbours

STATE, SHARED, FOLLOWED = 20.0, 10.0, 1.5  # A, B and C
TOKENS = 4  # of what was read are followed, at most
MOST = SHARED + FOLLOWED * TOKENS  # of a score: distances are MOST - score, so from 0
NEAR = ("share", "followed", "relative")  # see Found.near
BLOCK = 2**24  # numbers of scores at once
SAMPLE = 256  # entries whose usual distance is measured


class Found(NamedTuple):
    """What a search found."""

    neighbours: Neighbours  # distances are nats below the greatest score
    # (R, 3): the greatest share of a sentence, tokens that the nearest entry follows, and the
    # nearest state's distance relative to what is usual between sentences
    near: Tensor


class TextSearch:
    """Finds entries of sentences; `read` is what each row has read."""

    temperature = 1.0  # of its distances, which are nats

    def __init__(
        self,
        keys: np.ndarray,
        positions: np.ndarray,
        documents: Documents,
        words: Words,
        parts: Sequence[np.ndarray],
        units: np.ndarray,
        reference: Tensor,
    ) -> None:
        """Measure the deviations of keys (N, D) and of reference states (M, D).

        parts are the token ids of every sentence, and units (N,) the sentences of the entries.
        """
        self.parts, self._without = parts, None
        self._keys, self._words = torch.from_numpy(np.asarray(keys)), words
        self._units = torch.from_numpy(units)
        self._before = torch.from_numpy(_before(positions, documents))
        after = documents.offsets[documents.passage_at(positions) + 1]
        self._last = torch.from_numpy(positions + 1 == after)
        states = torch.cat([reference.float(), self._keys[: 4 * len(reference)].float()])
        self._weights = 1 / states.std(0).clamp_min(1e-3).square() / states.shape[1]  # (D,)
        self._squares = self._weighted_squares()
        self.usual = self._usual()

    def _weighted_squares(self) -> Tensor:
        """Return sum_j w_j k_j^2 of every key, (N,)."""
        parts = [(k.float().square() @ self._weights) for k in self._keys.split(4096)]
        return torch.cat(parts)

    def _usual(self) -> float:
        """Return the median distance of a key to the nearest of another sentence, 1 without any."""
        at = torch.linspace(0, len(self._keys) - 1, min(SAMPLE, len(self._keys))).long()
        rows = max(1, BLOCK // max(1, len(self._keys)))
        nearest = torch.cat([self._nearest_other(part) for part in at.split(rows)])
        nearest = nearest[nearest.isfinite()]
        return max(float(nearest.median()), 1e-3) if len(nearest) else 1.0

    def _nearest_other(self, entries: Tensor) -> Tensor:
        """Return the distance of entries (E,) to the nearest of another sentence, (E,)."""
        others = self._units[entries, None] != self._units
        distances = self._distances(self._keys[entries].float())
        return distances.masked_fill_(~others, torch.inf).amin(1)

    def _distances(self, queries: Tensor) -> Tensor:
        """Return the mean squared standardised differences (R, N) of queries (R, D)."""
        weighted = queries * self._weights
        products = torch.cat([weighted @ k.float().T for k in self._keys.split(65536)], 1)
        own = (queries * weighted).sum(1, keepdim=True)
        return (own + self._squares - 2 * products).clamp_min_(0)

    def leaving(self, unit: int) -> "TextSearch":
        """Return this search as it were without a sentence."""
        other = copy(self)
        other._without = unit
        return other

    @torch.inference_mode()
    def search(self, queries: Tensor, read: Sequence[Sequence[int]], k: int) -> Found:
        """Return the k best entries of queries (R, D)."""
        rows = max(1, BLOCK // max(1, len(self._keys)))
        queries = queries.float().cpu()
        parts = [
            self._search(queries[at : at + rows], read[at : at + rows], k)
            for at in range(0, len(queries), rows)
        ]
        indices, distances, near = (torch.cat(part) for part in zip(*parts, strict=True))
        return Found(Neighbours(indices, distances), near)

    def _search(
        self, queries: Tensor, read: Sequence[Sequence[int]], k: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        shares = torch.from_numpy(np.stack([self._words.shares(ids) for ids in read]))
        distances = self._distances(queries)
        followed = torch.stack([self._followed(ids) for ids in read])
        if self._without is not None:
            shares[:, self._without] = 0
            distances[:, self._units == self._without] = torch.inf
        scores = FOLLOWED * followed - STATE * distances + SHARED * shares[:, self._units]
        scores.masked_fill_(self._last & (followed == 0), -torch.inf)
        top = scores.topk(min(k, scores.shape[1]), dim=1)
        gone = top.values.isinf()
        indices = top.indices.masked_fill(gone, -1)
        first = followed.gather(1, top.indices[:, :1])[:, 0]
        relative = (distances.amin(1) / self.usual).clamp_max(100.0)
        near = torch.stack([shares.amax(1), first, relative], 1)
        return indices, (MOST - top.values).clamp_min(0), near

    def _followed(self, read: Sequence[int]) -> Tensor:
        """Return how many of the last tokens read stand before each entry, (N,) float32."""
        count, going = torch.zeros(len(self._keys)), None
        for column, token in zip(self._before, list(read)[: -TOKENS - 1 : -1], strict=False):
            same = column == int(token)
            going = same if going is None else going & same
            count += going
        return count


def _before(positions: np.ndarray, documents: Documents) -> np.ndarray:
    """Return the tokens before every entry in its passage, (TOKENS, N), the last first; or -1."""
    first = documents.offsets[documents.passage_at(positions)]
    columns = []
    for back in range(1, TOKENS + 1):
        at = positions - back
        tokens = documents.tokens[np.maximum(at, 0)].astype(np.int64)
        columns.append(np.where(at >= first, tokens, -1))
    return np.stack(columns)

"""Which words of what was read a sentence has: the share of their weight.

A question and the passage that answers it share words, and a question about something else shares
few. A word is a token in one case and without white space. Its weight is greater the rarer it is:
merges of a byte-pair tokenizer are listed by frequency, so a token's id is its rank, and by Zipf's
law the logarithm of the rank is its information. Within a store, a word that most sentences have
tells little about which of them is meant. Words of a chat's earlier turns weigh little, or a
question about something else would be answered from the passage that was asked for before.

V token ids, C words, U sentences.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

HALF_LIFE, REACH = 64, 256  # tokens: what was read so long ago weighs half, or nothing
EARLIER = 0.1  # the weight of a word before the last question of a chat
COMMON = 600  # ranks of words that say nothing: the, of, is
CONTROL = -2  # in place of a word
BEFORE, INHERITED = 8, 0.8  # sentences whose words a later one has too, and how much of each


class Vocabulary(NamedTuple):
    """The word of every token id."""

    word_of: np.ndarray  # (V,) int32, -1 for none, CONTROL for control tokens
    weights: np.ndarray  # (C,) float32

    @classmethod
    def of(cls, pieces: Sequence[str], special: Collection[int]) -> "Vocabulary":
        """Return the vocabulary of a decoder's token texts."""
        numbers: dict[str, int] = {}
        word_of = np.full(len(pieces), -1, np.int32)
        weights: list[float] = []
        common = math.log(min(COMMON, max(2, len(pieces) // 80)))
        for i, piece in enumerate(pieces):
            word = piece.strip().lower()
            if i in special:
                word_of[i] = CONTROL
            if i in special or not any(map(str.isalnum, word)):
                continue
            if word not in numbers:  # the first form is the most frequent
                numbers[word] = len(weights)
                weights.append(max(0.0, math.log1p(i) - common))
            word_of[i] = numbers[word]
        return cls(word_of, np.array(weights, np.float32))


_vocabularies: WeakKeyDictionary = WeakKeyDictionary()  # by decoder


def vocabulary_of(decoder: Any) -> Vocabulary:
    """Return a decoder's vocabulary, computed once."""
    found = _vocabularies.get(decoder)
    if found is None:
        found = Vocabulary.of(decoder.pieces, decoder.special_ids)
        _vocabularies[decoder] = found  # another thread would store an equal one
    return found


class Words:
    """The words of every sentence, and the weight of each word in this store."""

    def __init__(self, vocabulary: Vocabulary, parts: Sequence[np.ndarray], topics: Sequence[int],
                 ignored: Collection[int] = ()) -> None:  # fmt: skip
        """Read sentences' token ids; topics are the documents they are of, ascending.

        `ignored` are ids that every chat has, such as those of a system message.
        """
        self._vocabulary = vocabulary
        self._ignored = {int(vocabulary.word_of[i]) for i in ignored} | {-1, CONTROL}
        self.count = len(parts)
        own = [self._distinct(ids) for ids in parts]
        found: dict[int, dict[int, float]] = {}
        for u, words in enumerate(own):
            for word in words:
                found.setdefault(word, {})[u] = 1.0
        spread = {word: len(units) for word, units in found.items()}
        for u in range(self.count):
            for v in range(max(0, u - BEFORE), u):
                if topics[v] == topics[u]:
                    for word in own[v]:
                        found[word].setdefault(u, INHERITED)
        self._has = {
            word: (np.fromiter(units, np.int64), np.fromiter(units.values(), np.float32))
            for word, units in found.items()
        }
        most = math.log1p(self.count)
        self._rarity = {w: math.log1p(self.count / n) / most for w, n in spread.items()}

    def _distinct(self, ids: np.ndarray) -> set[int]:
        return set(self._vocabulary.word_of[ids].tolist()) - self._ignored

    def shares(self, read: Sequence[int]) -> np.ndarray:
        """Return the share (U,), 0 .. 1, of the weight of words read that each sentence has.

        A word weighs by how rare it is and how lately it was read. Without any word all are 0.
        """
        late: dict[int, float] = {}
        words = self._vocabulary.word_of[np.asarray(read[-REACH:], np.int64)].tolist()
        begin = self._last_question(words)
        for age, word in enumerate(reversed(words)):
            if word not in self._ignored and word not in late:
                late[word] = 2 ** (-age / HALF_LIFE) * (EARLIER if age >= len(words) - begin else 1)
        shares, total = np.zeros(self.count, np.float32), 0.0
        for word, fresh in late.items():
            weight = fresh * float(self._vocabulary.weights[word]) * self._rarity.get(word, 1.0)
            total += weight
            if word in self._has:
                units, strengths = self._has[word]
                shares[units] += weight * strengths
        return shares / max(total, 1e-9)

    def _last_question(self, words: Sequence[int]) -> int:
        """Return the index where a chat's last question begins, 0 for a text without turns.

        Control tokens stand between turns; the answer that was begun may have no words yet.
        """
        turns = [0, *(i + 1 for i, word in enumerate(words) if word == CONTROL)]
        spoken = [
            begin
            for begin, end in zip(turns, [*turns[1:], len(words)], strict=True)
            if not self._ignored.issuperset(words[begin:end])
        ]
        answered = bool(spoken) and spoken[-1] == turns[-1]
        return spoken[-2] if answered and len(spoken) > 1 else spoken[-1] if spoken else 0


def prefixes(ids: Sequence[int], first: int, count: int) -> list[Sequence[int]]:
    """Return the latest REACH ids read before each of `count` tokens from index `first`."""
    return [ids[max(0, at - REACH) : at] for at in range(first, first + count)]

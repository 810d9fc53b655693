"""What a decoder has read before: a prompt that begins with it is read from there.

A chat's next prompt begins with the one before and its answer, so only what is new is computed.
Whoever owns a PrefixCache decides whose prompts share it: how soon an answer begins tells what was
read before.
"""

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from mlpmem.fast.attention import GrowingLayer
from mlpmem.model.decoder import Decoder

TEXTS = 4  # one for each column of a chat, and one more
BYTES = 256 * 2**20


@dataclass(frozen=True)
class Gaps:
    """A router's evidence of a text: the gaps of its tokens from `first` on, by one memory."""

    memory: Any  # a weak reference
    temperature: float
    first: int
    values: list[float]

    def of(self, memory: Any, temperature: float) -> bool:
        """Return whether this memory has these gaps."""
        same = memory is not None and self.memory() is memory
        return same and self.temperature == temperature


class Known(NamedTuple):
    """What a run need not compute of its prompt."""

    count: int = 0  # tokens
    cache: Any = None  # the decoder's, after them
    gaps: list[float] | None = None  # of the first tokens of a router's evidence; None: of none


@dataclass(frozen=True)
class _Read:
    """A text that was read, as the decoder's cache after it; B = 1."""

    decoder: Any  # a weak reference
    context: Any  # whose running sums the cache has, too
    ids: list[int]
    cache: Any
    gaps: Gaps | None

    def known(self, decoder: Decoder, asked: "Asked") -> tuple[int, list[float] | None]:
        """Return how many tokens of a prompt need not be computed, and their gaps."""
        if self.decoder() is not decoder or self.context is not decoder.context:
            return 0, None
        alike, begin = common(self.ids, asked.ids), asked.size - asked.reach
        if not asked.reach:
            return min(alike, asked.size - 1), None
        gaps = self.gaps
        if gaps is not None and gaps.of(asked.memory, asked.temperature) and gaps.first <= begin:
            # the state before the first token without a gap is computed
            end = min(gaps.first + len(gaps.values), alike)
            count = min(alike, asked.size - 1, end - 1)
            if count >= begin:
                return count, gaps.values[begin - gaps.first : count + 1 - gaps.first]
        return min(alike, begin - 1), None


class Asked(NamedTuple):
    """What a run needs of its prompt: the logits after its `size` tokens, and its evidence."""

    ids: Sequence[int]  # with tokens that are forced behind the prompt
    size: int  # of the prompt
    reach: int  # of its last tokens that are evidence
    memory: Any
    temperature: float


class PrefixCache:
    """The latest texts that decoders have read for one reader, for the parameter `prefix`.

    A run takes out the text that shares most tokens with its prompt, and puts back what it has
    read. So runs at the same time never share one. Beyond TEXTS texts or `most` bytes, the oldest
    ones are dropped.
    """

    def __init__(self, most: int = BYTES) -> None:
        """Start with no text."""
        self.most = most
        self._texts: list[_Read] = []  # the newest last
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self._texts)

    @property
    def bytes(self) -> int:
        """Return the size of keys and values."""
        return sum(bytes_of(text.cache) for text in self._texts)

    def take(self, decoder: Decoder, asked: Asked) -> Known:
        """Return what is known of a prompt, and forget the text that it comes from."""
        with self._lock:
            known = [text.known(decoder, asked) for text in self._texts]
            count, gaps = max(known, key=lambda one: one[0], default=(0, None))
            if count < 1:
                return Known()
            cache = self._texts.pop(known.index((count, gaps))).cache
        cache.crop(count - cache.get_seq_length())
        return Known(count, cache, gaps)

    def put(
        self, decoder: Decoder, ids: Sequence[int], cache: Any, row: int, gaps: Gaps | None
    ) -> None:
        """Keep a row of a cache, which has read ids; nothing else may use the cache from now on.

        A cache that forgets old tokens (sliding windows) is not kept.
        """
        if not all(isinstance(layer, GrowingLayer) for layer in cache.layers):
            return
        if len(cache.layers[0].keys) > 1:
            cache.batch_select_indices(torch.tensor([row], device=cache.layers[0].keys.device))
        text = _Read(weakref.ref(decoder), decoder.context, list(ids), cache, gaps)
        with self._lock:
            self._texts = [*self._texts, text][-TEXTS:]
            while self._texts and self.bytes > self.most:
                self._texts.pop(0)

    def clear(self) -> None:
        """Drop every text."""
        with self._lock:
            self._texts.clear()


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two texts begin with alike."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def bytes_of(cache: Any) -> int:
    """Return the size of a cache's keys and values, with the spare tokens of their buffers."""
    tensors = (each for layer in cache.layers for each in (layer.keys, layer.values))
    return sum(each.untyped_storage().nbytes() for each in tensors)

"""What a decoder has read before: a prompt that begins with it is read from there.

A chat's next prompt begins with the one before and its answer, so only what is new is computed.
Whoever owns a PrefixCache decides whose prompts share it: how soon an answer begins tells what was
read before.
"""

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mlpmem.fast.attention import GrowingLayer
from mlpmem.model.decoder import Decoder

TEXTS = 4  # one for each column of a chat, and one more
BYTES = 256 * 2**20


@dataclass(frozen=True)
class _Read:
    """A text that was read, as the decoder's cache after it; B = 1."""

    decoder: Any  # a weak reference
    context: Any  # whose running sums the cache has, too
    ids: list[int]
    cache: Any

    def fits(self, decoder: Decoder) -> bool:
        """Return whether the decoder would have this cache, too."""
        return self.decoder() is decoder and self.context is decoder.context


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

    def take(self, decoder: Decoder, ids: Sequence[int], most: int) -> tuple[int, Any]:
        """Return (N, the cache after the first N ids), N at most `most`; (0, None) for no text."""
        with self._lock:
            shared = [
                min(most, common(text.ids, ids)) if text.fits(decoder) else 0
                for text in self._texts
            ]
            count = max(shared, default=0)
            if count < 1:
                return 0, None
            cache = self._texts.pop(shared.index(count)).cache
        cache.crop(count - cache.get_seq_length())
        return count, cache

    def put(self, decoder: Decoder, ids: Sequence[int], cache: Any, row: int) -> None:
        """Keep a row of a cache, which has read ids; nothing else may use the cache from now on.

        A cache that forgets old tokens (sliding windows) is not kept.
        """
        if not all(isinstance(layer, GrowingLayer) for layer in cache.layers):
            return
        if len(cache.layers[0].keys) > 1:
            cache.batch_select_indices(torch.tensor([row], device=cache.layers[0].keys.device))
        text = _Read(weakref.ref(decoder), decoder.context, list(ids), cache)
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
    """Return the size of a cache's keys and values."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)

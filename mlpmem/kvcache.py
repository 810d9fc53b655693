"""A decoder's cache of keys and values that grows in place: a step copies its own token alone.

transformers' own layers join old and new into new tensors, which copies everything at every token.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 64  # tokens of room at least; half of what a layer holds, where that is more


class GrowingLayer(DynamicLayer):
    """A layer whose keys and values (B, heads, T, D) are the head of longer buffers.

    Whoever sets others in their place (a crop, a choice of rows) gets buffers of their own.
    """

    def __init__(self, **options: Any) -> None:
        """Begin empty."""
        super().__init__(**options)
        self._buffers: list[Tensor] = []
        self._views: list[Tensor] = []  # what the buffers are known to hold

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values with new ones (B, heads, N, D) at their end."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past, added = self.get_seq_length(), (key_states, value_states)
        size = past + key_states.shape[-2]
        if not self._has_room(size):
            self._make_room(past, size, added)
        for buffer, new in zip(self._buffers, added, strict=True):
            buffer[:, :, past:size] = new
        self._views = [buffer[:, :, :size] for buffer in self._buffers]
        self.keys, self.values = self._views
        return self.keys, self.values

    def _has_room(self, size: int) -> bool:
        """Return whether the buffers hold what the layer holds, with room for size tokens."""
        held = [self.keys, self.values]
        return (
            bool(self._buffers)
            and all(one is other for one, other in zip(held, self._views, strict=True))
            and size <= self._buffers[0].shape[2]
        )

    def _make_room(self, past: int, size: int, added: tuple[Tensor, Tensor]) -> None:
        """Make buffers for size tokens and more, with what the layer holds at their head."""
        room = size + max(ROOM, size // 2)
        with torch.inference_mode(False):  # whoever goes on with the cache need not infer
            self._buffers = [new.new_empty(*new.shape[:2], room, new.shape[3]) for new in added]
        if past:
            for buffer, held in zip(self._buffers, (self.keys, self.values), strict=True):
                buffer[:, :, :past] = held


def growing_cache(config: Any) -> DynamicCache:
    """Return an empty cache for a transformers config; layers of a window stay as they are."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(x) is DynamicLayer else x for x in cache.layers]
    return cache

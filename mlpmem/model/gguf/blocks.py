"""The kinds of blocks in GGUF files, decoded to torch tensors.

A quantised row is a sequence of groups. The integers q of a group share a scale and, in some kinds,
an offset: weight = scale * q + offset. 4-bit products use these three without conversion.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Groups(NamedTuple):
    """Rows of a quantised weight; a group has C / G numbers."""

    q: Tensor  # (R, C) int8
    scale: Tensor  # (R, G) float32
    offset: Tensor | None  # (R, G) float32, None for 0

    def dense(self) -> Tensor:
        """Return the weight (R, C) in float32."""
        rows, groups = self.scale.shape
        weight = self.q.view(rows, groups, -1).float() * self.scale[..., None]
        if self.offset is not None:
            weight += self.offset[..., None]
        return weight.view(rows, -1)


class Kind(NamedTuple):
    """One of ggml's types; a block has `block` numbers in `bytes` bytes."""

    name: str
    block: int
    bytes: int
    dtype: torch.dtype | None = None  # of plain numbers
    groups: Callable[[Tensor], Groups] | None = None  # of blocks (R, N, bytes) uint8
    bits: int = 0  # of a quantised number


def dense(raw: Tensor, kind: Kind) -> Tensor:
    """Return the numbers (R, C) float32 in rows of raw bytes (R, row bytes)."""
    if kind.dtype is not None:
        return raw.view(kind.dtype).float()
    return groups(raw, kind).dense()


def groups(raw: Tensor, kind: Kind) -> Groups:
    """Return the groups in rows of raw bytes (R, row bytes) of a quantised kind."""
    return kind.groups(raw.view(len(raw), -1, kind.bytes))


def _half(blocks: Tensor, at: int) -> Tensor:
    """Return the float16 at byte `at` of every block as float32 (R, N)."""
    return blocks[..., at : at + 2].contiguous().view(torch.float16)[..., 0].float()


def _nibbles(data: Tensor) -> Tensor:
    """Return the low, then the high halves (..., 2 S) int8 of bytes (..., S)."""
    return torch.cat([data & 15, data >> 4], -1).to(torch.int8)


def _fifth(blocks: Tensor, at: int) -> Tensor:
    """Return the fifth bits (R, N, 32), as 16 or 0, of 32 numbers per block, from four bytes."""
    bits = blocks[..., at : at + 4, None] >> torch.arange(8, dtype=torch.uint8)
    return ((bits & 1) << 4).flatten(2).to(torch.int8)


def _q4_0(blocks: Tensor) -> Groups:
    return Groups((_nibbles(blocks[..., 2:]) - 8).flatten(1), _half(blocks, 0), None)


def _q4_1(blocks: Tensor) -> Groups:
    return Groups(_nibbles(blocks[..., 4:]).flatten(1), _half(blocks, 0), _half(blocks, 2))


def _q5_0(blocks: Tensor) -> Groups:
    q = (_nibbles(blocks[..., 6:]) | _fifth(blocks, 2)) - 16
    return Groups(q.flatten(1), _half(blocks, 0), None)


def _q5_1(blocks: Tensor) -> Groups:
    q = _nibbles(blocks[..., 8:]) | _fifth(blocks, 4)
    return Groups(q.flatten(1), _half(blocks, 0), _half(blocks, 2))


def _q8_0(blocks: Tensor) -> Groups:
    return Groups(blocks[..., 2:].contiguous().view(torch.int8).flatten(1), _half(blocks, 0), None)


def _k_scales(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return scales and offsets (R, 8 N) from the 6-bit factors in bytes 4 to 15 of blocks."""
    low, high, rest = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    factors = torch.cat([low & 63, (rest & 15) | ((low >> 2) & 48)], -1).float()
    mins = torch.cat([high & 63, (rest >> 4) | ((high >> 2) & 48)], -1).float()
    scale = _half(blocks, 0)[..., None] * factors
    return scale.flatten(1), -(_half(blocks, 2)[..., None] * mins).flatten(1)


def _q4_k(blocks: Tensor) -> Groups:
    scale, offset = _k_scales(blocks)
    q = _nibbles(blocks[..., 16:].unflatten(-1, (4, 32)))
    return Groups(q.flatten(1), scale, offset)


def _q5_k(blocks: Tensor) -> Groups:
    scale, offset = _k_scales(blocks)
    low = _nibbles(blocks[..., 48:].unflatten(-1, (4, 32))).unflatten(-1, (2, 32)).flatten(2, 3)
    bits = blocks[..., None, 16:48] >> torch.arange(8, dtype=torch.uint8)[:, None]
    return Groups((low | ((bits & 1) << 4).to(torch.int8)).flatten(1), scale, offset)


def _q6_k(blocks: Tensor) -> Groups:
    low = _nibbles(blocks[..., :128].unflatten(-1, (2, 64))).unflatten(-1, (4, 32))
    bits = blocks[..., 128:192].unflatten(-1, (2, 1, 32))
    bits = bits >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    q = (low | ((bits & 3) << 4).to(torch.int8)) - 32
    factors = blocks[..., 192:208].contiguous().view(torch.int8).float()
    return Groups(q.flatten(1), (_half(blocks, 208)[..., None] * factors).flatten(1), None)


KINDS = {  # by ggml's number
    0: Kind("F32", 1, 4, torch.float32),
    1: Kind("F16", 1, 2, torch.float16),
    2: Kind("Q4_0", 32, 18, None, _q4_0, 4),
    3: Kind("Q4_1", 32, 20, None, _q4_1, 4),
    6: Kind("Q5_0", 32, 22, None, _q5_0, 5),
    7: Kind("Q5_1", 32, 24, None, _q5_1, 5),
    8: Kind("Q8_0", 32, 34, None, _q8_0, 8),
    12: Kind("Q4_K", 256, 144, None, _q4_k, 4),
    13: Kind("Q5_K", 256, 176, None, _q5_k, 5),
    14: Kind("Q6_K", 256, 210, None, _q6_k, 6),
    30: Kind("BF16", 1, 2, torch.bfloat16),
}

"""The phases of a compiled step, and how each is cut into chunks that threads take.

The tables here are those that `kernels/step.py` reads; step.py adds weights and arrays.
"""

from typing import Any

import numpy as np
from torch import Tensor

from mlpmem.fast.kernels.prompt import TOKENS
from mlpmem.fast.kernels.step import (
    ATTEND,
    DOWN,
    GATE_UP,
    HEAD,
    OUT,
    OWN_HEAD,
    OWN_SCORE,
    QKV,
    RECALL_DOOR,
    RECALL_DOWN,
    RECALL_GATE_UP,
    RECALL_HEAD,
    RECALL_SCORE,
    RECALL_TOP,
    SCORE,
    TOP,
)
from mlpmem.fast.llama_layers import Norm, Recall
from mlpmem.fast.parts import Part

SPAN = 256  # positions of a chunk of one token's attention, at most
EMPTY = TOP, RECALL_TOP  # kinds of phase without a product
RECALLS = RECALL_DOOR, RECALL_GATE_UP, RECALL_DOWN, RECALL_TOP  # a memory's, before its head
HEADS, SCORES = (HEAD, OWN_HEAD, RECALL_HEAD), (SCORE, OWN_SCORE, RECALL_SCORE)


class Phases:
    """The phases of a step of layers, of a memory if there is one, and of heads."""

    def __init__(
        self, layers: int, kv_heads: int, recall: Recall | None, products: list[list[Part]]
    ) -> None:
        """Cut products, in the order of `Step.of`."""
        self.kv_heads = kv_heads
        self.tied = recall is not None and _is_same(*(product[0] for product in products[-2:]))
        heads = [HEAD] if self.tied else [OWN_HEAD] + [RECALL_HEAD] * (recall is not None)
        self.kinds, rest = _kinds(layers, recall), iter(products)
        rows: list[list[int]] = []
        self.chunks = [
            None if kind == ATTEND else [] if kind in EMPTY else _chunks(next(rest), rows)
            for kind, _ in self.kinds
        ]
        of_heads = [_chunks(next(rest), rows) for _ in heads]
        self.kinds += [(kind, 0) for kind in (*(SCORE + head - HEAD for head in heads), *heads)]
        self.chunks += of_heads * 2
        self.head_chunks = max(map(len, of_heads))
        self.parts = np.array(rows, np.int64)
        self._cuts: dict[tuple[int | bool, ...], tuple[np.ndarray, ...]] = {}

    def cut(
        self, batch: int, tokens: int, end: int, wanted: tuple[int, int, bool]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return where each phase's chunks begin, all chunks (part, begin, end), and the phases.

        Attention of one token is cut into spans of positions, and then into key heads; of more,
        into sequences, key heads, and some tokens. wanted has the numbers of tokens with logits and
        of those with a memory's states, and whether the tokens that follow are scored; what is not
        wanted is left out.
        """
        spans, (keep, kept, scored) = batch * -(-tokens // TOKENS), wanted
        if tokens == 1:
            spans = spans_of(end)
        key = spans, tokens == 1, keep > 0, kept > 0, scored
        if key in self._cuts:
            return self._cuts[key]
        total = spans * self.kv_heads
        size = self.kv_heads if spans == 1 and tokens == 1 else 1
        attend = [(0, i, i + size) for i in range(0, total, size)]
        left_out = *HEADS * (not keep), *RECALLS * (not kept), *SCORES * (not scored)
        first, chunks, kinds = [0], [], []
        for phase, kind in zip(self.chunks, self.kinds, strict=True):
            if kind[0] not in left_out:
                chunks += attend if phase is None else phase
                first.append(len(chunks))
                kinds.append(kind)
        arrays = np.array(first), np.array(chunks), np.array(kinds)
        self._cuts[key] = result = tuple(array.astype(np.int64) for array in arrays)
        return result  # another thread would store an equal result


def spans_of(end: int) -> int:
    """Return the number of spans of positions that one token's attention is cut into."""
    return -(-end // SPAN)


def _kinds(layers: int, recall: Recall | None) -> list[tuple[int, int]]:
    """Return (kind, layer) of every phase before the heads; a memory's layers follow."""
    phases = [(kind, i) for i in range(layers) for kind in (QKV, ATTEND, OUT, GATE_UP, DOWN)]
    phases.append((TOP, layers))
    if recall is None:
        return phases
    first = layers + 1
    if recall.door is not None:
        phases.append((RECALL_DOOR, first))
        first += 1
    last = first + len(recall.blocks)
    phases += [(kind, i) for i in range(first, last) for kind in (RECALL_GATE_UP, RECALL_DOWN)]
    return [*phases, (RECALL_TOP, last)]


def _chunks(product: list[Part], rows: list[list[int]]) -> list[tuple[int, int, int]]:
    """Return a product's chunks (part, begin, end), and add its parts to rows."""
    chunks, column = [], 0
    for part in product:
        ends = range(0, part.outputs, part.chunk())
        chunks += [(len(rows), i, min(part.outputs, i + part.chunk())) for i in ends]
        rows.append(part.row(column))
        column += part.outputs
    return chunks


def outputs_of(product: list[Part]) -> int:
    """Return the number of a product's outputs."""
    return sum(part.outputs for part in product)


def _is_same(one: Part, other: Part) -> bool:
    """Return whether two parts are one weight."""
    return one.module is other.module or (one.source == other.source and other.source != (0, 0))


def norms_of(llama: Any, recall: Recall | None) -> tuple[np.ndarray, list[Tensor]]:
    """Return the addresses of all norms (layers + 1, 6), 0 for none, and their weights.

    A memory's door, the norms of its blocks and its last norm follow.
    """
    weights: list[Tensor] = []

    def address_of(weight: Tensor) -> int:
        weights.append(weight.detach().float().contiguous())
        return weights[-1].data_ptr()

    def address(norm: Norm | None) -> int:
        return 0 if norm is None else address_of(norm.module.weight)

    rows = []
    for layer in llama.layers:
        heads = layer.head_norms or (None, None)
        norms = layer.norm, layer.after, layer.ffn_norm, layer.ffn_after, *heads
        rows.append([address(norm) for norm in norms])
    rows.append([address(llama.norm)])
    if recall is not None:
        door = recall.door
        rows += [] if door is None else [[address_of(door.mean), address_of(door.scale)]]
        rows += [[address(norm)] for norm in (*(b.norm for b in recall.blocks), recall.norm)]
    return np.array([row + [0] * (6 - len(row)) for row in rows], np.int64), weights

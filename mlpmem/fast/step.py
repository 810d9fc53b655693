"""One token per row, or a prompt, by compiled code only: its phases, chunks and arrays.

A `Step` holds the tables that `kernels/step.py` reads: the weights, their forms and their chunks.
Scratch arrays and the word that threads share belong to a call, which does not wait for a helper
that is busy.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlpmem.fast.few_rows import LANES, FewRows
from mlpmem.fast.kernels import step as kernels
from mlpmem.fast.kernels.intrinsics import GROUP
from mlpmem.fast.kernels.prompt import TOKENS
from mlpmem.fast.kernels.step import (
    ATTEND,
    DOWN,
    GATE_UP,
    HEAD,
    OUT,
    OWN_HEAD,
    QKV,
    RECALL_DOOR,
    RECALL_DOWN,
    RECALL_GATE_UP,
    RECALL_HEAD,
    RECALL_TOP,
    TOP,
)
from mlpmem.fast.llama_layers import Norm, Recall
from mlpmem.fast.parts import POOL, Part, part_of, source_of

SPAN = 256  # positions of a chunk of one token's attention, at most
PROMPT = 128  # tokens of a prompt that are computed together
SHORT = 32  # rows of a prompt
EMPTY = TOP, RECALL_TOP  # kinds of phase without a product


class Step:
    """The compiled step of one pass, or of one and a memory's blocks."""

    share = 0.0  # the memory's, of the step's seconds

    def __init__(self, llama: Any, recall: Recall | None, products: list[list[Part]]) -> None:
        """Lay out products: those of a LlamaPass's layers, of a memory's blocks, and of heads."""
        self.llama, self.recall, self.products = llama, recall, products
        plain = [part for product in products for part in product if part.source != (0, 0)]
        self.sources = [part.source for part in plain]
        self.modules = [part.module._parameters for part in plain]  # `module.weight` is slower
        self.heads, self.kv_heads, self.size = llama.layers[0].heads
        self.dtype = llama.embed.weight.dtype
        self.tied = recall is not None and _is_same(*(product[0] for product in products[-2:]))
        self.kinds = _kinds(len(llama.layers), recall)
        if recall is not None:
            self.kinds += [(HEAD, 0)] if self.tied else [(OWN_HEAD, 0), (RECALL_HEAD, 0)]
        else:
            self.kinds += [(OWN_HEAD, 0)]
        rest = iter(products)
        rows: list[list[int]] = []
        self.chunks = [
            None if kind == ATTEND else [] if kind in EMPTY else _chunks(next(rest), rows)
            for kind, _ in self.kinds
        ]
        self.parts = np.array(rows, np.int64)
        self._cuts: dict[int, tuple[np.ndarray, ...]] = {}
        self.widths = [_width(product) for product in products[:4]]
        self.recalled = 0 if recall is None else _width(products[-4])
        door = None if recall is None else recall.door
        self.entered = 0 if door is None else len(door.mean)  # K of the memory's door
        self.norms, self._norm_weights = _norms(llama, recall)
        layers = llama.layers
        self.windows = np.array([layer.window for layer in layers], np.int64)
        self.scores = np.array([(layer.scale, layer.cap) for layer in layers], np.float32)
        head = layers[0].head_norms
        eps = llama.norm.eps, head[0].eps if head else 0.0, recall.norm.eps if recall else 0.0
        self.factors = np.array([llama.norm.one, *eps], np.float32)
        self.sample = np.empty(0, np.float32 if self.dtype == torch.float32 else np.int16)

    @classmethod
    def of(cls, llama: Any, recall: Recall | None = None) -> "Step | None":
        """Return the step of a LlamaPass and a memory, None if it cannot read a weight's form."""
        groups: list[tuple[nn.Module, ...]] = [
            group
            for layer in llama.layers
            for group in (layer.qkv, (layer.out,), layer.gate_up, (layer.down,))
        ]
        if recall is not None:
            groups += [] if recall.door is None else [(recall.door.linear,)]
            groups += [group for b in recall.blocks for group in (b.gate_up, (b.down,))]
        groups += [(llama.head,)] if recall is None else [(llama.head,), (recall.head,)]
        parts = {module: part_of(module) for group in groups for module in group}
        same_heads = len({layer.heads for layer in llama.layers}) == 1
        if None in parts.values() or not same_heads:
            return None
        return cls(llama, recall, [[parts[module] for module in group] for group in groups])

    def is_valid(self) -> bool:
        """Return whether every weight is still the one that was read."""
        return [source_of(named["weight"]) for named in self.modules] == self.sources

    def run(
        self, ids: Tensor, cache: Any, threads: int, keep: int = 1, words: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return logits (B, keep, V), hidden states (B, keep, D), and a memory's logits or None.

        They are of the last tokens of ids (B, T) after those of the cache. A memory is computed for
        T = 1 only; one with a door reads the context vectors `words` (B, 1, n D).
        """
        llama, (batch, tokens), past = self.llama, ids.shape, cache.get_seq_length()
        x = llama.embed(ids).float().view(batch * tokens, -1)
        shape = batch, self.kv_heads, tokens, self.size
        buffers = [layer.extend(shape, self.dtype) for layer in cache.layers]
        caches = np.array(
            [(k.data_ptr(), v.data_ptr(), k.shape[2], self.kv_heads) for k, v in buffers], np.int64
        )
        end = past + tokens
        cos_sin = [llama.table(layer.rotation, end) for layer in llama.layers]
        tables = np.array([(c.data_ptr(), s.data_ptr(), c.shape[1]) for c, s in cos_sin], np.int64)
        first, chunks, kinds = self._cut(batch, tokens, end, keep)
        word, done = np.zeros(8, np.int64), np.zeros(len(first), np.int64)
        rows = batch * keep if self.recall is None else 2 * batch
        hidden, logits = torch.empty_like(x), torch.empty(rows, self.products[-1][0].outputs)
        room = self._room((batch, tokens, keep), x.shape[1], end, logits)
        if self.entered:
            assert words is not None, "this memory reads context vectors"
            room[1][3][:, x.shape[1] :] = words.reshape(batch, -1).numpy()
        word[0] = kernels.WAIT << kernels.SHIFT
        model = caches, self.windows, self.scores, self.norms, tables, self.factors
        model = *model, llama.gelu, llama.depth
        plan = first, chunks, self.parts, kinds
        arguments = word, done, plan, model, room, x.numpy(), hidden.numpy()
        shared = min(layer.shared for layer in cache.layers)
        arguments = *arguments, past, shared, self.sample
        helpers = [POOL.submit(kernels.step, False, *arguments) for _ in range(threads - 1)]
        kernels.step(True, *arguments)
        for helper in helpers:
            helper.cancel()
        recalled = None if self.recall is None else logits[batch:, None]
        hidden = hidden.view(batch, tokens, -1)[:, tokens - keep :].to(self.dtype)
        return logits[: batch * keep].view(batch, keep, logits.shape[1]), hidden, recalled

    def read(self, ids: Tensor, cache: Any, threads: int, keep: int) -> tuple[Tensor, Tensor]:
        """Return logits (B, keep, V) and hidden states (B, keep, D) of a prompt's last tokens.

        ids (B, T) are computed PROMPT tokens at a time, so that what lies between two products
        stays in the caches.
        """
        parts, size = [], ids.shape[1]
        for at in range(0, size, PROMPT):
            part = ids[:, at : at + PROMPT]
            wanted = min(part.shape[1], max(0, at + part.shape[1] - (size - keep)))
            parts.append(self.run(part, cache, threads, wanted)[:2])
        logits, hidden = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        return logits, hidden

    def reads(self, rows: int) -> bool:
        """Return whether a prompt of so many rows is computed here.

        Short ones are; of more rows, products with weights in other forms are faster elsewhere.
        """
        parts = [part for product in self.products[:-1] for part in product]
        return rows <= SHORT or all(
            isinstance(x.module, FewRows) and x.module.is_released for x in parts
        )

    def _cut(
        self, batch: int, tokens: int, end: int, keep: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return where each phase's chunks begin, all chunks (part, begin, end), and the phases.

        Attention of one token is cut into spans of positions, and then into key heads; of more,
        into sequences, key heads, and some tokens. Without outputs to keep, there are no heads.
        """
        spans = _spans(end) if tokens == 1 else batch * -(-tokens // TOKENS)
        key = spans, tokens == 1, keep == 0
        if key in self._cuts:
            return self._cuts[key]
        total = spans * self.kv_heads
        size = self.kv_heads if spans == 1 and tokens == 1 else 1
        attend = [(0, i, i + size) for i in range(0, total, size)]
        first, chunks = [0], []
        heads = (HEAD, OWN_HEAD, RECALL_HEAD)
        for phase, (kind, _) in zip(self.chunks, self.kinds, strict=True):
            if kind in heads and not keep:
                break
            chunks += attend if phase is None else phase
            first.append(len(chunks))
        arrays = np.array(first), np.array(chunks), np.array(self.kinds)
        self._cuts[key] = result = tuple(array.astype(np.int64) for array in arrays)
        return result  # another thread would store an equal result

    def _room(
        self, shape: tuple[int, int, int], width: int, end: int, logits: Tensor
    ) -> tuple[Any, ...]:
        """Return the arrays that a step writes into, `room` of the kernel.

        shape is (B, T, keep).
        """
        batch, tokens, keep = shape
        qkv, _, gate_up, _ = self.widths
        attended, recalled, rows = self.heads * self.size, self.recalled, batch * tokens
        widest = max(width, attended, gate_up // 2, recalled // 2, self.entered)
        piece, spans = -(-self.size // LANES) * LANES + 2, _spans(end) if tokens == 1 else 0
        shapes = (
            (rows, width),  # h
            (batch, tokens, self.heads, self.size),  # q
            (rows, qkv),
            (spans, batch, self.heads, piece),
            (rows, attended),
            (rows, gate_up),
            (rows, gate_up // 2),  # activated
            (rows, width),  # delta
            (2 * rows * (widest // GROUP + 1),),  # sums
        )
        layer = tuple(np.empty(shape, np.float32) for shape in shapes)
        shapes = (rows, width), (rows, recalled), (rows, recalled // 2), (rows, self.entered)
        block = tuple(np.empty(shape, np.float32) for shape in shapes)
        tops, outputs = np.empty((len(logits), width), np.float32), logits.numpy()
        own = batch * keep
        both = (tuple((x, x[:own], x[own:])) for x in (tops, outputs))
        return layer, block, *both


def _spans(end: int) -> int:
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


def _width(product: list[Part]) -> int:
    """Return the number of a product's outputs."""
    return sum(part.outputs for part in product)


def _is_same(one: Part, other: Part) -> bool:
    """Return whether two parts are one weight."""
    return one.module is other.module or (one.source == other.source and other.source != (0, 0))


def _norms(llama: Any, recall: Recall | None) -> tuple[np.ndarray, list[Tensor]]:
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

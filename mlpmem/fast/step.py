"""One token a row by compiled code alone: a pass's weights as addresses, and threads that help.

A `Step` holds the tables that `step_kernels.py` reads: which weights, in which form, cut into which
chunks. It keeps every tensor whose address it has. Scratch arrays and the word that threads share
belong to a call. Helpers are threads of the process; one that is busy with another call is not
waited for.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mlpmem.fast import step_kernels
from mlpmem.fast.few_rows import LANES, FewRows, Lanes, Rows
from mlpmem.fast.step_kernels import FLOAT32, GROUP, INT4, INT8, PHASES

CHUNK = 2**15  # bytes of weights that a thread takes at once
SHARED = 2**14  # numbers of a result that are worth a second thread
ALONE = 256  # positions below which attention is one chunk a row
POOL = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), "decode")


class Part(NamedTuple):
    """A weight of a product, outputs side by side with the others'."""

    kind: int
    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None
    outputs: int
    module: nn.Module

    def row(self, column: int) -> list[int]:
        """Return what the kernels read; `column` is where its outputs begin."""
        addresses = [0 if x is None else x.data_ptr() for x in (self.scale, self.bias)]
        return [self.kind, self.weight.data_ptr(), *addresses, self.outputs, column]

    def chunk(self) -> int:
        """Return how many outputs are a chunk."""
        size = self.weight.nbytes // self.outputs
        return max(LANES, CHUNK // max(1, size) // LANES * LANES)


def part_of(module: nn.Module) -> Part | None:
    """Return the part that a linear layer is, None where its form cannot be read by a step."""
    bias = module.bias
    bias = None if bias is None else bias.detach().float().contiguous()
    if isinstance(module, FewRows):
        kind = INT4 if isinstance(module.small, Lanes) else INT8
        rows = len(module.small.q) * (LANES if kind == INT4 else 1)
        return Part(kind, *module.small, bias, rows, module)
    if type(module) is not nn.Linear or module.weight.dtype != torch.float32:
        return None
    weight = module.weight.detach()
    return (
        Part(FLOAT32, weight, None, bias, len(weight), module) if weight.is_contiguous() else None
    )


class Step:
    """The compiled step of one pass."""

    def __init__(self, of: Any, products: list[list[Part]]) -> None:
        """Lay out a LlamaPass's parts: products, four a layer and the head."""
        self.owner, self.products = of, products
        self.heads, self.kv_heads, self.size = of.layers[0].heads
        self.dtype = of.embed.weight.dtype
        rows, chunks, self.first = [], [], [0]
        for number, product in enumerate(products):
            column = 0
            for part in product:
                ends = range(0, part.outputs, part.chunk())
                chunks += [(len(rows), i, min(part.outputs, i + part.chunk())) for i in ends]
                rows.append(part.row(column))
                column += part.outputs
            self.first.append(len(chunks))
            if number % 4 == 0 and number < len(products) - 1:  # attention, cut when it is known
                self.first.append(len(chunks))
        self.parts, self.chunks = np.array(rows, np.int64), chunks
        self._cuts: dict[tuple[int, bool], tuple[np.ndarray, np.ndarray]] = {}
        self.widths = [sum(part.outputs for part in product) for product in products[:4]]
        self.norms, self.kept = _norms(of, self.dtype)
        layers = of.layers
        self.windows = np.array([layer.window for layer in layers], np.int64)
        self.scores = np.array([(layer.scale, layer.cap) for layer in layers], np.float32)
        head = layers[0].head_norms
        eps = of.norm.eps, head[0].eps if head else 0.0
        self.factors = np.array([of.norm.one, *eps], np.float32)
        self.sample = np.empty(0, np.float32 if self.dtype == torch.float32 else np.int16)

    @classmethod
    def of(cls, straight: Any) -> "Step | None":
        """Return the step of a LlamaPass, None where a weight is in a form that it cannot read."""
        groups = [
            group
            for layer in straight.layers
            for group in (layer.qkv, (layer.out,), layer.gate_up, (layer.down,))
        ]
        products = [[part_of(module) for module in group] for group in (*groups, (straight.head,))]
        every = [part for product in products for part in product]
        known = all(part is not None for part in every)
        return cls(straight, products) if known and _alike(straight) else None

    def holds(self) -> bool:
        """Return whether every weight is still where it was."""
        return all(
            part.kind != FLOAT32 or part.module.weight.data_ptr() == part.weight.data_ptr()
            for product in self.products
            for part in product
        )

    def run(self, ids: Tensor, cache: Any, threads: int) -> tuple[Tensor, Tensor]:
        """Return logits (B, 1, V) and hidden states (B, 1, D) of one token a row, ids (B, 1)."""
        owner, batch, past = self.owner, len(ids), cache.get_seq_length()
        x = owner.embed(ids).float().view(batch, -1)
        shape = batch, self.kv_heads, 1, self.size
        buffers = [layer.extend(shape, self.dtype) for layer in cache.layers]
        caches = np.array(
            [(k.data_ptr(), v.data_ptr(), k.shape[2], self.kv_heads) for k, v in buffers], np.int64
        )
        tables = [owner.table(layer.rotation, past + 1) for layer in owner.layers]
        places = np.array([(c.data_ptr(), s.data_ptr(), c.shape[1]) for c, s in tables], np.int64)
        first, chunks = self._cut(batch, past + 1)
        word, done = np.zeros(8, np.int64), np.zeros(len(first), np.int64)
        hidden, logits = torch.empty_like(x), torch.empty(batch, self.products[-1][0].outputs)
        room = self._room(batch, x.shape[1], logits)
        word[0] = step_kernels.WAIT << step_kernels.SHIFT
        shared = word, done, first, chunks, self.parts, room, caches, self.windows, self.scores
        shared = *shared, past, self.sample, self.norms, places, self.factors, owner.gelu
        shared = *shared, owner.depth, x.numpy(), hidden.numpy()
        helpers = [POOL.submit(step_kernels.step, False, *shared) for _ in range(threads - 1)]
        step_kernels.step(True, *shared)
        for helper in helpers:
            helper.cancel()
        return logits[:, None], hidden[:, None].to(self.dtype)

    def _cut(self, batch: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return where every phase's chunks (part, begin, end) begin, and the chunks."""
        known = batch, length > ALONE
        if known in self._cuts:
            return self._cuts[known]
        pieces = batch * self.kv_heads
        size = 1 if length > ALONE else max(1, self.kv_heads)
        attend = [(0, i, min(pieces, i + size)) for i in range(0, pieces, size)]
        first, chunks = [], []
        for phase in range(len(self.first) - 1):
            first.append(len(chunks))
            attends = phase % PHASES == 1 and phase < len(self.first) - 2
            chunks += attend if attends else self.chunks[self.first[phase] : self.first[phase + 1]]
        made = np.array([*first, len(chunks)], np.int64), np.array(chunks, np.int64)
        self._cuts[known] = made  # another thread's is as good
        return made

    def _room(self, batch: int, width: int, logits: Tensor) -> tuple[np.ndarray, ...]:
        """Return the arrays that a step writes into."""
        qkv, _, both, _ = self.widths
        attended = self.heads * self.size
        widest = max(width, attended, both // 2)
        shapes = (
            (width,),
            (self.heads, self.size),
            (qkv,),
            (attended,),
            (both,),
            (both // 2,),
            (width,),
        )
        h, q, qkv, found, both, bent, delta = (np.empty((batch, *s), np.float32) for s in shapes)
        sums = np.empty(batch * (widest // GROUP + 1), np.float32)
        return h, q, qkv, found, both, bent, delta, logits.numpy(), sums


def _alike(straight: Any) -> bool:
    """Return whether all layers have heads alike, as a step's arrays do."""
    return len({layer.heads for layer in straight.layers}) == 1


def _norms(of: Any, dtype: torch.dtype) -> tuple[np.ndarray, list[Tensor]]:
    """Return the addresses of all norms (layers + 1, 6), 0 for none, and what lies there."""
    kept: list[Tensor] = []

    def address(norm: Any) -> int:
        if norm is None:
            return 0
        kept.append(norm.module.weight.detach().float().contiguous())
        return kept[-1].data_ptr()

    rows = []
    for layer in of.layers:
        heads = layer.head_norms or (None, None)
        norms = layer.norm, layer.after, layer.ffn_norm, layer.ffn_after, *heads
        rows.append([address(norm) for norm in norms])
    rows.append([address(of.norm), 0, 0, 0, 0, 0])
    return np.array(rows, np.int64), kept


def product(small: Lanes | Rows, x: Tensor) -> Tensor:
    """Return x (R, inputs) float32 @ weight.T of a small form, (R, outputs) float32."""
    x = x.contiguous()
    lanes = isinstance(small, Lanes)
    outputs = len(small.q) * (LANES if lanes else 1)
    out, given = torch.empty(len(x), outputs), x.numpy()
    sums = np.empty(len(x) * (x.shape[1] // GROUP), np.float32)
    part = np.array([INT4 if lanes else INT8, *(y.data_ptr() for y in small), 0, outputs, 0])
    if lanes:
        step_kernels.sum_groups(given, sums)
    threads = torch.get_num_threads()
    size = -(-outputs // threads // LANES) * LANES if outputs * len(x) > SHARED else outputs
    spans = [(i, min(outputs, i + size)) for i in range(0, outputs, size)]
    rest = given, sums, out.numpy(), step_kernels.EIGHT
    others = [POOL.submit(step_kernels.some_outputs, part, *span, *rest) for span in spans[1:]]
    step_kernels.some_outputs(part, *spans[0], *rest)
    for other in others:
        other.result()
    return out

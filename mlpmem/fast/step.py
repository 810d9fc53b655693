"""One token per row by compiled code only: a pass's weights as addresses, and helper threads.

A `Step` holds the tables that `step_kernels.py` reads: the weights, their forms and their chunks.
It keeps every tensor whose address it uses. Scratch arrays and the word that threads share belong
to a call. Helpers are threads of the process; a call does not wait for a helper that is busy.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mlpmem.fast import step_kernels
from mlpmem.fast.few_rows import LANES, FewRows, Lanes, Rows
from mlpmem.fast.intrinsics import GROUP
from mlpmem.fast.step_kernels import FLOAT32, INT4, INT8, PHASES

CHUNK = 2**15  # bytes of weights that a thread takes at once
SHARED = 2**14  # outputs that are worth a second thread
SHORT = 256  # positions up to which a row's attention is one chunk
POOL = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), "decode")


class Part(NamedTuple):
    """One weight of a product; the outputs of a product's parts are concatenated."""

    kind: int
    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None
    outputs: int
    module: nn.Module

    def row(self, column: int) -> list[int]:
        """Return the kernels' description of the part; `column` is the first output."""
        addresses = [0 if x is None else x.data_ptr() for x in (self.scale, self.bias)]
        return [self.kind, self.weight.data_ptr(), *addresses, self.outputs, column]

    def chunk(self) -> int:
        """Return the number of outputs per chunk."""
        size = self.weight.nbytes // self.outputs
        return max(LANES, CHUNK // max(1, size) // LANES * LANES)


def part_of(module: nn.Module) -> Part | None:
    """Return the part of a linear layer, None if a step cannot read its form."""
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

    def __init__(self, llama: Any, products: list[list[Part]]) -> None:
        """Lay out a LlamaPass's products: four per layer and the head."""
        self.llama, self.products = llama, products
        self.heads, self.kv_heads, self.size = llama.layers[0].heads
        self.dtype = llama.embed.weight.dtype
        rows, chunks, self.first = [], [], [0]
        for number, product in enumerate(products):
            column = 0
            for part in product:
                ends = range(0, part.outputs, part.chunk())
                chunks += [(len(rows), i, min(part.outputs, i + part.chunk())) for i in ends]
                rows.append(part.row(column))
                column += part.outputs
            self.first.append(len(chunks))
            if number % 4 == 0 and number < len(products) - 1:  # attention, cut in `_cut`
                self.first.append(len(chunks))
        self.parts, self.chunks = np.array(rows, np.int64), chunks
        self._cuts: dict[tuple[int, bool], tuple[np.ndarray, np.ndarray]] = {}
        self.widths = [sum(part.outputs for part in product) for product in products[:4]]
        self.norms, self._norm_weights = _norms(llama)
        layers = llama.layers
        self.windows = np.array([layer.window for layer in layers], np.int64)
        self.scores = np.array([(layer.scale, layer.cap) for layer in layers], np.float32)
        head = layers[0].head_norms
        eps = llama.norm.eps, head[0].eps if head else 0.0
        self.factors = np.array([llama.norm.one, *eps], np.float32)
        self.sample = np.empty(0, np.float32 if self.dtype == torch.float32 else np.int16)

    @classmethod
    def of(cls, llama: Any) -> "Step | None":
        """Return the step of a LlamaPass, None if it cannot read a weight's form."""
        groups = [
            group
            for layer in llama.layers
            for group in (layer.qkv, (layer.out,), layer.gate_up, (layer.down,))
        ]
        products = [[part_of(module) for module in group] for group in (*groups, (llama.head,))]
        readable = all(part is not None for product in products for part in product)
        same_heads = len({layer.heads for layer in llama.layers}) == 1
        return cls(llama, products) if readable and same_heads else None

    def is_valid(self) -> bool:
        """Return whether every weight still has its address."""
        return all(
            part.kind != FLOAT32 or part.module.weight.data_ptr() == part.weight.data_ptr()
            for product in self.products
            for part in product
        )

    def run(self, ids: Tensor, cache: Any, threads: int) -> tuple[Tensor, Tensor]:
        """Return logits (B, 1, V) and hidden states (B, 1, D) of one token per row, ids (B, 1)."""
        llama, batch, past = self.llama, len(ids), cache.get_seq_length()
        x = llama.embed(ids).float().view(batch, -1)
        shape = batch, self.kv_heads, 1, self.size
        buffers = [layer.extend(shape, self.dtype) for layer in cache.layers]
        caches = np.array(
            [(k.data_ptr(), v.data_ptr(), k.shape[2], self.kv_heads) for k, v in buffers], np.int64
        )
        cos_sin = [llama.table(layer.rotation, past + 1) for layer in llama.layers]
        tables = np.array([(c.data_ptr(), s.data_ptr(), c.shape[1]) for c, s in cos_sin], np.int64)
        first, chunks = self._cut(batch, past + 1)
        word, done = np.zeros(8, np.int64), np.zeros(len(first), np.int64)
        hidden, logits = torch.empty_like(x), torch.empty(batch, self.products[-1][0].outputs)
        room = self._room(batch, x.shape[1], logits)
        word[0] = step_kernels.WAIT << step_kernels.SHIFT
        model = caches, self.windows, self.scores, self.norms, tables, self.factors
        model = *model, llama.gelu, llama.depth
        arguments = word, done, (first, chunks, self.parts), model, room, x.numpy(), hidden.numpy()
        shared = min(layer.shared for layer in cache.layers)
        arguments = *arguments, past, shared, self.sample
        helpers = [POOL.submit(step_kernels.step, False, *arguments) for _ in range(threads - 1)]
        step_kernels.step(True, *arguments)
        for helper in helpers:
            helper.cancel()
        return logits[:, None], hidden[:, None].to(self.dtype)

    def _cut(self, batch: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return where each phase's chunks begin, and all chunks (part, begin, end)."""
        key = batch, length > SHORT
        if key in self._cuts:
            return self._cuts[key]
        total = batch * self.kv_heads
        size = 1 if length > SHORT else max(1, self.kv_heads)
        attend = [(0, i, min(total, i + size)) for i in range(0, total, size)]
        first, chunks = [], []
        for phase in range(len(self.first) - 1):
            first.append(len(chunks))
            is_attention = phase % PHASES == 1 and phase < len(self.first) - 2
            span = slice(self.first[phase], self.first[phase + 1])
            chunks += attend if is_attention else self.chunks[span]
        result = np.array([*first, len(chunks)], np.int64), np.array(chunks, np.int64)
        self._cuts[key] = result  # another thread would store an equal result
        return result

    def _room(self, batch: int, width: int, logits: Tensor) -> tuple[np.ndarray, ...]:
        """Return the arrays that a step writes into, `room` of step_kernels.step."""
        qkv, _, gate_up, _ = self.widths
        attended = self.heads * self.size
        widest = max(width, attended, gate_up // 2)
        shapes = (
            (width,),  # h
            (self.heads, self.size),  # q
            (qkv,),
            (attended,),
            (gate_up,),
            (gate_up // 2,),  # activated
            (width,),  # delta
        )
        arrays = [np.empty((batch, *shape), np.float32) for shape in shapes]
        sums = np.empty(batch * (widest // GROUP + 1), np.float32)
        return *arrays, logits.numpy(), sums


def _norms(llama: Any) -> tuple[np.ndarray, list[Tensor]]:
    """Return the addresses of all norms (layers + 1, 6), 0 for none, and their weights."""
    weights: list[Tensor] = []

    def address(norm: Any) -> int:
        if norm is None:
            return 0
        weights.append(norm.module.weight.detach().float().contiguous())
        return weights[-1].data_ptr()

    rows = []
    for layer in llama.layers:
        heads = layer.head_norms or (None, None)
        norms = layer.norm, layer.after, layer.ffn_norm, layer.ffn_after, *heads
        rows.append([address(norm) for norm in norms])
    rows.append([address(llama.norm), 0, 0, 0, 0, 0])
    return np.array(rows, np.int64), weights


def product(small: Lanes | Rows, x: Tensor) -> Tensor:
    """Return x (R, inputs) float32 @ weight.T of a small form: (R, outputs) float32."""
    x = x.contiguous()
    lanes = isinstance(small, Lanes)
    outputs = len(small.q) * (LANES if lanes else 1)
    out, inputs = torch.empty(len(x), outputs), x.numpy()
    sums = np.empty(len(x) * (x.shape[1] // GROUP), np.float32)
    part = np.array([INT4 if lanes else INT8, *(y.data_ptr() for y in small), 0, outputs, 0])
    if lanes:
        step_kernels.sum_groups(inputs, sums)
    threads = torch.get_num_threads()
    size = -(-outputs // threads // LANES) * LANES if outputs * len(x) > SHARED else outputs
    spans = [(i, min(outputs, i + size)) for i in range(0, outputs, size)]
    rest = inputs, sums, out.numpy(), step_kernels.BYTES
    helpers = [POOL.submit(step_kernels.some_outputs, part, *span, *rest) for span in spans[1:]]
    step_kernels.some_outputs(part, *spans[0], *rest)
    for helper in helpers:
        helper.result()
    return out

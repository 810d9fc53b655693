"""One token per row, or a prompt, by compiled code only: its weights, arrays and results.

A `Step` holds the tables that `kernels/step.py` reads: the weights, their forms, and the phases of
phases.py. Scratch arrays and the word that threads share belong to a call, which does not wait for
a helper that is busy.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mlpmem.fast.few_rows import LANES, FewRows
from mlpmem.fast.kernels import step as kernels
from mlpmem.fast.kernels.intrinsics import GROUP
from mlpmem.fast.llama_layers import Recall
from mlpmem.fast.parts import POOL, Part, part_of, source_of
from mlpmem.fast.phases import Phases, norms_of, outputs_of, spans_of

PROMPT = 128  # tokens of a prompt that are computed together
SHORT = 32  # rows of a prompt


class Result(NamedTuple):
    """What a step computes of each sequence's last tokens."""

    logits: Tensor  # (B, keep, V)
    hidden: Tensor  # (B, keep, D)
    recalled: Tensor | None  # (B, keep, V), a memory's logits
    scores: Tensor | None  # (S, B, N): log-probs of given tokens by the decoder, and by a memory


class Step:
    """The compiled step of one pass, or of one and a memory's blocks."""

    share = 0.0  # the memory's, of the step's seconds

    def __init__(self, llama: Any, recall: Recall | None, products: list[list[Part]]) -> None:
        """Lay out products: those of a LlamaPass's layers, of a memory's blocks, and of heads."""
        self.llama, self.recall, self.products = llama, recall, products
        self.parts = {part.module: part for product in products for part in product}
        plain = [part for part in self.parts.values() if part.source != (0, 0)]
        self.sources = [part.source for part in plain]
        self.modules = [part.module._parameters for part in plain]  # `module.weight` is slower
        self.heads, self.kv_heads, self.size = llama.layers[0].heads
        self.dtype = llama.embed.weight.dtype
        self.phases = Phases(len(llama.layers), self.kv_heads, recall, products)
        self.widths = [outputs_of(product) for product in products[:4]]
        self.recalled = 0 if recall is None else outputs_of(products[-4])
        door = None if recall is None else recall.door
        self.entered = 0 if door is None else len(door.mean)  # K of the memory's door
        self.norms, self._norm_weights = norms_of(llama, recall)
        layers = llama.layers
        self.windows = np.array([layer.window for layer in layers], np.int64)
        self.scores = np.array([(layer.scale, layer.cap) for layer in layers], np.float32)
        head = layers[0].head_norms
        eps = llama.norm.eps, head[0].eps if head else 0.0, recall.norm.eps if recall else 0.0
        self.factors = np.array([llama.norm.one, *eps], np.float32)
        self.sample = np.empty(0, np.float32 if self.dtype == torch.float32 else np.int16)
        self.unscored = self._scores(torch.empty(0, dtype=torch.long), 0)

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
        known = {} if llama.step is None else llama.step.parts
        modules = [module for group in groups for module in group]
        parts = {module: _current(known.get(module)) or part_of(module) for module in modules}
        same_heads = len({layer.heads for layer in llama.layers}) == 1
        if None in parts.values() or not same_heads:
            return None
        return cls(llama, recall, [[parts[module] for module in group] for group in groups])

    def is_valid(self) -> bool:
        """Return whether every weight is still the one that was read."""
        return [source_of(named["weight"]) for named in self.modules] == self.sources

    def run(
        self,
        ids: Tensor,
        cache: Any,
        threads: int,
        keep: int = 1,
        words: Tensor | None = None,
        follow: Tensor | None = None,
    ) -> Result:
        """Return the result of the last `keep` tokens of ids (B, T) after those of the cache.

        A memory with a door reads the context vectors `words` (B, T, n D). `follow` (B, N) are
        tokens to score: what follows each of the last N tokens, N at least `keep`.
        """
        (batch, tokens), past = ids.shape, cache.get_seq_length()
        x, end = self.llama.embed(ids).float().view(batch * tokens, -1), past + tokens
        model = self._model(cache, batch, tokens, end)
        kept = keep if follow is None else follow.shape[1]
        first, chunks, kinds = self.phases.cut(batch, tokens, end, (keep, kept, follow is not None))
        word, done = np.zeros(8, np.int64), np.zeros(len(first), np.int64)
        sources = 1 if self.recall is None else 2
        hidden = torch.empty_like(x)
        logits = torch.empty(sources, batch * keep, self.products[-1][0].outputs)
        scores = self.unscored if follow is None else self._scores(follow, x.shape[1])
        room = *self._room((batch, tokens, kept, keep), x.shape[1], end), _split(logits), scores
        if self.entered and kept:
            assert words is not None, "this memory reads context vectors"
            room[1][3][:, x.shape[1] :] = words[:, tokens - kept :].flatten(0, 1).numpy()
        word[0] = kernels.WAIT << kernels.SHIFT
        plan = first, chunks, self.phases.parts, kinds
        arguments = word, done, plan, model, room, x.numpy(), hidden.numpy()
        shared = min(layer.shared for layer in cache.layers)
        arguments = *arguments, past, shared, self.sample
        helpers = [POOL.submit(kernels.step, False, *arguments) for _ in range(threads - 1)]
        kernels.step(True, *arguments)
        for helper in helpers:
            helper.cancel()
        hidden = hidden.view(batch, tokens, -1)[:, tokens - keep :].to(self.dtype)
        outputs = logits.view(sources, batch, keep, logits.shape[2])
        recalled = None if self.recall is None else outputs[1]
        found = None if follow is None else _log_probs(*scores[2:]).view(sources, *follow.shape)
        return Result(outputs[0], hidden, recalled, found)

    def read(
        self,
        ids: Tensor,
        cache: Any,
        threads: int,
        keep: int,
        words: Tensor | None = None,
        scored: int = 0,
    ) -> Result:
        """Return the result of the last `keep` tokens of a prompt, ids (B, T).

        The scores are those of its last `scored` tokens that follow others, before the last `keep`
        positions. ids are computed PROMPT tokens at a time, so that what lies between two products
        stays in the caches.
        """
        parts: list[Result] = []
        size, following = ids.shape[1], ids.roll(-1, 1)  # what follows the last token is not used
        for begin in range(0, size, PROMPT):
            end = min(size, begin + PROMPT)
            wanted, kept = (max(0, end - max(begin, size - n)) for n in (keep, keep + scored))
            read = None if words is None else words[:, begin:end]
            follow = following[:, end - kept : end] if scored and kept else None
            parts.append(self.run(ids[:, begin:end], cache, threads, wanted, read, follow))
        logits, hidden, recalled = (
            None if self.recall is None and i == 2 else torch.cat([part[i] for part in parts], 1)
            for i in range(3)
        )
        scores = [part.scores for part in parts if part.scores is not None]
        found = torch.cat(scores, 2)[..., :scored] if scores else None
        return Result(logits, hidden, recalled, found)

    def reads(self, rows: int) -> bool:
        """Return whether a prompt of so many rows is computed here.

        Short ones are; of more rows, products with weights in other forms are faster elsewhere.
        """
        layers = self.products[: 4 * len(self.llama.layers)]
        parts = [part for product in layers for part in product]
        return rows <= SHORT or all(
            isinstance(x.module, FewRows) and x.module.is_released for x in parts
        )

    def _model(self, cache: Any, batch: int, tokens: int, end: int) -> tuple[Any, ...]:
        """Return `model` of the kernel, with room in the cache for tokens up to position `end`."""
        llama, shape = self.llama, (batch, self.kv_heads, tokens, self.size)
        buffers = [layer.extend(shape, self.dtype) for layer in cache.layers]
        caches = np.array(
            [(k.data_ptr(), v.data_ptr(), k.shape[2], self.kv_heads) for k, v in buffers], np.int64
        )
        cos_sin = [llama.table(layer.rotation, end) for layer in llama.layers]
        tables = np.array([(c.data_ptr(), s.data_ptr(), c.shape[1]) for c, s in cos_sin], np.int64)
        layers = caches, self.windows, self.scores, self.norms, tables, self.factors
        return *layers, llama.gelu, llama.depth

    def _room(self, shape: tuple[int, int, int, int], width: int, end: int) -> tuple[Any, ...]:
        """Return the arrays that a step writes into, `room` of the kernel without what it returns.

        shape is (B, T, kept, keep): tokens, those with a memory's states, those with logits.
        """
        batch, tokens, kept, keep = shape
        qkv, _, gate_up, _ = self.widths
        attended, recalled, rows = self.heads * self.size, self.recalled, batch * tokens
        widest = max(width, attended, gate_up // 2, recalled // 2, self.entered)
        piece, spans = -(-self.size // LANES) * LANES + 2, spans_of(end) if tokens == 1 else 0
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
        widths = width, recalled, recalled // 2, self.entered, width, width
        block = tuple(np.empty((batch * kept, size), np.float32) for size in widths)
        sources = 1 if self.recall is None else 2
        tops, ends = (torch.empty(sources, batch * count, width) for count in (kept, keep))
        return layer, block, _split(tops), _split(ends)

    def _scores(self, follow: Tensor, width: int) -> tuple[np.ndarray, ...]:
        """Return the arrays of `score_chunk`: tokens (S B N), columns, totals, and found."""
        sources = 1 if self.recall is None else 2
        tokens = np.tile(follow.numpy().ravel(), sources)
        rows = len(tokens) if self.phases.tied else len(tokens) // sources  # of one product
        columns = np.empty((width, -(-rows // LANES) * LANES), np.float32)
        totals = np.full((self.phases.head_chunks, len(tokens)), -np.inf, np.float32)
        return tokens, columns, totals, np.empty(len(tokens), np.float32)


def _current(part: Part | None) -> Part | None:
    """Return a part of another step, which may hold a copy of its weight, None if it changed."""
    return part if part is not None and part.is_current else None


def _split(x: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return arrays of all rows of x (S, R, D), the decoder's, and a memory's, if there are any."""
    own, whole = x.shape[1], x.flatten(0, 1).numpy()
    return whole, whole[:own], whole[own:]


def _log_probs(totals: np.ndarray, found: np.ndarray) -> Tensor:
    """Return the log-probs of tokens from those arrays of `score_chunk`."""
    return torch.from_numpy(found) - torch.from_numpy(totals).logsumexp(0)

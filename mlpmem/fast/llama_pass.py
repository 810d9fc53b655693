"""A hand-written forward pass of Llama-shaped decoders, which saves time between the products.

It covers RMSNorm, rotary positions, shared key heads and a gated FFN, with every family's biases,
query, key and output norms, windows and capped scores. It reads prompts, further tokens over a
cache, and one token per row. The residual stream is float32 in every dtype.

numba compiles what lies between two products, and complete steps (step.py). Until that is compiled,
and without numba, torch's operators compute it (llama_layers.py). Calls with padding, masks or
positions use transformers' pass.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mlpmem.fast import attention
from mlpmem.fast.attention import GrowingLayer, growing_cache
from mlpmem.fast.compiling import (
    COMPILING,
    check_running,
    compiles,
    in_background,
    is_cached,
)
from mlpmem.fast.devices import Decodes, calibrate, trim_memory
from mlpmem.fast.few_rows import FEW, FewRows, settle
from mlpmem.fast.llama_layers import (
    ACTIVATIONS,
    EAGER_CAP,
    Layer,
    Operators,
    Recall,
    Recalled,
    activation_of,
    attend_many,
    layer_of,
    max_positions,
    norm_of,
)

if TYPE_CHECKING:
    from mlpmem.fast.step import Result, Step

DTYPES = (torch.float32, torch.bfloat16)
NOTHING = torch.empty(0)
ROUNDS = 4  # of measuring what a memory costs


class LlamaPass:
    """The pass of one model; it keeps no state between calls."""

    grow_windows = True  # caches keep every token; windows are slices of them

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module], depth: int) -> None:
        """Collect a model's parts; the FFN input of layer depth is returned."""
        self.model, config = model, model.config
        body = model.get_decoder()
        self.embed, self.rotary, self.head = body.embed_tokens, body.rotary_emb, model.lm_head
        self.norm = norm_of(body.norm)
        self.layers = [layer_of(layer, config) for layer in layers]
        self.depth = depth % len(self.layers)
        self.gelu = ACTIVATIONS[activation_of(config)]
        self.cap = getattr(config, "final_logit_softcapping", None) or 0.0
        self.limit = max_positions(config)
        self._tables: dict[str, tuple[Tensor, Tensor]] = {}
        self.operators: Any = Operators
        self.owner: Callable[[], Decodes | None] = lambda: None  # a weak reference
        self.step: Step | None = None  # for one token per row, once compiled
        self._recalling: WeakKeyDictionary[nn.Module, Step | None] = WeakKeyDictionary()

    @classmethod
    def of(cls, model: nn.Module, layers: Sequence[nn.Module], depth: int) -> "LlamaPass | None":
        """Return the pass of a Llama-shaped model, or None if it is not on one CPU.

        None, too, if its config needs anything that this pass does not implement.
        """
        config = model.config
        known = activation_of(config) in ACTIVATIONS
        on_cpu = not getattr(model, "hf_device_map", None) and model.device.type == "cpu"
        supported = config._attn_implementation in ("sdpa", attention.NAME) or (
            config._attn_implementation == "eager" and hasattr(config, EAGER_CAP)
        )
        bidirectional = getattr(config, "use_bidirectional_attention", False)
        if not known or not on_cpu or not supported or bidirectional:
            return None
        return cls(model, layers, depth)

    def accepts(self, model: nn.Module, ids: Tensor, cache: Any) -> bool:
        """Return whether this pass can compute ids (B, T) over a cache for the model."""
        weight = self.embed.weight
        return (
            self.model is model
            and weight.dtype in DTYPES
            and weight.device.type == "cpu"
            and _length(cache) + ids.shape[1] <= self.limit
            and (cache is None or self._grows(cache))
            and not hasattr(model, "_hf_hook")
        )

    def _grows(self, cache: Any) -> bool:
        """Return whether every cache layer is a growing one."""
        layers = getattr(cache, "layers", [])
        return len(layers) == len(self.layers) and all(type(x) is GrowingLayer for x in layers)

    def forward(
        self,
        ids: Tensor,
        cache: Any,
        last: int,
        memory: Any = None,
        words: Tensor | None = None,
        scored: int = 0,
    ) -> tuple[Tensor, Tensor, Any, Recalled | None, Tensor | None]:
        """Return logits (B, T, V), hidden states (B, T, D) and the cache, as Decoder.forward does.

        T is `last` if last is not 0. A compiled step computes a memory too, if it can; `words` are
        the context vectors (B, T, n D) that it may read. If it computes both, the scores of
        `scored` tokens are returned; otherwise T is larger by so many.
        """
        if ids.shape[1] == 1 and self.operators is Operators:
            self.compile_in_background(memory)
        if ids.shape[1] == 1 and cache is not None and len(ids) <= FEW:
            step = self._step_with(memory)
            if step is not None:
                begin = time.perf_counter()
                threads = torch.get_num_threads()
                result = step.run(ids, cache, threads, words=words)
                seconds = step.share * (time.perf_counter() - begin)
                return *self._outputs(result, cache, seconds), None
        if ids.shape[1] > 1 and (step := self._step_with(memory)) and step.reads(ids.numel()):
            own = growing_cache(self.model.config, True) if cache is None else cache
            scores = scored and step.recall is not None and not self.cap
            keep = (last or ids.shape[1]) + (0 if scores else scored)
            count = scored if scores else 0
            result = step.read(ids, own, torch.get_num_threads(), keep, words, count)
            return *self._outputs(result, cache), result.scores
        return *self._forward(self.operators, ids, cache, last and last + scored), None, None

    def _outputs(
        self, result: "Result", cache: Any, seconds: float = 0.0
    ) -> tuple[Tensor, Tensor, Any, Recalled | None]:
        """Return the logits, hidden states, cache, and what was computed of a memory in a step.

        `seconds` of the step were the memory's, or an unknown part of a prompt's.
        """
        recalled = None if result.recalled is None else Recalled(result.recalled, seconds)
        return self._capped(result.logits), result.hidden, cache, recalled

    def _step_with(self, memory: Any) -> "Step | None":
        """Return the compiled step, with a memory if that can be; None if nothing is compiled."""
        if self.step is None:
            return None
        step = None if memory is None else self._recalling.get(memory)
        if step is not None and step.is_valid():
            return step
        if not self.step.is_valid():
            self.step = self._step()
        if memory is None or (recall := memory.recall()) is None:
            return self.step
        if memory not in self._recalling or step is not None:
            if (step := self._step(recall)) is not None:
                step.share = self._share(step)
            self._recalling[memory] = step  # another thread would store an equal one
        return self._recalling[memory] or self.step

    def _share(self, step: "Step") -> float:
        """Return a memory's share of a step's seconds, measured against the step without it."""
        seconds: dict[Step, list[float]] = {self.step: [], step: []}
        cache, token = growing_cache(self.model.config, True), torch.zeros(1, 1, dtype=torch.long)
        words = torch.zeros(1, 1, max(0, step.entered - self.norm.module.weight.numel()))
        for one in (self.step, step) * ROUNDS:
            begin = time.perf_counter()
            one.run(token, cache, torch.get_num_threads(), words=words)
            seconds[one].append(time.perf_counter() - begin)
        return max(0.0, 1 - min(seconds[self.step]) / min(seconds[step]))

    def _forward(
        self, operators: Any, ids: Tensor, cache: Any, last: int
    ) -> tuple[Tensor, Tensor, Any]:
        """Compute `forward` with the given operators."""
        rows, size = ids.shape
        past, keep, dtype = _length(cache), last or size, self.embed.weight.dtype
        x = self.embed(ids).float().view(rows * size, -1)
        delta, after, hidden = NOTHING, None, None
        for i, layer in enumerate(self.layers):
            h = operators.add_norm(x, delta, after, layer.norm, dtype)
            shape = rows, size, keep if i == len(self.layers) - 1 else size
            cached = None if cache is None else cache.layers[i]
            mixed = self._attend(operators, layer, h, cached, past, shape)
            if shape[2] < size:  # the last layer's other positions are not used
                x = x.view(rows, size, -1)[:, -keep:].reshape(rows * keep, -1)
            h = operators.add_norm(x, layer.out(mixed), layer.after, layer.ffn_norm, dtype)
            if i == self.depth:
                hidden = h.view(rows, -1, h.shape[1])[:, -keep:]
            delta = layer.down(operators.gate(_product(layer.gate_up, h), self.gelu))
            after = layer.ffn_after
        h = operators.add_norm(x, delta, after, self.norm, dtype)
        h = h.view(rows, -1, h.shape[1])[:, -keep:]
        head = self.head
        if isinstance(head, FewRows) and head.bias is None and head.applies(h):
            logits = head.exact(h)  # in bfloat16 the best logits would often tie
        else:
            logits = head(h)
        return self._capped(logits), hidden, cache

    def _capped(self, logits: Tensor) -> Tensor:
        """Return logits, bounded by the family's cap if it has one."""
        return (logits / self.cap).tanh() * self.cap if self.cap else logits

    def _step(self, recall: Recall | None = None) -> "Step | None":
        """Return the compiled step, None if it cannot read a weight's form."""
        from mlpmem.fast.step import Step

        return Step.of(self, recall)

    def _attend(
        self,
        operators: Any,
        layer: Layer,
        h: Tensor,
        cached: GrowingLayer | None,
        past: int,
        shape: tuple[int, int, int],
    ) -> Tensor:
        """Return the attention (B keep, H size) of h (B T, D); shape is (B, T, keep)."""
        (rows, size, keep), (heads, kv_heads, width) = shape, layer.heads
        qkv = _product(layer.qkv, h).view(rows, size, -1)
        room = rows, kv_heads, size, width
        if cached is None:
            buffers = qkv.new_empty(room), qkv.new_empty(room)
        else:
            buffers = tuple(cached.extend(room, qkv.dtype))
        table, end = self.table(layer.rotation, past + size), past + size
        step = keep == 1
        q = operators.rotate(qkv, layer, table, past, buffers, step)[:, -keep:]
        if step:
            first = max(0, end - layer.window) if layer.window else 0
            return operators.attend(q[:, 0], buffers, (first, end), layer, qkv.dtype)
        keys, values = (buffer[:, :, :end] for buffer in buffers)
        return attend_many(q, keys, values, layer).reshape(rows * keep, heads * width)

    def compile_in_background(self, memory: Any = None) -> None:
        """Start a thread that compiles the kernels, if they can be compiled here."""
        in_background(self._dtype, partial(self._use_kernels, memory), self)

    def _use_kernels(self, memory: Any) -> None:
        """Use the kernels, with the number of threads that is fastest with them."""
        if self.operators is Operators:
            self._compile_all()
        if (owner := self.owner()) is not None:
            calibrate(owner, memory)

    @property
    def _dtype(self) -> str:
        return str(self.embed.weight.dtype).removeprefix("torch.")

    def compile_if_cached(self) -> None:
        """Compile now if that takes no longer than to read what was compiled before."""
        if compiles() and is_cached(self._dtype):
            self.compile()

    def compile(self) -> None:
        """Compile every kernel for this model and use them; once, also with several threads."""
        with COMPILING:
            if self.operators is Operators:
                self._compile_all()

    @torch.inference_mode()
    def _compile_all(self) -> None:
        """Compile the kernels by running one prompt and one step."""
        from mlpmem.fast.kernels import note
        from mlpmem.fast.kernels.operators import Kernels
        from mlpmem.fast.parts import product

        cache = growing_cache(self.model.config, grow_windows=True)
        self._forward(Kernels, torch.zeros(1, 2, dtype=torch.long), cache, 0)
        token = torch.zeros(1, 1, dtype=torch.long)
        check_running()
        self._forward(Kernels, token, cache, 1)
        if (step := self._step()) is not None:
            check_running()
            step.run(token, cache, 1)
            check_running()
            layers = [m for m in self.model.modules() if isinstance(m, FewRows)]
            for small in {type(layer.small): layer.small for layer in layers}.values():
                product(small, torch.zeros(2, small.inputs))
            FewRows.product = staticmethod(product)
            settle(self.model)
        self.operators, self.step = Kernels, step
        if step is not None and (place := note(self._dtype)) is not None:
            place.touch()
        trim_memory()

    def table(self, name: str, size: int) -> tuple[Tensor, Tensor]:
        """Return cos and sin (positions, R / 2) float32 of a rotation, size positions or more."""
        table = self._tables.get(name)
        if table is None or len(table[0]) < size:
            count = min(self.limit, 2 ** max(9, (size - 1).bit_length()))
            positions = torch.arange(count)[None]
            arguments = (name,) if name else ()
            with torch.inference_mode(False), torch.no_grad():
                cos_sin = self.rotary(torch.empty(0), positions, *arguments)
                table = tuple(part[0, :, : part.shape[2] // 2].contiguous() for part in cos_sin)
            self._tables[name] = table  # another thread would store an equal table
        return table


def _product(parts: tuple[nn.Module, ...], x: Tensor) -> Tensor:
    """Return the products of x (R, D) with all parts, concatenated."""
    outputs = [part(x) for part in parts]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


def _length(cache: Any) -> int:
    return 0 if cache is None else cache.get_seq_length()

"""A hand-written forward pass of Llama-shaped decoders: what a token costs beside its products.

RMSNorm, rotated positions, heads that share keys, a gated FFN; biases, norms of queries and keys,
norms behind attention and FFN, windows and bent scores where a family has them. It reads prompts,
further tokens over a cache, and one token a row. Sums along the layers are float32 whatever the
products are in. Between two products numba computes, in one call; until that is compiled, and where
numba is not installed, torch's operators do. What else is asked (padding, masks, positions of
one's own), transformers' pass answers.
"""

import os
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpmem.fast import attention
from mlpmem.fast.attention import GrowingLayer, growing_cache
from mlpmem.fast.devices import Decodes, calibrate, give_back
from mlpmem.fast.few_rows import FEW, FewRows, settle

if TYPE_CHECKING:
    from mlpmem.fast.step import Step

ACTS = {"silu": False, "gelu_pytorch_tanh": True, "gelu_new": True}  # whether it is GELU
STATIC = ("default", "linear", "llama3", "yarn")  # rotations that no length changes
DTYPES = (torch.float32, torch.bfloat16)
EAGER_CAP = "attn_logit_softcapping"
NOTHING = torch.empty(0)
COMPILE = "MLPMEM_COMPILE"  # in the environment, 0: torch's operators alone
_COMPILING = threading.Lock()


def has_numba() -> bool:
    """Return whether numba is installed; it is not imported."""
    return find_spec("numba") is not None


def compiles() -> bool:
    """Return whether kernels can be compiled here: numba is installed, and not switched off."""
    return has_numba() and os.environ.get(COMPILE) != "0"


class Norm(NamedTuple):
    """An RMSNorm: x / rms(x) * (one + weight)."""

    module: nn.Module
    eps: float
    one: float  # 1 in the Gemmas


class Layer(NamedTuple):
    """The parts of a decoder layer in the order they are used."""

    norm: Norm
    qkv: tuple[nn.Module, ...]  # D -> (H + 2 KV) size
    head_norms: tuple[Norm, Norm] | None  # of queries and keys
    out: nn.Module
    after: Norm | None  # behind attention
    ffn_norm: Norm
    gate_up: tuple[nn.Module, ...]  # D -> 2 I
    down: nn.Module
    ffn_after: Norm | None
    window: int  # positions seen at most, 0 for all
    rotation: str  # which of the tables, "" where there is one
    heads: tuple[int, int, int]  # H, KV, size
    scale: float  # of scores
    cap: float  # that scores are bent to, 0 for none


class LlamaPass:
    """A pass of one model, which it holds; nothing of a call is kept on it."""

    whole = True  # windows are cut out of caches that hold everything

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module], depth: int) -> None:
        """Take a model's parts; depth is the layer whose FFN input is returned."""
        self.model, config = model, model.config
        body = model.get_decoder()
        self.embed, self.rotary, self.head = body.embed_tokens, body.rotary_emb, model.lm_head
        self.norm = _norm(body.norm)
        self.layers = [_layer(layer, config) for layer in layers]
        self.depth = depth % len(self.layers)
        self.gelu = ACTS[_act(config)]
        self.cap = getattr(config, "final_logit_softcapping", None) or 0.0
        self.limit = _limit(config)
        self._tables: dict[str, tuple[Tensor, Tensor]] = {}
        self.operators: Any = Operators
        self.owner: Callable[[], Decodes | None] = lambda: None  # a weak reference
        self.step: Step | None = None  # of one token a row, once it is compiled

    @classmethod
    def of(cls, model: nn.Module, layers: Sequence[nn.Module], depth: int) -> "LlamaPass | None":
        """Return the pass of a Llama-shaped model with these layers, None if it is on no CPU.

        None, too, for one whose config asks for anything that is not written here.
        """
        config = model.config
        known = _act(config) in ACTS
        plain = not getattr(model, "hf_device_map", None) and model.device.type == "cpu"
        written = config._attn_implementation in ("sdpa", attention.NAME) or (
            config._attn_implementation == "eager" and hasattr(config, EAGER_CAP)
        )
        both = getattr(config, "use_bidirectional_attention", False)
        if not known or not plain or not written or both:
            return None
        return cls(model, layers, depth)

    def takes(self, model: nn.Module, ids: Tensor, cache: Any) -> bool:
        """Return whether ids (B, T) over a cache are a pass of this kind, of this model."""
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
        """Return whether a cache holds all that was read, layer by layer."""
        layers = getattr(cache, "layers", [])
        return len(layers) == len(self.layers) and all(type(x) is GrowingLayer for x in layers)

    def forward(self, ids: Tensor, cache: Any, last: int) -> tuple[Tensor, Tensor, Any]:
        """Return logits (B, T, V), hidden states (B, T, D) and the cache; as Decoder.forward does.

        T is `last` where last is not 0.
        """
        if ids.shape[1] == 1 and self.operators is Operators:
            self.compile_in_background()
        if ids.shape[1] == 1 and cache is not None and len(ids) <= FEW:
            step = self.step
            if step is not None and not step.holds():
                self.step = step = self._step()
            if step is not None:
                logits, hidden = step.run(ids, cache, torch.get_num_threads())
                return self._bent(logits), hidden, cache
        return self._forward(self.operators, ids, cache, last)

    def _forward(
        self, operators: Any, ids: Tensor, cache: Any, last: int
    ) -> tuple[Tensor, Tensor, Any]:
        """Return what forward does, by given operators."""
        rows, size = ids.shape
        past, kept, dtype = _length(cache), last or size, self.embed.weight.dtype
        x = self.embed(ids).float().view(rows * size, -1)
        delta, after, hidden = NOTHING, None, None
        for i, layer in enumerate(self.layers):
            h = operators.add_norm(x, delta, after, layer.norm, dtype)
            shape = rows, size, kept if i == len(self.layers) - 1 else size
            cached = None if cache is None else cache.layers[i]
            found = self._attend(operators, layer, h, cached, past, shape)
            if shape[2] < size:  # nothing reads the last layer's other positions
                x = x.view(rows, size, -1)[:, -kept:].reshape(rows * kept, -1)
            h = operators.add_norm(x, layer.out(found), layer.after, layer.ffn_norm, dtype)
            if i == self.depth:
                hidden = h.view(rows, -1, h.shape[1])[:, -kept:]
            delta = layer.down(operators.gate(_product(layer.gate_up, h), self.gelu))
            after = layer.ffn_after
        h = operators.add_norm(x, delta, after, self.norm, dtype)
        h = h.view(rows, -1, h.shape[1])[:, -kept:]
        head = self.head
        if isinstance(head, FewRows) and head.bias is None and head.counts(h):
            logits = head.exact(h)  # rounded to bfloat16, the best would often be equal
        else:
            logits = head(h)
        return self._bent(logits), hidden, cache

    def _bent(self, logits: Tensor) -> Tensor:
        """Return logits bent to below what the family bends them to."""
        return (logits / self.cap).tanh() * self.cap if self.cap else logits

    def _step(self) -> "Step | None":
        """Return the compiled step of all weights, None where one is in another form."""
        from mlpmem.fast.step import Step

        return Step.of(self)

    def _attend(
        self,
        operators: Any,
        layer: Layer,
        h: Tensor,
        cached: GrowingLayer | None,
        past: int,
        shape: tuple[int, int, int],
    ) -> Tensor:
        """Return what is attended to, (B kept, H D), of h (B T, D); shape is (B, T, kept)."""
        (rows, size, kept), (heads, kv_heads, width) = shape, layer.heads
        qkv = _product(layer.qkv, h).view(rows, size, -1)
        room = rows, kv_heads, size, width
        if cached is None:
            keys, values = (qkv.new_empty(room) for _ in range(2))
        else:
            keys, values = cached.extend(room, qkv.dtype)
        table = self.table(layer.rotation, past + size)
        step = kept == 1
        q = operators.rotate(qkv, layer, table, past, keys, values, step)[:, -kept:]
        first = max(0, past + size - layer.window) if layer.window and step else 0
        if step:
            return operators.attend(q[:, 0], keys, values, (first, past + size), layer, qkv.dtype)
        keys, values = keys[:, :, : past + size], values[:, :, : past + size]
        return _attend_many(q, keys, values, layer).reshape(rows * kept, heads * width)

    def compile_in_background(self) -> None:
        """Go over to compiled kernels as soon as they are there, where there can be any."""
        if compiles() and not _COMPILING.locked():
            threading.Thread(target=self._compile, name="compile", daemon=True).start()

    def _compile(self) -> None:
        """Compile in the background; where that fails, torch's operators go on."""
        try:
            self.compile()
            if (owner := self.owner()) is not None:
                calibrate(owner)
        except Exception as error:  # numba's and llvm's own, on machines they do not know
            sys.stderr.write(
                f"mlpmem: numba cannot compile here ({_first(error)}); slower without\n"
            )
            os.environ[COMPILE] = "0"

    def compile(self) -> None:
        """Compile every kernel for this model and use them, unless another thread has done it."""
        with _COMPILING:
            if self.operators is Operators:
                self._compile_all()

    @torch.inference_mode()
    def _compile_all(self) -> None:
        """Compile by one prompt and one step."""
        from mlpmem.fast.llama_kernels import Kernels
        from mlpmem.fast.step import product

        cache = growing_cache(self.model.config, whole=True)
        self._forward(Kernels, torch.zeros(1, 2, dtype=torch.long), cache, 0)
        token = torch.zeros(1, 1, dtype=torch.long)
        self._forward(Kernels, token, cache, 1)
        if (step := self._step()) is not None:
            step.run(token, cache, 2)
            for small in {type(m.small): m.small for m in _few_rows(self.model)}.values():
                product(small, torch.zeros(2, small.inputs))
            FewRows.product = staticmethod(product)
            settle(self.model)
        self.operators, self.step = Kernels, step
        give_back()

    def table(self, name: str, size: int) -> tuple[Tensor, Tensor]:
        """Return cos and sin (positions, R / 2) float32 of a rotation, for so many or more."""
        table = self._tables.get(name)
        if table is None or len(table[0]) < size:
            count = min(self.limit, 2 ** max(9, (size - 1).bit_length()))
            positions = torch.arange(count)[None]
            arguments = (name,) if name else ()
            with torch.inference_mode(False), torch.no_grad():
                both = self.rotary(torch.empty(0), positions, *arguments)
                table = tuple(part[0, :, : part.shape[2] // 2].contiguous() for part in both)
            self._tables[name] = table  # another thread's is as good
        return table


class Operators:
    """What stands between two products, by torch's operators; compiled in `Kernels`."""

    @staticmethod
    def add_norm(
        x: Tensor, delta: Tensor, after: Norm | None, norm: Norm, dtype: torch.dtype
    ) -> Tensor:
        """Add delta, behind a norm if there is one, to x (R, D) in place; return x normalised."""
        if len(delta):
            delta = delta.float()
            x += delta if after is None else _rms(delta, after)
        return _rms(x, norm).to(dtype)

    @staticmethod
    def gate(both: Tensor, gelu: bool) -> Tensor:
        """Return act(gate) * up (R, I) of both side by side (R, 2 I)."""
        first, second = both.float().chunk(2, dim=-1)
        bent = F.gelu(first, approximate="tanh") if gelu else F.silu(first)
        return (bent * second).to(both.dtype)

    @staticmethod
    def rotate(
        qkv: Tensor,
        layer: Layer,
        table: tuple[Tensor, Tensor],
        past: int,
        keys: Tensor,
        values: Tensor,
        step: bool,
    ) -> Tensor:
        """Return rotated queries (B, T, H, size) of qkv (B, T, all heads), keys and values stored.

        They are stored from `past` on; queries of a step are float32.
        """
        (rows, size, _), (heads, kv_heads, width) = qkv.shape, layer.heads
        every = qkv.view(rows, size, -1, width)
        turned = every[:, :, : heads + kv_heads].float()
        if layer.head_norms is not None:
            parts = turned.split([heads, kv_heads], dim=2)
            pairs = zip(parts, layer.head_norms, strict=True)
            turned = torch.cat([_rms(part, norm) for part, norm in pairs], dim=2)
        cos, sin = (part[past : past + size, None] for part in table)
        half = cos.shape[-1]
        a, b, rest = turned.split([half, half, width - 2 * half], dim=-1)
        turned = torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)
        place = slice(past, past + size)
        keys[:, :, place] = turned[:, :, heads:].transpose(1, 2)
        values[:, :, place] = every[:, :, heads + kv_heads :].transpose(1, 2)
        queries = turned[:, :, :heads]
        return queries if step else queries.to(keys.dtype)

    @staticmethod
    def attend(
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        span: tuple[int, int],
        layer: Layer,
        dtype: torch.dtype,
    ) -> Tensor:
        """Return what queries (B, H, size), one a row, attend to: (B, H size) in dtype."""
        keys, values = (x[:, :, slice(*span)].float() for x in (keys, values))
        return _attend_many(q[:, None], keys, values, layer._replace(window=0)).flatten(1).to(dtype)


def _attend_many(q: Tensor, keys: Tensor, values: Tensor, layer: Layer) -> Tensor:
    """Return what queries (B, Q, H, size) attend to, (B, Q, H, size).

    Keys and values are (B, KV, T, size); the queries are of the last Q of T positions.
    """
    query, (heads, kv_heads, _) = q.transpose(1, 2), layer.heads
    if heads != kv_heads:
        keys, values = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (keys, values))
    count, total = query.shape[2], keys.shape[2]
    mask, whole = None, count == total
    if count > 1 and (not whole or layer.cap or 0 < layer.window < total):
        distance = torch.arange(total - count, total)[:, None] - torch.arange(total)
        mask = distance >= 0
        if layer.window:
            mask &= distance < layer.window
    if not layer.cap:
        options = {"attn_mask": mask, "is_causal": mask is None and count > 1}
        found = F.scaled_dot_product_attention(query, keys, values, scale=layer.scale, **options)
        return found.transpose(1, 2)
    scores = (query.float() @ keys.float().transpose(2, 3)) * layer.scale
    scores = (scores / layer.cap).tanh() * layer.cap
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ values.float()).to(values.dtype).transpose(1, 2)


def _rms(x: Tensor, norm: Norm) -> Tensor:
    """Return x (..., D) float32 normalised."""
    weight = norm.module.weight.float()
    return F.rms_norm(x, weight.shape, weight + norm.one if norm.one else weight, norm.eps)


def _product(parts: tuple[nn.Module, ...], x: Tensor) -> Tensor:
    """Return the products of x (R, D) with every part, side by side."""
    found = [part(x) for part in parts]
    return found[0] if len(found) == 1 else torch.cat(found, dim=-1)


def _few_rows(model: nn.Module) -> list[FewRows]:
    """Return the layers that have a small form."""
    return [module for module in model.modules() if isinstance(module, FewRows)]


def _first(error: Exception) -> str:
    """Return the first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _length(cache: Any) -> int:
    """Return how many tokens a cache holds, 0 for None."""
    return 0 if cache is None else cache.get_seq_length()


def _act(config: Any) -> str:
    """Return the name of the FFN's activation."""
    return getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", "")


def _limit(config: Any) -> int:
    """Return how many positions the rotation's tables are right for."""
    ropes = config.rope_parameters
    ropes = [ropes] if "rope_type" in ropes else list(ropes.values())
    most = int(config.max_position_embeddings)
    if all(rope.get("rope_type", "default") in STATIC for rope in ropes):
        return most
    return int(getattr(config, "original_max_position_embeddings", None) or 0)


def _norm(module: nn.Module) -> Norm:
    """Return an RMSNorm of transformers'."""
    eps = getattr(module, "variance_epsilon", None) or module.eps
    return Norm(module, eps, 1.0 if type(module).__name__.startswith("Gemma") else 0.0)


def _layer(layer: nn.Module, config: Any) -> Layer:
    """Return the parts of a layer."""
    attend, ffn = layer.self_attn, layer.mlp
    sides = hasattr(layer, "pre_feedforward_layernorm")  # norms on both sides of attention and FFN
    size = attend.head_dim
    heads = config.num_attention_heads, config.num_key_value_heads, size
    separate = hasattr(attend, "q_proj")
    window = getattr(attend, "sliding_window", None)
    if config.model_type in ("mistral", "phi3"):
        window = config.sliding_window
    rotation = attend.layer_type if config.model_type == "gemma3_text" else ""
    return Layer(
        norm=_norm(layer.input_layernorm),
        qkv=(attend.q_proj, attend.k_proj, attend.v_proj) if separate else (attend.qkv_proj,),
        head_norms=(_norm(attend.q_norm), _norm(attend.k_norm))
        if hasattr(attend, "q_norm")
        else None,
        out=attend.o_proj,
        after=_norm(layer.post_attention_layernorm) if sides else None,
        ffn_norm=_norm(
            layer.pre_feedforward_layernorm if sides else layer.post_attention_layernorm
        ),
        gate_up=(ffn.gate_up_proj,)
        if hasattr(ffn, "gate_up_proj")
        else (ffn.gate_proj, ffn.up_proj),
        down=ffn.down_proj,
        ffn_after=_norm(layer.post_feedforward_layernorm) if sides else None,
        window=window or 0,
        rotation=rotation,
        heads=heads,
        scale=float(attend.scaling),
        cap=float(getattr(attend, EAGER_CAP, None) or 0.0),
    )

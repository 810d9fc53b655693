"""The frozen decoder: token ids -> logits, hidden states at one depth, cache.

The hidden state is the input of the FFN of layer `depth` (post-norm), see capture.py. With a
`context`, the context vectors follow it (context.py). Texts are in texts.py; training and
generation are elsewhere.
"""

import weakref
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mlpmem.errors import MlpMemError
from mlpmem.fast import attention
from mlpmem.fast.compiling import compiles
from mlpmem.fast.devices import first_device, spread, threads_for
from mlpmem.fast.few_rows import small_forms
from mlpmem.fast.gpt2_pass import Gpt2Pass
from mlpmem.fast.linear import bytes_of, pack
from mlpmem.fast.llama_layers import Recalled
from mlpmem.fast.llama_pass import LlamaPass
from mlpmem.fast.packed import PackedLinear
from mlpmem.fast.small_products import SmallProducts
from mlpmem.formats import check_gguf, is_gguf
from mlpmem.model.capture import capture, run
from mlpmem.model.context import Context, ContextLayer, take_layer
from mlpmem.model.decoder_files import check_numbers, check_tokenizer, read_folder, reading
from mlpmem.model.families import (
    family_in,
    family_of,
    ffn_at,
    layers_of,
    logit_divisor,
    uses_alibi,
)
from mlpmem.model.gguf.assemble import load_gguf
from mlpmem.model.texts import Texts

# hand-written passes by the name in a family's row
PASSES: dict[str, type[Gpt2Pass | LlamaPass]] = {"gpt2": Gpt2Pass, "llama": LlamaPass}
PROBE = "The capital of Peru is Lima, and most people there live near the sea. In 1535 it was"


class DecoderOutput(NamedTuple):
    """The results of one forward pass."""

    logits: Tensor | None  # (B, T, V), or (B, 1, V) of the last position
    hidden: Tensor  # (B, T, K), or (B, 1, K): the hidden state (D), then any context vectors
    cache: Any  # transformers' Cache, or None
    recalled: Recalled | None = None  # of a memory, if it was computed too
    scores: Tensor | None = None  # (2, B, scored) log-probs by decoder and memory, likewise

    def states(self, index: Any) -> tuple[Tensor, Tensor]:
        """Return hidden states and logits at an index of (B, T)."""
        assert self.logits is not None, "the pass computed only hidden states"
        return self.hidden[index], self.logits[index]


class Decoder(Texts):
    """A frozen causal language model in eval mode."""

    def __init__(self, model: nn.Module, tokenizer: Any, depth: int = -1) -> None:
        """Freeze the model and hook the FFN at depth; MlpMemError for an invalid depth."""
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.family = family_of(model.config.model_type)
        self.num_layers = len(layers_of(model, self.family))
        self.folder: Path | None = None  # it was read from
        ffn = ffn_at(model, self.family, depth)
        self.depth = depth
        # threads on a CPU; 0 is torch's own number, see fast/devices.py
        self.threads = self.all_threads = 0
        # the hand-written pass, if the family has one for weights in this form
        self.fast_pass: Gpt2Pass | LlamaPass | None = None
        self.products: SmallProducts | None = None  # of a family without a compiled step
        self.kl = 0.0  # nats, between the logits before and after rounding weights, on PROBE
        self.context: Context | None = None  # the context vectors that follow hidden states
        self._hook = ffn.register_forward_pre_hook(capture)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        depth: int = -1,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> "Decoder":
        """Return the decoder of a transformers folder or GGUF file.

        Weights are safetensors or else .bin files with only tensors. device "auto" uses every GPU.
        loading/hub.py downloads Hub ids. An unknown family raises MlpMemError before weights are
        read.
        """
        folder = Path(folder)
        check_gguf(folder)
        if is_gguf(folder):
            model, tokenizer = load_gguf(folder, dtype)
            check_tokenizer(tokenizer, folder)
            check_numbers(model, folder)
            return cls._from(folder, model.to(first_device(device)), tokenizer, depth)
        spread_options = spread(device)
        if not folder.is_dir():
            raise MlpMemError(
                f"decoder: {str(folder)!r} is not a folder; check the path, or fetch a Hub id first"
            )
        family = family_in(folder)
        model, tokenizer = read_folder(folder, family, dtype=dtype, **spread_options)
        model = model if spread_options else model.to(first_device(device))
        return cls._from(folder, model, tokenizer, depth)

    @classmethod
    def _from(cls, folder: Path, model: nn.Module, tokenizer: Any, depth: int) -> "Decoder":
        """Return the decoder of a loaded model.

        Tokenizer and config values are used once, so that invalid ones raise MlpMemError now.
        """
        decoder = cls(model, tokenizer, depth)
        decoder.folder = folder
        with reading(folder):
            tokenizer("a", add_special_tokens=False)
            tokenizer.convert_ids_to_tokens([*decoder.eos_ids, *decoder.special_ids])
            decoder.decode(decoder.encode("a"))
            if decoder.max_positions < 1:
                raise ValueError(f"it reads {decoder.max_positions} positions")
        return decoder

    def pack(self, bits: int = 0) -> None:
        """Lay weights out for decoding on this CPU, see linear.pack, and use the fast pass.

        A compiled step reads plain float32, so such weights stay plain. `kl` measures 8 or 4 bits.
        """
        before = self._probe() if bits else None
        if bits or not self.is_plain():
            self.fast_pass = None  # it refers to the layers that are replaced
            pack(self.model, bits, self.can_compile)
        attention.use(self.model)
        self.use_fast_pass()
        if before is not None:
            with small_forms(self.model):
                after = self._probe()
            self.kl = float((before.exp() * (before - after)).sum(-1).mean())
        if not bits:
            return
        compiled: LlamaPass | SmallProducts | None
        if isinstance(self.fast_pass, LlamaPass):
            compiled = self.fast_pass
        else:
            compiled = self.products = SmallProducts.of(self.model, weakref.ref(self))
        if compiled is not None:
            compiled.compile_if_cached()  # frees a form that the first answer would use

    def is_plain(self) -> bool:
        """Return whether compiled code reads these weights, so that they need not be packed."""
        return self.can_compile and self.model.dtype == torch.float32

    @property
    def can_compile(self) -> bool:
        """Return whether code can be compiled for this family on this machine."""
        return isinstance(self._find_pass(), LlamaPass) and compiles()

    @property
    def is_compiled(self) -> bool:
        """Return whether a token is decoded by compiled code, with threads of its own."""
        if self.products is not None:
            return self.products.ready
        return isinstance(self.fast_pass, LlamaPass) and self.fast_pass.step is not None

    def use_fast_pass(self) -> None:
        """Use the family's hand-written pass from now on, if it supports these weights."""
        if self.fast_pass is None:
            self.fast_pass = self._find_pass()

    def _find_pass(self) -> Gpt2Pass | LlamaPass | None:
        """Return the hand-written pass for the current weights, None if there is none."""
        if (kind := PASSES.get(self.family.short_pass)) is None:
            return None
        fast_pass = kind.of(self.model, layers_of(self.model, self.family), self.depth)
        if isinstance(fast_pass, LlamaPass):
            fast_pass.owner = weakref.ref(self)
        return fast_pass

    def _probe(self) -> Tensor:
        """Return log-probs (T, V) of PROBE."""
        ids = torch.tensor([self.encode(PROBE)])
        return self.forward(ids).logits[0].float().log_softmax(-1)

    @property
    def device(self) -> torch.device:
        """Return the device of token ids and hidden states."""
        return self.model.get_input_embeddings().weight.device

    @property
    def hidden_size(self) -> int:
        """Return D, of the layers (embeddings may be narrower)."""
        return self.model.config.hidden_size

    @property
    def state_size(self) -> int:
        """Return K, of what `forward` returns as hidden: D, and D more per context vector."""
        vectors = self.context.vectors if self.context is not None else 0
        return self.hidden_size * (1 + vectors)

    @property
    def half_lives(self) -> tuple[float, ...]:
        """Return the half-lives of the context vectors in tokens, () without any."""
        return self.context.half_lives if self.context is not None else ()

    @property
    def vocab_size(self) -> int:
        """Return V, the number of logits (the tokenizer may know fewer tokens)."""
        head = self.model.get_output_embeddings()
        # of a small form alone, there is no weight
        return (head.shape if isinstance(head, PackedLinear) else head.weight.shape)[0]

    @property
    def head_weight(self) -> Tensor:
        """Return the weight of the output head, (V, D), as a plain tensor."""
        head = self.model.get_output_embeddings()
        return head.dense() if isinstance(head, PackedLinear) else head.weight

    @property
    def logit_divisor(self) -> float:
        """Return the divisor from head_weight's products to logits, usually 1."""
        return logit_divisor(self.model.config, self.family)

    @property
    def uses_alibi(self) -> bool:
        """Return whether attention uses row positions (ALiBi), so a row holds one text only."""
        return uses_alibi(self.model.config, self.family)

    @property
    def max_positions(self) -> int:
        """Return the longest sequence in tokens."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 2**31)

    @property
    def bytes(self) -> int:
        """Return the size of the weights, each counted once."""
        return bytes_of(self.model)

    @cached_property
    def gguf_sha256(self) -> str:
        """Return the sha256 of the GGUF file that the weights come from, "" for other decoders.

        The config of a folder may name a file, whose weights the folder has.
        """
        if (file := getattr(self.model, "gguf", None)) is not None:
            return file.sha256()
        return str(getattr(self.model.config, "gguf_sha256", ""))

    @torch.inference_mode()
    def forward(
        self,
        ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        use_cache: bool = False,
        last: int = 0,
        head: bool = True,
        memory: Any = None,
        scored: int = 0,
    ) -> DecoderOutput:
        """Return logits and hidden states of ids (B, T).

        attention_mask (B, past + T) is 0 on padding; by default, positions follow from it. A bool
        mask (B, 1, T, T) is True where a query sees a key. The cache is extended in place. last > 0
        returns only that many last positions. head=False stops at the hidden state, without logits
        and cache, and saves the time of later layers. A compiled step computes the logits of a
        bound memory too, for less than one after the other. With `last`, so many positions before
        those are `scored`: the log-probs of the tokens after them are returned if a compiled step
        computes both decoder and memory, and otherwise the positions with the others.
        """
        if cache is None and use_cache and head:
            grow_windows = self.fast_pass is not None and self.fast_pass.grow_windows
            cache = attention.growing_cache(self.model.config, grow_windows)
        layer = take_layer(cache) if self.context is not None else None
        try:
            words = self._words(ids.to(self.device), attention_mask, layer)
            asked = last, head, memory, words, scored
            output = self._run(ids, attention_mask, position_ids, cache, *asked)
        finally:
            if layer is not None:
                cache.layers.append(layer)
        if words is None:
            return output
        words = words[:, words.shape[1] - output.hidden.shape[1] :].to(output.hidden)
        return output._replace(hidden=torch.cat([output.hidden, words], -1))

    def _words(self, ids: Tensor, mask: Tensor | None, layer: ContextLayer | None) -> Tensor | None:
        """Return the context vectors of ids (B, T), None without a context; see Context.read."""
        if self.context is None:
            return None
        return self.context.read(self.model.get_input_embeddings()(ids), ids, mask, layer)

    def _run(
        self,
        ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Any,
        last: int,
        head: bool,
        memory: Any,
        words: Tensor | None,
        scored: int,
    ) -> DecoderOutput:
        """Return the output of `forward` without the context vectors, which a memory may read."""
        if self.products is not None and ids.shape[1] == 1:
            self.products.compile_in_background(memory)
        plain = head and attention_mask is None and position_ids is None
        if plain and self.fast_pass is not None and self.fast_pass.accepts(self.model, ids, cache):
            with threads_for(self, ids.numel()):
                asked = last, memory, words, scored
                return DecoderOutput(*self.fast_pass.forward(ids, cache, *asked))
        last = last and last + scored
        with threads_for(self, ids.numel()):
            return DecoderOutput(
                *run(self.model, ids, attention_mask, position_ids, cache, last, head)
            )

"""The frozen decoder: token ids -> logits, hidden states at one depth, cache; text <-> token ids.

The hidden state is what enters the FFN of layer `depth` (post-norm), caught by a permanent hook
that writes into a ContextVar: nothing of a call is ever kept on the decoder. It is not a trainer
and not a generator.
"""

import weakref
from collections.abc import Sequence
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mlpmem.errors import MlpMemError
from mlpmem.fast import attention
from mlpmem.fast.devices import first_device, spread, threads_for
from mlpmem.fast.gpt2_pass import Gpt2Pass
from mlpmem.fast.linear import bytes_of, pack
from mlpmem.fast.llama_pass import LlamaPass, compiles
from mlpmem.formats import is_gguf
from mlpmem.model.decoder_files import check_numbers, check_tokenizer, read_folder, reading
from mlpmem.model.families import (
    counts_places,
    family_in,
    family_of,
    ffn_at,
    layers_of,
    logit_divisor,
)
from mlpmem.model.gguf_model import load_gguf
from mlpmem.model.tokenizer import (
    encode_text,
    special_ids,
    token_bytes,
    tokenizer_hash,
    turn_ends,
)

# hand-written passes, by the name that a family's row gives
PASSES: dict[str, type[Gpt2Pass | LlamaPass]] = {"gpt2": Gpt2Pass, "llama": LlamaPass}
PROBE = "The capital of Peru is Lima, and most people there live near the sea. In 1535 it was"


class _Catch:
    """Where one forward pass puts the hidden state, and whether it goes on after that."""

    def __init__(self, go_on: bool) -> None:
        """Begin empty."""
        self.go_on = go_on
        self.hidden: Tensor | None = None


class _Enough(Exception):
    """Ends a forward pass of which only the hidden state is wanted."""


_CATCH: ContextVar[_Catch | None] = ContextVar("catch", default=None)


class DecoderOutput(NamedTuple):
    """What one forward pass gives."""

    logits: Tensor | None  # (B, T, V), or (B, 1, V) of the last position
    hidden: Tensor  # (B, T, D), or (B, 1, D)
    cache: Any  # transformers' Cache, or None

    def states(self, index: Any) -> tuple[Tensor, Tensor]:
        """Return hidden states and logits at an index of (B, T)."""
        assert self.logits is not None, "the pass was asked for hidden states only"
        return self.hidden[index], self.logits[index]


class Decoder:
    """A causal language model in eval mode whose weights ask for no gradient."""

    def __init__(self, model: nn.Module, tokenizer: Any, depth: int = -1) -> None:
        """Freeze the model and hook the FFN at depth; MlpMemError for a depth it lacks."""
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.family = family_of(model.config.model_type)
        self.num_layers = len(layers_of(model, self.family))
        self.folder: Path | None = None  # where it was read from
        ffn = ffn_at(model, self.family, depth)
        self.depth = depth
        self.threads = self.all_threads = 0  # of a CPU, 0 torch's own number; see fast/devices.py
        # a pass of fewer steps, where the family has one for weights as they are held
        self.fast_pass: Gpt2Pass | LlamaPass | None = None
        self.kl = 0.0  # nats that rounding to 4 bits moved the logits by, on a few words
        self._hook = ffn.register_forward_pre_hook(_catch)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        depth: int = -1,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> "Decoder":
        """Return the decoder of a transformers folder or GGUF file; loading/hub.py fetches others.

        Weights are safetensors or, where there are none, .bin files of tensors only. device "auto"
        is every GPU that there is. MlpMemError before weights are read for a family not known.
        """
        folder = Path(folder)
        if is_gguf(folder):
            model, tokenizer = load_gguf(folder, dtype)
            check_tokenizer(tokenizer, folder)
            check_numbers(model, folder)
            return cls._from(folder, model.to(first_device(device)), tokenizer, depth)
        places = spread(device)
        if not folder.is_dir():
            raise MlpMemError(
                f"decoder: {str(folder)!r} is not a folder; check the path, or fetch a Hub id first"
            )
        family = family_in(folder)
        model, tokenizer = read_folder(folder, family, dtype=dtype, **places)
        placed = model if places else model.to(first_device(device))
        return cls._from(folder, placed, tokenizer, depth)

    @classmethod
    def _from(cls, folder: Path, model: nn.Module, tokenizer: Any, depth: int) -> "Decoder":
        """Return the decoder of a model that was read from a folder or file.

        What its tokenizer and configs say is used once: what cannot be used is told here.
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
        """Lay weights out for decoding on this CPU; see linear.pack. A family may have a pass.

        Plain float32 is what a compiled step reads. What 4 bits change is kept as `kl`.
        """
        before = self._probed() if bits == 4 else None
        steps = isinstance(self._pass(), LlamaPass) and compiles()
        if bits or not steps or self.model.dtype != torch.float32:
            self.fast_pass = None  # it holds the layers that are replaced
            pack(self.model, bits)
        attention.use(self.model)
        self.shorten()
        if before is not None:
            self.kl = float((before.exp() * (before - self._probed())).sum(-1).mean())

    def shorten(self) -> None:
        """Answer by the family's hand-written pass from now on, where it reads these weights."""
        if self.fast_pass is None:
            self.fast_pass = self._pass()

    def _pass(self) -> Gpt2Pass | LlamaPass | None:
        """Return the hand-written pass of the weights as they are, None where there is none."""
        if (made := PASSES.get(self.family.short_pass)) is None:
            return None
        found = made.of(self.model, layers_of(self.model, self.family), self.depth)
        if isinstance(found, LlamaPass):
            found.owner = weakref.ref(self)
        return found

    def _probed(self) -> Tensor:
        """Return log-probs (T, V) over a few words."""
        ids = torch.tensor([self.encode(PROBE)])
        return self.forward(ids).logits[0].float().log_softmax(-1)

    @property
    def device(self) -> torch.device:
        """Return where token ids go in and hidden states come out; the weights, where it is one."""
        return self.model.get_input_embeddings().weight.device

    @property
    def hidden_size(self) -> int:
        """Return D, of the layers (embeddings may be narrower)."""
        return self.model.config.hidden_size

    @property
    def vocab_size(self) -> int:
        """Return V, the number of logits (the tokenizer may know fewer tokens)."""
        return self.model.get_output_embeddings().weight.shape[0]

    @property
    def head_weight(self) -> Tensor:
        """Return the weight of the output head, (V, D)."""
        return self.model.get_output_embeddings().weight

    @property
    def logit_divisor(self) -> float:
        """Return what head_weight's products are divided by to give logits, usually 1."""
        return logit_divisor(self.model.config, self.family)

    @property
    def counts_places(self) -> bool:
        """Return whether attention counts places in a row, so that a row holds one text only."""
        return counts_places(self.model.config, self.family)

    @property
    def max_positions(self) -> int:
        """Return the longest sequence the decoder was made for, in tokens."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 2**31)

    @property
    def bytes(self) -> int:
        """Return the size of the weights, each counted once."""
        return bytes_of(self.model)

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Return the token ids that end a text or a turn, of all that name some.

        These are generation config, config, tokenizer and chat template.
        """
        found: set[int] = set(turn_ends(self.tokenizer))
        for config in (self.model.generation_config, self.model.config, self.tokenizer):
            named = getattr(config, "eos_token_id", None)
            found |= {named} if isinstance(named, int) else set(named or ())
        return frozenset(found)

    @cached_property
    def tokenizer_hash(self) -> str:
        """Return a sha256 over vocabulary and merges: equal for tokenizers that cut text alike."""
        return tokenizer_hash(self.tokenizer)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """Return the UTF-8 bytes of every token id, (V,)."""
        return token_bytes(self.tokenizer, self.vocab_size)

    @cached_property
    def pieces(self) -> list[str]:
        """Return a displayable text of every token id, (V,); undecodable bytes are U+FFFD."""
        return [piece.decode("utf-8", "replace") for piece in self.token_bytes]

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Return the token ids that are not text."""
        return special_ids(self.tokenizer)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Return the token ids of text, with BOS where the tokenizer adds one.

        Control tokens that the text spells are text, unless special is True.
        """
        ids = encode_text(self.tokenizer, text, add_special_tokens=True, special=special)
        if special and self._bos_twice(ids):
            return ids[1:]
        return ids

    def _bos_twice(self, ids: list[int]) -> bool:
        """Return whether a text spelled the BOS that the tokenizer adds."""
        bos = self.tokenizer.bos_token_id
        return bos is not None and ids[:2] == [bos, bos]

    def spelled(self, ids: Sequence[int]) -> str:
        """Return the text of token ids as they are read, control tokens by their names."""
        return b"".join(self.token_bytes[i] for i in ids).decode("utf-8", "replace")

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        kept = (self.token_bytes[i] for i in ids if i not in self.special_ids)
        return b"".join(kept).decode("utf-8", "replace")

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
    ) -> DecoderOutput:
        """Return logits and hidden states of ids (B, T).

        attention_mask (B, past + T) is 0 on padding; the positions follow from it unless given. A
        bool one (B, 1, T, T) says who attends to whom.
        The cache is extended in place. last > 0 gives that many last positions alone. head=False
        stops where the hidden state is caught: no logits, no cache, and no time for what comes
        after.
        """
        if cache is None and use_cache and head:
            from mlpmem.fast.attention import growing_cache

            grow_windows = self.fast_pass is not None and self.fast_pass.grow_windows
            cache = growing_cache(self.model.config, grow_windows)
        plain = head and attention_mask is None and position_ids is None
        if plain and self.fast_pass is not None and self.fast_pass.accepts(self.model, ids, cache):
            with threads_for(self, ids.numel()):
                return DecoderOutput(*self.fast_pass.forward(ids, cache, last))
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        if attention_mask is not None and attention_mask.dim() == 4:
            attention_mask = added_mask(self.model, attention_mask)
        catch = _Catch(go_on=head)
        token = _CATCH.set(catch)
        output = None
        try:
            with threads_for(self, ids.numel()):
                output = self.model(
                    input_ids=ids.to(self.device),
                    attention_mask=attention_mask,
                    position_ids=position_ids,
                    past_key_values=cache,
                    use_cache=cache is not None,
                    return_dict=True,
                    logits_to_keep=last,
                )
        except _Enough:
            pass
        finally:
            _CATCH.reset(token)
        hidden = catch.hidden.view(*ids.shape, -1).to(self.device)
        return DecoderOutput(
            output.logits if output is not None else None,
            hidden[:, -last:],
            output.past_key_values if output is not None else None,
        )


def added_mask(model: nn.Module, mask: Tensor) -> Tensor:
    """Return a bool mask (B, 1, T, T) as the model's attention takes it.

    Where attention is written out ("eager", all that Gemma 2 has) masks are added to the scores.
    A decoder that counts places in a row knows no such mask.
    """
    if model.config._attn_implementation != "eager":
        return mask
    return torch.zeros_like(mask, dtype=model.dtype).masked_fill(
        ~mask, torch.finfo(model.dtype).min
    )


def _catch(module: nn.Module, args: tuple) -> None:
    """Keep the FFN's input for the caller of this pass, where one asked."""
    catch = _CATCH.get()
    if catch is None:
        return
    catch.hidden = args[0]
    if not catch.go_on:
        raise _Enough

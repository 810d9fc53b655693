"""The frozen decoder: token ids -> logits, hidden states at one depth, cache; text <-> token ids.

The hidden state is what enters the FFN of layer `depth` (post-norm), caught by a permanent hook
that writes into a ContextVar: nothing of a call is ever kept on the decoder. It is not a trainer
and not a generator.
"""

from collections.abc import Collection
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mlpmem.errors import MlpMemError
from mlpmem.fast.devices import first_device, spread, threads_for
from mlpmem.fast.gpt2_pass import Straight
from mlpmem.fast.linear import bytes_of
from mlpmem.fast.llama_pass import LlamaPass
from mlpmem.formats import is_gguf, valid
from mlpmem.loading.hub import Tell, fetch
from mlpmem.model.families import family_of, ffn_at, layers_of
from mlpmem.model.gguf_model import load_gguf
from mlpmem.model.tokenizer import load_tokenizer, token_bytes, tokenizer_hash


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


class Decoder:
    """A causal language model in eval mode whose weights ask for no gradient."""

    def __init__(self, model: nn.Module, tokenizer: Any, depth: int = -1) -> None:
        """Freeze the model and hook the FFN at depth; MlpMemError for a depth it lacks."""
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.family = family_of(model.config.model_type)
        self.num_layers = len(layers_of(model, self.family))
        ffn = ffn_at(model, self.family, depth)
        self.depth = depth
        self.threads = self.all_threads = 0  # of a CPU, 0 torch's own number; see fast/devices.py
        self.straight: Straight | LlamaPass | None = (
            None  # a pass of fewer steps, where the family has one
        )
        self.kl = 0.0  # nats that rounding to 4 bits moved the logits by, on a few words
        self._hook = ffn.register_forward_pre_hook(_catch)

    @classmethod
    def load(
        cls,
        path_or_id: str | Path,
        *,
        depth: int = -1,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        local_files_only: bool = False,
        tell: Tell | None = None,
    ) -> "Decoder":
        """Return the decoder of a transformers folder or GGUF file, or of a hub id, fetched.

        Weights are safetensors or, where there are none, .bin files of tensors alone. device "auto"
        is every GPU that there is; see placement.
        """
        from transformers import AutoModelForCausalLM

        if is_gguf(path_or_id):
            model, tokenizer = load_gguf(path_or_id, dtype)
            return cls(model.to(first_device(device)), tokenizer, depth)
        folder = fetch(
            path_or_id, "decoder", revision=revision, local_files_only=local_files_only, tell=tell
        )
        options = {"trust_remote_code": False, "local_files_only": True}
        places = spread(device)
        try:
            tokenizer = load_tokenizer(str(folder), **options)
            model, read = AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=dtype,
                weights_only=True,
                output_loading_info=True,
                **options,
                **places,
            )
            check_complete(read["missing_keys"])
        except Exception as error:  # readers of damaged files raise errors of their own
            name = Path(path_or_id).name if Path(path_or_id).exists() else str(path_or_id)
            raise MlpMemError(
                f"decoder: cannot load {name!r} ({_first_line(error)}); give a "
                "transformers folder with config.json, model.safetensors (or pytorch_model.bin) "
                "and a tokenizer, or a hub id"
            ) from error
        return cls(model if places else model.to(first_device(device)), tokenizer, depth)

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
    def max_positions(self) -> int:
        """Return the longest sequence the decoder was made for, in tokens."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 2**31)

    @property
    def bytes(self) -> int:
        """Return the size of the weights, each counted once."""
        return bytes_of(self.model)

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Return the token ids that end a text."""
        found = self.model.generation_config.eos_token_id
        if found is None:
            found = self.tokenizer.eos_token_id
        return frozenset([] if found is None else [found] if isinstance(found, int) else found)

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
        return frozenset(self.tokenizer.all_special_ids)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of text, with BOS where the tokenizer adds one."""
        return self.tokenizer.encode(valid(text), verbose=False)

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

            whole = self.straight is not None and self.straight.whole
            cache = growing_cache(self.model.config, whole)
        plain = head and attention_mask is None and position_ids is None
        if plain and self.straight is not None and self.straight.takes(self.model, ids, cache):
            with threads_for(self, ids.numel()):
                return DecoderOutput(*self.straight.forward(ids, cache, last))
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
    """
    if model.config._attn_implementation != "eager":
        return mask
    return torch.zeros_like(mask, dtype=model.dtype).masked_fill(
        ~mask, torch.finfo(model.dtype).min
    )


def check_complete(missing: Collection[str]) -> None:
    """Raise MlpMemError where weights were missing, which transformers would make up at random."""
    if missing:
        raise MlpMemError(
            f"it lacks {len(missing)} weights, such as {min(missing)}; if it is a memory, give it "
            "as one"
        )


def _catch(module: nn.Module, args: tuple) -> None:
    """Keep the FFN's input for the caller of this pass, where one asked."""
    catch = _CATCH.get()
    if catch is None:
        return
    catch.hidden = args[0]
    if not catch.go_on:
        raise _Enough


def _first_line(error: Exception) -> str:
    """Return the first line of an error's text, cut at 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

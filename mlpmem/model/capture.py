"""A pass of transformers' own model that also gives the hidden state before one FFN.

A permanent hook writes the state into a ContextVar, so the decoder keeps no state of a call.
"""

from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn


class _Capture:
    """The hidden state of one forward pass, and whether the pass continues after it."""

    def __init__(self, go_on: bool) -> None:
        self.go_on = go_on
        self.hidden: Tensor | None = None


class _Captured(Exception):
    """Ends a forward pass once the hidden state is captured."""


_CAPTURE: ContextVar[_Capture | None] = ContextVar("capture", default=None)


def run(
    model: nn.Module,
    ids: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cache: Any,
    last: int,
    head: bool,
) -> tuple[Tensor | None, Tensor, Any]:
    """Return logits, hidden states and the cache of the `last` positions of ids (B, T), or of all.

    The FFN that states come from has the hook `capture`. See Decoder.forward for the arguments.
    """
    device = model.get_input_embeddings().weight.device
    if position_ids is None and attention_mask is not None:
        position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    if attention_mask is not None and attention_mask.dim() == 4:
        attention_mask = added_mask(model, attention_mask)
    captured = _Capture(go_on=head)
    token = _CAPTURE.set(captured)
    logits = None
    try:
        output = model(
            input_ids=ids.to(device),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
            return_dict=True,
            logits_to_keep=last,
        )
        logits, cache = output.logits, output.past_key_values
    except _Captured:
        cache = None
    finally:
        _CAPTURE.reset(token)
    assert captured.hidden is not None, "the hook ran"
    hidden = captured.hidden.view(*ids.shape, -1).to(device)
    return logits, hidden[:, -last:], cache


def added_mask(model: nn.Module, mask: Tensor) -> Tensor:
    """Return a bool mask (B, 1, T, T) in the form that the model's attention needs.

    "eager" attention (the only one of Gemma 2) adds masks to the scores. A decoder with ALiBi does
    not support such masks.
    """
    if model.config._attn_implementation != "eager":
        return mask
    return torch.zeros_like(mask, dtype=model.dtype).masked_fill(
        ~mask, torch.finfo(model.dtype).min
    )


def capture(module: nn.Module, args: tuple) -> None:
    """Store the FFN's input for the caller of this pass."""
    captured = _CAPTURE.get()
    if captured is None:
        return
    captured.hidden = args[0]
    if not captured.go_on:
        raise _Captured

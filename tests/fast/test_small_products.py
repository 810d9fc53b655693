"""Families without a compiled step use compiled products of 4-bit weights, which are held once."""

import threading

import pytest
import tiny
import torch

from mlpmem.api import Model
from mlpmem.fast import few_rows
from mlpmem.fast.compiling import PRODUCTS
from mlpmem.fast.few_rows import FewRows, small_forms
from mlpmem.fast.small_products import SmallProducts
from mlpmem.model.decoder import PROBE

pytestmark = tiny.needs_ops
IDS = torch.tensor([[0, 9, 40, 7, 12, 90]])
FAMILIES = ("gpt2", "gpt_neox", "falcon", "bloom", "phi", "opt")


@pytest.fixture
def compiling(monkeypatch):
    """Compile in this process, and hold no packed form once that is done."""
    pytest.importorskip("numba")
    monkeypatch.setenv("MLPMEM_COMPILE", "1")
    monkeypatch.setattr(FewRows, "product", None)
    monkeypatch.setattr(few_rows, "SLACK", float("inf"))
    monkeypatch.setattr("mlpmem.fast.small_products.is_cached", lambda name: False)


def packed(family: str):
    """Return (a decoder in 4 bits, its log-probs of PROBE before that)."""
    decoder = tiny.decoder(family)
    decoder.model.to(torch.bfloat16)
    before = log_probs(decoder)
    decoder.pack(4)
    return decoder, before


def log_probs(decoder) -> torch.Tensor:
    ids = torch.tensor([decoder.encode(PROBE)])
    return decoder.forward(ids).logits[0].float().log_softmax(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_products_equal_the_small_forms_and_hold_weights_once(compiling, family):
    decoder, before = packed(family)
    assert isinstance(decoder.products, SmallProducts) and not decoder.is_compiled
    layers = [layer for layer in decoder.model.modules() if isinstance(layer, FewRows)]
    assert layers
    with small_forms(decoder.model):
        wanted = decoder.forward(IDS).logits.log_softmax(-1)
    held = decoder.bytes
    decoder.products.compile()
    assert decoder.is_compiled and all(layer.is_released for layer in layers if layer.packed)
    small = sum(layer.small.bytes for layer in layers)
    assert small < decoder.bytes < held
    found = decoder.forward(IDS).logits.log_softmax(-1)
    torch.testing.assert_close(found.float(), wanted.float(), rtol=0, atol=0.1)
    after = log_probs(decoder)
    kl = float((before.exp() * (before - after)).sum(-1).mean())
    assert kl == pytest.approx(decoder.kl, rel=0.3, abs=2e-3), "the start prints what answers have"
    assert decoder.vocab_size == len(decoder.tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_after_a_prompt_equal_the_whole_text(compiling, family):
    decoder, _ = packed(family)
    decoder.products.compile()
    whole = decoder.forward(IDS).logits
    read = decoder.forward(IDS[:, :3], use_cache=True)
    for i in range(3, IDS.shape[1]):
        read = decoder.forward(IDS[:, i : i + 1], cache=read.cache, last=1)
        torch.testing.assert_close(read.logits[:, 0].float(), whole[:, i].float(), rtol=0, atol=0.1)


def test_the_first_token_starts_to_compile_in_the_background(compiling, monkeypatch):
    names = []
    monkeypatch.setattr("mlpmem.fast.compiling.compile_apart", names.append)
    decoder, _ = packed("gpt2")
    model = Model(decoder)
    model.generate("Peru", "lm", max_new_tokens=4, temperature=0.0)
    for thread in threading.enumerate():
        if thread.name == "compile":
            thread.join(120)
    assert names == [PRODUCTS] and decoder.is_compiled
    model.generate("Peru", "lm", max_new_tokens=4, temperature=0.0)
    assert names == [PRODUCTS], "once"


def test_nothing_is_compiled_without_numba_or_in_other_forms(monkeypatch):
    monkeypatch.setenv("MLPMEM_COMPILE", "0")
    decoder, _ = packed("gpt2")
    assert decoder.products is None and not decoder.is_compiled
    monkeypatch.setenv("MLPMEM_COMPILE", "1")
    for bits in (0, 8):
        other = tiny.decoder("gpt2")
        other.pack(bits)
        assert other.products is None

"""The hand-written pass equals transformers' own pass, and handles only supported calls."""

import pytest
import tiny
import torch
from transformers import DynamicCache, StaticCache

from mlpmem.api import Model
from mlpmem.fast.gpt2_pass import Gpt2Pass
from mlpmem.model import families
from mlpmem.model.families import layers_of

pytestmark = tiny.needs_ops
IDS = torch.tensor([[0, 9, 40, 7, 12], [0, 3, 3, 80, 5]])


def both(depth: int = -1, dtype=torch.float32, bits: int = 0):
    """Return a packed GPT-2 with its hand-written pass, and the same without."""
    decoders = [tiny.decoder("gpt2", depth) for _ in range(2)]
    for decoder in decoders:
        decoder.model.to(dtype)
        decoder.pack(bits)
        assert decoder.fast_pass is not None
    decoders[1].fast_pass = None
    return decoders


def pass_of(decoder):
    """Return the hand-written pass of a decoder, None if it has none."""
    return Gpt2Pass.of(decoder.model, layers_of(decoder.model, decoder.family), decoder.depth)


def equal(found, wanted):
    for one, other in zip(found[:2], wanted[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=5e-5)
    assert (found.cache is None) == (wanted.cache is None)
    if found.cache is not None:
        for one, other in zip(found.cache.layers, wanted.cache.layers, strict=True):
            torch.testing.assert_close(one.keys, other.keys, rtol=0, atol=5e-5)
            torch.testing.assert_close(one.values, other.values, rtol=0, atol=5e-5)


@pytest.mark.parametrize("depth", [0, -1])
@pytest.mark.parametrize("last", [0, 1, 3])
def test_a_prompt_and_the_tokens_after_it_equal_transformers(depth, last):
    passes = both(depth)
    equal(*(decoder.forward(IDS, last=last) for decoder in passes))
    read = [decoder.forward(IDS, use_cache=True, last=last) for decoder in passes]
    equal(*read)
    for token in (4, 90):
        step = torch.tensor([[token], [token + 1]])
        read = [d.forward(step, cache=r.cache, last=1) for d, r in zip(passes, read, strict=True)]
        equal(*read)
        for one in read:  # as columns separate
            one.cache.batch_select_indices(torch.tensor([1, 0]))


@pytest.mark.parametrize(("int8", "most"), [(False, 0.03), (True, 1e-3)])
def test_in_bfloat16_and_int8_it_is_as_exact_as_transformers_pass(int8, most):
    exact = tiny.decoder("gpt2").forward(IDS).logits
    decoders = both(dtype=torch.float32 if int8 else torch.bfloat16, bits=8 if int8 else 0)
    mine, theirs = (decoder.forward(IDS).logits.float() for decoder in decoders)
    errors = [float((found - exact).norm() / exact.norm()) for found in (mine, theirs)]
    assert errors[0] < 1.3 * errors[1] + 1e-3, errors
    assert float((mine - theirs).norm() / exact.norm()) < most


def test_unsupported_calls_use_transformers(monkeypatch):
    decoder = both()[0]
    cache = decoder.forward(IDS, use_cache=True).cache
    monkeypatch.setattr(
        Gpt2Pass, "forward", lambda *_: pytest.fail("the hand-written pass was used")
    )
    decoder.forward(IDS, cache=cache)
    decoder.forward(IDS, attention_mask=torch.ones_like(IDS))
    decoder.forward(IDS, position_ids=torch.arange(5)[None])
    decoder.forward(IDS, head=False)
    with pytest.raises(pytest.fail.Exception):
        decoder.forward(IDS)


def test_the_pass_accepts_only_its_own_model():
    one, other = both()
    assert one.fast_pass.accepts(one.model, IDS, None)
    assert not one.fast_pass.accepts(other.model, IDS, DynamicCache(config=one.model.config))


def test_other_kinds_of_cache_use_transformers():
    one, other = both()
    config = one.model.config
    assert one.fast_pass.accepts(one.model, IDS, DynamicCache(config=config))
    for make in (DynamicCache, lambda: StaticCache(config=config, max_cache_len=9)):
        assert not one.fast_pass.accepts(one.model, IDS, make())
        caches = make(), make()
        for ids in (IDS[:1], IDS[:1, :1]):
            mine = one.forward(ids, cache=caches[0], last=1)
            theirs = other.forward(ids, cache=caches[1], last=1)
            torch.testing.assert_close(mine.logits, theirs.logits, atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("activation_function", "relu"),
        ("scale_attn_by_inverse_layer_idx", True),
        ("_attn_implementation", "eager"),
    ],
)
def test_a_gpt2_with_an_unsupported_config_has_no_pass(name, value):
    decoder = both()[1]
    setattr(decoder.model.config, name, value)
    assert pass_of(decoder) is None


def test_plain_weights_have_no_pass():
    assert pass_of(tiny.decoder("gpt2")) is None


@pytest.mark.parametrize("family", ["granite", "gpt_neox", "gptj", "bloom", "falcon"])
def test_other_families_use_transformers(family):
    plain, packed = (tiny.decoder(family) for _ in range(2))
    packed.pack()
    assert packed.fast_pass is None
    torch.testing.assert_close(
        packed.forward(IDS).logits, plain.forward(IDS).logits, rtol=0, atol=5e-5
    )


def test_a_new_family_in_gpt2s_layout_is_packed_and_answers(monkeypatch):
    """As somebody would add a family without knowing the passes."""
    monkeypatch.setitem(families.FAMILIES, "gptj", families.Family("transformer.h", "gpt2"))
    model = Model(tiny.decoder("gptj")).pack()
    assert model.decoder.fast_pass is None
    assert model.generate("Peru", max_new_tokens=2).steps


def test_a_text_beyond_the_last_position_is_refused():
    with pytest.raises(IndexError):
        both()[0].forward(torch.zeros(1, tiny.POSITIONS + 1, dtype=torch.long))

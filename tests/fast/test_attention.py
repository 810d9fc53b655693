"""A step attends in float32 on a CPU, which is more exact; everything else is unchanged."""

import pytest
import tiny
import torch

from mlpmem.fast import attention
from mlpmem.fast.attention import attend

IDS = torch.tensor([[0, 9, 40, 7, 12], [0, 3, 3, 80, 5]])


def exact_attention(query, key, value, causal):
    """Return softmax(q k / sqrt(D)) v in float64."""
    query, key, value = query.double(), key.double(), value.double()
    scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    if causal:
        scores.masked_fill_(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    return scores.softmax(-1) @ value


def inputs(queries, tokens, dtype):
    torch.manual_seed(queries + tokens)
    shapes = (2, 3, queries, 8), (2, 3, tokens, 8), (2, 3, tokens, 8)
    return [torch.randn(shape).to(dtype) for shape in shapes]


@pytest.mark.parametrize(("queries", "tokens"), [(1, 1), (1, 37), (5, 5)])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_the_result_has_the_dtype_of_the_query(queries, tokens, dtype, most):
    arrays = inputs(queries, tokens, dtype)
    found = attend(*arrays, causal=queries > 1)
    assert found.dtype == dtype
    wanted = exact_attention(*arrays, causal=queries > 1)
    torch.testing.assert_close(found.double(), wanted, rtol=most, atol=most)


def test_a_step_in_bfloat16_is_rounded_once():
    arrays = inputs(1, 200, torch.bfloat16)
    wanted = exact_attention(*arrays, causal=False)
    once = wanted.bfloat16()
    assert (attend(*arrays, causal=False) == once).float().mean() > 0.98


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.OTHERS])
def test_every_family_gives_the_same_answer(family):
    """In float32 nothing changes; in bfloat16 only a step's rounding, also with padding."""
    mask = torch.ones_like(IDS)
    mask[1, :2] = 0
    for dtype, most in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        before, after = (tiny.decoder(family) for _ in range(2))
        for decoder in (before, after):
            decoder.model.to(dtype)
        attention.use(after.model)
        own = before.model.config._attn_implementation
        unchanged = own == "eager" or family == "falcon"  # falcon's layers support no other
        assert after.model.config._attn_implementation == (own if unchanged else attention.NAME)
        for padding in (None, mask):
            steps = []
            for decoder in (before, after):
                read = decoder.forward(IDS, attention_mask=padding, use_cache=True)
                longer = None if padding is None else torch.cat([mask, mask[:, -1:]], 1)
                token = torch.tensor([[4], [90]])
                steps.append(decoder.forward(token, attention_mask=longer, cache=read.cache).logits)
            error = (steps[0] - steps[1]).float().norm() / steps[0].float().norm()
            assert float(error) < most


def test_a_model_with_eager_attention_keeps_it():
    decoder = tiny.decoder("llama")
    decoder.model.set_attn_implementation("eager")
    attention.use(decoder.model)
    assert decoder.model.config._attn_implementation == "eager"

"""Scores of a prompt's tokens from its compiled pass equal those of whole distributions."""

import pytest
import tiny
import torch
from with_memory import model_of

from mlpmem.engine.call import last_values
from mlpmem.engine.generation import compare, scrub
from mlpmem.engine.router import Router, RouterConfig
from mlpmem.engine.settings import GenerationOptions
from mlpmem.engine.trace import AUTO
from mlpmem.fast import step
from mlpmem.fast.few_rows import FewRows

pytest.importorskip("numba")
LIVES = (2.0, 9.0)
TOLERANCE = 1e-4  # of a log-prob


def pair(**options):
    """Return equal models, the first with compiled code, the other with transformers' pass."""
    found, plain = model_of(**options), model_of(**options)
    found.decoder.fast_pass.compile()
    plain.decoder.fast_pass = None
    return found, plain


def wanted(model, ids, last, scored):
    """Return (2, B, scored) log-probs by decoder and memory from a plain pass, and its output."""
    output = model.decoder.forward(ids, last=last, memory=model.memory, scored=scored)
    assert output.scores is None and output.logits.shape[1] == last + scored
    at = ids[:, -last - scored + 1 :][:, :scored, None]
    logits = torch.stack([output.logits, model.memory(output.hidden)])[:, :, :scored]
    return logits.log_softmax(-1).gather(-1, at.expand(2, -1, -1, -1))[..., 0], output


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("last", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"tied": True, "context": LIVES},
        {"tied": False, "context": (4.0,), "depth": 0},
        {"family": "qwen2", "tied": True},
        {"family": "qwen2", "tied": False, "context": LIVES},
    ],
)
def test_scores_and_logits_equal_those_of_the_plain_pass(options, last, rows):
    found, plain = pair(**options)
    ids = torch.randint(0, 90, (rows, 9), generator=torch.Generator().manual_seed(3))
    one = found.decoder.forward(ids, last=last, memory=found.memory, scored=5)
    scores, other = wanted(plain, ids, last, 5)
    torch.testing.assert_close(one.scores, scores, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(one.logits, other.logits[:, -last:], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(one.hidden, other.hidden[:, -last:], rtol=0, atol=TOLERANCE)
    recalled = plain.memory(other.hidden[:, -last:])
    torch.testing.assert_close(one.recalled.logits, recalled, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("size", [3, 4, 8])
@pytest.mark.parametrize("threads", [1, 3])
def test_parts_of_a_prompt_and_threads_give_the_same_scores(size, threads, monkeypatch):
    found, plain = pair(tied=True, context=LIVES)
    monkeypatch.setattr(step, "PROMPT", size)
    found.decoder.threads = found.decoder.all_threads = threads
    ids = torch.arange(7, 20)[None]
    one = found.decoder.forward(ids, last=2, memory=found.memory, scored=9)
    scores, other = wanted(plain, ids, 2, 9)
    torch.testing.assert_close(one.scores, scores, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(one.hidden, other.hidden[:, -2:], rtol=0, atol=TOLERANCE)


@tiny.needs_ops
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("tied", [False, True])
def test_rounded_heads_are_scored_in_their_small_form(tied, bits, monkeypatch):
    monkeypatch.setenv("MLPMEM_COMPILE", "1")
    model = model_of(tied=tied, dtype=torch.bfloat16, context=LIVES).pack(bits)
    model.decoder.fast_pass.compile()
    assert isinstance(model.memory.lm_head, FewRows)
    ids = torch.arange(7, 20)[None]
    scores = model.decoder.forward(ids, last=1, memory=model.memory, scored=12).scores
    assert scores.shape == (2, 1, 12)
    logits = model.decoder.forward(ids).logits
    plain = logits.float().log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(scores[0, 0], plain, rtol=0, atol=0.05)


def test_a_family_with_capped_logits_has_no_scores():
    found, _ = pair(family="gemma2")
    ids = torch.arange(7, 20)[None]
    output = found.decoder.forward(ids, last=1, memory=found.memory, scored=5)
    assert output.scores is None and output.logits.shape[1] == 6


def routed(model):
    """Return a model whose memory has a router that reads the evidence."""
    router = Router(RouterConfig("memory", model.decoder.vocab_size, model.decoder.tokenizer_hash))
    router.out.weight.data.copy_(
        0.3 * torch.randn(1, 9, generator=torch.Generator().manual_seed(1))
    )
    model.routers = {"memory": router.eval().requires_grad_(False)}
    return model


@pytest.mark.parametrize("forced", [(), (5, 31)])
@pytest.mark.parametrize("systems", [["memory"], ["lm", "memory"]])
def test_a_routed_answer_is_the_same_with_and_without_compiled_code(systems, forced):
    options = GenerationOptions(max_new_tokens=6, forced=forced)
    prompt = list(range(7, 30))
    found, expected = (
        last_values(compare(routed(m), prompt, systems, lmbda={"memory": AUTO}, options=options))
        for m in pair(tied=True, context=LIVES)
    )
    assert "evidence_ms" in expected["memory"].cost  # otherwise the prefill has it
    assert "evidence_ms" not in found["memory"].cost
    for system in systems:
        steps = found[system].steps, expected[system].steps
        for one, other in zip(*steps, strict=True):
            assert one.token_id == other.token_id
            assert one.lmbda == (None if system == "lm" else pytest.approx(other.lmbda, abs=1e-4))
            assert one.probs == pytest.approx(other.probs, abs=1e-5)


def test_branches_at_several_lambdas_are_the_same_with_and_without_compiled_code():
    options = GenerationOptions(max_new_tokens=6)
    found, expected = (
        last_values(scrub(m, list(range(7, 30)), "memory", [0.0, 0.5, 1.0], options=options))
        for m in pair(tied=True, context=LIVES)
    )
    assert len({tuple(s.token_id for s in trace.steps) for trace in found.values()}) > 1
    for lmbda, trace in found.items():
        ids = [s.token_id for s in trace.steps]
        assert ids == [s.token_id for s in expected[lmbda].steps]

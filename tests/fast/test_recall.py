"""A memory computed in the decoder's compiled step equals the memory computed after it."""

import pytest
import tiny
import torch
from with_memory import model_of

from mlpmem.api import Model
from mlpmem.engine.fused import FusedModel
from mlpmem.engine.prefix import PrefixCache
from mlpmem.fast.few_rows import FewRows

pytest.importorskip("numba")
IDS = torch.tensor([[0, 9, 40, 7, 12]])
TOLERANCE = 1e-4  # of a log-prob


def steps(model: FusedModel, rows: int, tokens=(4, 90, 33)):
    """Yield the outputs of steps in so many rows, with the memory."""
    read = model.decoder.forward(IDS, use_cache=True, last=1)
    read.cache.batch_select_indices(torch.zeros(rows, dtype=torch.long))
    for token in tokens:
        ids = torch.arange(token, token + rows)[:, None]
        read = model.decoder.forward(ids, cache=read.cache, last=1, memory=model.memory)
        yield read


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("lives", [(), (4.0,), (2.0, 9.0)])
@pytest.mark.parametrize(("family", "depth"), [("llama", 0), ("gemma2", -1), ("qwen2", -1)])
def test_it_equals_the_memory_computed_after_the_step(family, depth, lives, tied, rows):
    options = {"tied": tied, "depth": depth, "context": lives}
    plain, found = model_of(family, **options), model_of(family, **options)
    found.decoder.fast_pass.compile()
    plain.decoder.fast_pass = None
    for one, other in zip(steps(found, rows), steps(plain, rows), strict=True):
        assert other.recalled is None
        torch.testing.assert_close(one.hidden, other.hidden, rtol=0, atol=TOLERANCE)
        wanted = plain.memory(other.hidden)
        for a, b in ((one.recalled.logits, wanted), (one.logits, other.logits)):
            difference = a.log_softmax(-1) - b.log_softmax(-1)
            assert float(difference.abs().max()) < TOLERANCE
        assert 0 <= one.recalled.seconds < 60


@tiny.needs_ops
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("lives", [(), (2.0, 9.0)])
@pytest.mark.parametrize("tied", [False, True])
def test_it_does_so_with_rounded_weights_which_a_tied_head_shares(tied, lives, bits, monkeypatch):
    monkeypatch.setenv("MLPMEM_COMPILE", "1")  # else 8 bits round the inputs, too
    model = model_of(tied=tied, dtype=torch.bfloat16, context=lives).pack(bits)
    assert (model.memory.lm_head is model.decoder.model.lm_head) == tied
    model.decoder.fast_pass.compile()
    assert isinstance(model.memory.lm_head, FewRows)
    for output in steps(model, 2):
        wanted = model.memory(output.hidden).float().log_softmax(-1)
        found = output.recalled.logits.log_softmax(-1)
        assert 0 <= float((wanted.exp() * (wanted - found)).sum(-1).mean()) < 1e-3


@pytest.mark.parametrize("threads", [1, 3])
def test_several_threads_compute_it(threads):
    model = model_of()
    model.decoder.fast_pass.compile()
    model.decoder.threads = threads
    for output in steps(model, 2):
        wanted = model.memory(output.hidden)
        torch.testing.assert_close(output.recalled.logits, wanted, rtol=0, atol=TOLERANCE)


def test_a_changed_memory_is_read_again():
    model = model_of()
    model.decoder.fast_pass.compile()
    before = [output.recalled.logits for output in steps(model, 1)]
    model.memory.lm_head.weight.mul_(2)
    after = [output.recalled.logits for output in steps(model, 1)]
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(2 * one, other, rtol=0, atol=TOLERANCE)


def test_weights_that_are_float16_numbers_are_read_as_such_with_equal_answers():
    from mlpmem.fast.kernels.products import FLOAT16, FLOAT32

    models = [model_of(), model_of()]
    for model in models:
        for weight in (*model.decoder.model.parameters(), *model.memory.parameters()):
            weight.data.copy_(weight.half())
    first = models[1].decoder.model.model.layers[0].mlp.up_proj.weight
    first[0, 0] += 1e-5  # one number that float16 does not have
    answers = []
    for model in models:
        model.decoder.fast_pass.compile()
        answers.append([output.logits for output in steps(model, 1)])
        kinds = [part.kind for product in model.decoder.fast_pass.step.products for part in product]
        assert kinds.count(FLOAT32) == (model is models[1]) and FLOAT16 in kinds
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE)
    first.mul_(3)  # now read again
    plain = model_of().decoder
    plain.model.load_state_dict(models[1].decoder.model.state_dict())
    plain.fast_pass = None
    models[0].decoder.model.model.layers[0].mlp.up_proj.weight.copy_(first)
    for model in models:
        changed = next(steps(model, 1)).logits
        read = plain.forward(IDS, use_cache=True, last=1)
        wanted = plain.forward(torch.tensor([[4]]), cache=read.cache, last=1).logits
        torch.testing.assert_close(changed, wanted, rtol=0, atol=TOLERANCE)


def test_a_generation_is_the_same_with_and_without_compiled_code():
    models = [model_of(), model_of()]
    models[0].decoder.fast_pass.compile()
    models[1].decoder.fast_pass = None
    from mlpmem.engine.call import last_values
    from mlpmem.engine.generation import compare
    from mlpmem.engine.settings import GenerationOptions

    options = GenerationOptions(max_new_tokens=6)
    found, wanted = (
        last_values(compare(model, IDS[0].tolist(), options=options))["memory"] for model in models
    )
    assert [s.token_id for s in found.steps] == [s.token_id for s in wanted.steps]
    for one, other in zip(found.steps, wanted.steps, strict=True):
        assert one.probs == pytest.approx(other.probs, abs=1e-5)
    assert found.cost["memory_ms"] > 0 and found.cost["decoder_ms"] > 0


def test_compiled_code_goes_on_from_what_was_read_before():
    model = model_of(context=(4.0, 16.0), turn=(7,), asked=True)
    model.memory.bind(model.decoder)
    model.decoder.fast_pass.compile()
    model = Model(model.decoder, model.memory)
    first = [5 + i for i in range(40)]
    prefix = PrefixCache()
    written = model.generate(first, lmbda=0.5, prefix=prefix, max_new_tokens=6).steps
    longer = [*first, *(step.token_id for step in written), 9, 8, 7]
    found = model.generate(longer, lmbda=0.5, prefix=prefix, max_new_tokens=6)
    wanted = model.generate(longer, lmbda=0.5, max_new_tokens=6)
    assert found.cost["reused_tokens"] >= len(first) + 5
    assert [s.token_id for s in found.steps] == [s.token_id for s in wanted.steps]
    for one, other in zip(found.steps, wanted.steps, strict=True):
        assert one.probs == pytest.approx(other.probs, abs=1e-5)


def test_steps_of_several_memories_share_the_copies_of_the_decoders_weights():
    model = model_of()
    for weight in model.decoder.model.parameters():
        weight.data.copy_(weight.half())
    fast_pass = model.decoder.fast_pass
    fast_pass.compile()
    memories = model.memory, model_of().memory
    for model.memory in memories:
        list(steps(model, 1))
    own, recalling = fast_pass.step, [*fast_pass._recalling.values()]
    assert len(recalling) == 2
    for step in recalling:
        for module, part in own.parts.items():
            assert step.parts[module] is part


@tiny.needs_ops
@pytest.mark.parametrize("bits", [8, 4])
def test_a_tied_memory_is_computed_after_the_heads_packed_form_is_freed(bits, monkeypatch):
    monkeypatch.setenv("MLPMEM_COMPILE", "1")
    model = model_of(tied=True, dtype=torch.bfloat16).pack(bits)
    size = model.memory.bytes
    output = model.decoder.forward(IDS)
    before = model.sources(output.hidden[0], output.logits[0], None, ("memory",))["memory"]
    model.decoder.fast_pass.compile()
    for layer in model.decoder.model.modules():
        if isinstance(layer, FewRows):
            layer.release()
    assert model.memory.lm_head.is_released
    after = model.sources(output.hidden[0], output.logits[0], None, ("memory",))["memory"]
    assert float((before.exp() * (before - after)).sum(-1).mean().abs()) < 1e-3
    assert model.memory.bytes == size, "a tied head is the decoder's"
    assert model.decoder.head_weight.shape == (model.decoder.vocab_size, 64)

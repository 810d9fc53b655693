"""Teaching: a copy of the memory learns sentences and keeps to the memory at old rows."""

import threading
from types import SimpleNamespace

import pytest
import tiny
import torch

from mlpmem.api import Model
from mlpmem.errors import MlpMemError
from mlpmem.teaching import lesson as lesson_module
from mlpmem.teaching.lesson import Lesson, teach, trainable
from mlpmem.teaching.rows import new_rows, old_keys
from mlpmem.teaching.wordings import Wording, Wordings

FACT = "The capital of Tarn is Lima."
SHORT = Lesson(steps=30, lr=3e-3, new=16, old=16, replay=64, seconds=600)


def taught(model, lesson=SHORT, sentences=(FACT,)):
    *_, last = teach(model, sentences, lesson)
    return last.memory


def weights(memory):
    return {name: weight.clone() for name, weight in memory.state_dict().items()}


def loss(memory, rows):
    return float(torch.nn.functional.cross_entropy(memory(rows.keys), rows.values))


def drift(model, memory):
    """Return the KL (nats) from the model's memory to another one, on all old keys."""
    keys = old_keys(model, 10_000, 0)
    old, new = (m(keys).log_softmax(-1) for m in (model.memory, memory))
    return float((old.exp() * (old - new)).sum(-1).mean())


@torch.no_grad()
def test_a_copy_learns_a_sentence_and_the_memory_stays_as_it_was():
    model = tiny.model()
    before = weights(model.memory)
    copy = taught(model, Lesson(**{**vars(SHORT), "steps": 60, "lr": 1e-2}))
    rows = new_rows(model, [Wording(FACT)])
    assert loss(copy, rows) < 0.3 * loss(model.memory, rows)
    after = weights(model.memory)
    assert all(torch.equal(before[name], after[name]) for name in before)
    ours = {p.data_ptr() for p in copy.parameters()}
    assert ours.isdisjoint(p.data_ptr() for p in model.memory.parameters())
    assert not any(p.requires_grad for p in copy.parameters()) and not copy.training


def test_the_same_seed_gives_the_same_copy_and_another_another():
    model = tiny.model()
    first, second = weights(taught(model)), weights(taught(model))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = weights(taught(model, Lesson(**{**vars(SHORT), "seed": 1})))
    assert not all(torch.equal(first[name], other[name]) for name in first)


@torch.no_grad()
def test_old_rows_keep_the_copy_near_the_memory():
    model = tiny.model()
    kept = drift(model, taught(model))
    lost = drift(model, taught(model, Lesson(**{**vars(SHORT), "keep": 0.0})))
    assert kept < 0.5 * lost


def test_progress_counts_the_steps_and_only_the_last_has_the_memory():
    seen = list(teach(tiny.model(), [FACT], SHORT))
    assert [at.step for at in seen] == [*range(1, SHORT.steps + 1)]
    assert [at.memory is not None for at in seen] == [False] * (SHORT.steps - 1) + [True]
    assert seen[-1].left == 0 and seen[-1].loss < seen[0].loss


def test_seconds_bound_the_steps():
    seen = list(teach(tiny.model(), [FACT], Lesson(**{**vars(SHORT), "seconds": 1e-6})))
    assert len(seen) == 1 and seen[-1].memory is not None


@pytest.mark.parametrize("reading", [0.0, 20.0, 55.0])
def test_the_seconds_hold_with_reading_and_with_steps_of_uneven_length(monkeypatch, reading):
    now, step, read = [100.0], lesson_module._step, lesson_module.new_rows
    taken = iter([1.0, 2.0, 1.0, 1.5, 4.0, 1.0, 3.0, 1.0, 1.0, 2.5, 1.0, 4.0] * 9)

    def slow(seconds, call, *given):
        now[0] += seconds
        return call(*given)

    monkeypatch.setattr(lesson_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(lesson_module, "_step", lambda *given: slow(next(taken), step, *given))
    monkeypatch.setattr(lesson_module, "new_rows", lambda *given: slow(reading, read, *given))
    seen = list(teach(tiny.model(), [FACT], Lesson(**{**vars(SHORT), "seconds": 60.0})))
    assert now[0] - 100 <= 60 and seen[-1].memory is not None
    assert 0 < len(seen) <= SHORT.steps - (reading > 0)


def test_a_cancelled_teaching_ends_with_an_error_and_changes_nothing():
    model, stop = tiny.model(), threading.Event()
    before = weights(model.memory)
    progress = teach(model, [FACT], SHORT, stop)
    next(progress)
    stop.set()
    with pytest.raises(MlpMemError, match="cancelled; nothing has changed"):
        next(progress)
    assert all(torch.equal(before[name], weight) for name, weight in weights(model.memory).items())


def test_what_cannot_be_taught_is_an_error():
    with pytest.raises(MlpMemError, match="no memory to teach"):
        next(teach(Model(tiny.decoder()), [FACT]))
    with pytest.raises(MlpMemError, match="no sentence"):
        next(teach(tiny.model(), [" "]))
    for wrong in ({"steps": 0}, {"lr": 0.0}, {"keep": -1.0}, {"new": 1.5}, {"seconds": 0}):
        with pytest.raises(MlpMemError, match="lesson: "):
            Lesson(**wrong)


@torch.no_grad()
@pytest.mark.parametrize("config", [{"tied_head": True}, {"context": (4.0,)}])
def test_a_tied_head_stays_and_a_memory_that_reads_context_learns(config):
    decoder = tiny.decoder()
    model = Model(decoder, tiny.memory(decoder, **config))
    copy = taught(model)
    rows = new_rows(model, [Wording(FACT)])
    assert rows.keys.shape[1] == model.memory.config.input_size
    assert loss(copy, rows) < loss(model.memory, rows)
    if "tied_head" in config:
        assert torch.equal(copy.lm_head.weight, model.memory.lm_head.weight)


@torch.no_grad()
@tiny.needs_ops
def test_a_packed_memory_is_copied_with_plain_layers():
    model = tiny.model("gpt2")
    plain = weights(model.memory)
    model.pack()
    copy = trainable(model.memory)
    for name, weight in weights(copy).items():
        torch.testing.assert_close(weight, plain[name])


@torch.no_grad()
@tiny.needs_ops
def test_a_memory_in_four_bits_is_copied_as_it_answers():
    decoder = tiny.decoder("llama")
    model = Model(decoder, tiny.memory(decoder, tied_head=True)).pack(4)
    copy, hidden = trainable(model.memory), torch.randn(5, decoder.hidden_size)
    torch.testing.assert_close(copy(hidden), model.memory(hidden), atol=0.05, rtol=0.05)
    assert loss(taught(model), new_rows(model, [Wording(FACT)])) > 0


@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=tiny.needs_ops)])
def test_a_taught_copy_answers_beside_a_decoder_in_bfloat16(packed):
    decoder = tiny.decoder("llama")
    memory = tiny.memory(decoder, tied_head=True, context=(4.0,)).to(torch.bfloat16)
    decoder.model.to(torch.bfloat16)
    model = Model(decoder, memory)
    if packed:
        model.pack()
    copy = taught(model)
    assert copy.dtype == torch.bfloat16
    assert len(model.with_taught(copy).generate("Peru is", "memory", max_new_tokens=3).steps) == 3


def test_a_taught_model_keeps_settings_routers_and_store():
    model = tiny.routed()
    new = model.with_taught(taught(model))
    assert new.settings is model.settings and new.store is model.store
    assert new.routers == model.routers and new.memory is not model.memory
    question = "Peru is"
    assert new.generate(question, "lm").text == model.generate(question, "lm").text


def asking(model):
    model.questions = True
    return model


def test_a_fact_is_written_in_the_corpus_own_wordings():
    model = asking(tiny.model())
    (found,) = Wordings(model).find(FACT)
    assert (found.name, found.answer) == ("Tarn", "Lima")
    written = Wordings(model).of(FACT)
    assert {w.text for w in written} == {
        FACT, "Question: What is the capital of Tarn? Answer: Lima",
    }  # fmt: skip
    asked = next(w for w in written if w.text.startswith("Question"))
    assert asked.text[slice(*asked.answer)] == "Lima"
    rows = new_rows(model, [asked])
    end = model.decoder.tokenizer.eos_token_id
    assert model.decoder.decode(rows.values.tolist()).strip() == "Lima"
    assert rows.values[-1] == end


def test_a_sentence_without_a_like_fact_is_taught_as_it_stands():
    model = asking(tiny.model())
    for text in ("no name is in this text", "Grumbling aloud"):
        assert Wordings(model).of(text) == [Wording(text)]
        assert Wordings(model).question(text) is None
    plain = tiny.model()
    assert Wordings(plain).of(FACT) == [Wording(FACT)], "it asks no questions"


def test_old_keys_are_those_of_the_datastore_or_computed_without_one():
    model = tiny.model()
    keys = old_keys(model, 10_000, 0)
    assert keys.shape == (len(model.datastore), tiny.HIDDEN)
    bare = Model(model.decoder, model.memory)
    assert len(old_keys(bare, 10, 0)) == 0, "no corpus, no old rows"
    bare.documents = model.datastore.documents
    assert old_keys(bare, 10, 0).shape == (10, tiny.HIDDEN)
    stop = SimpleNamespace(is_set=lambda: True)
    with pytest.raises(MlpMemError, match="cancelled"):
        old_keys(bare, 10, 0, stop.is_set)

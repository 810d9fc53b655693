"""A prompt that begins with what was read before gives what it gives when it is read whole."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import tiny
import torch
import with_memory

from mlpmem.api import Model
from mlpmem.engine import router
from mlpmem.engine.prefix import TEXTS, PrefixCache
from mlpmem.errors import MlpMemError

FIRST = list(range(5, 25))
NEXT = list(range(40, 52))
SHAPES = sorted(tiny.SHAPES)


def same(got, wanted):
    """Assert that two traces have the same tokens, and the same probabilities to rounding."""
    assert [step.token_id for step in got.steps] == [step.token_id for step in wanted.steps]
    for ours, theirs in zip(got.steps, wanted.steps, strict=True):
        assert ours.probs == pytest.approx(theirs.probs, abs=2e-5)
        assert ours.lmbda == (None if theirs.lmbda is None else pytest.approx(theirs.lmbda, 1e-4))


class Stop:
    """Set after so many questions whether it is."""

    def __init__(self, after: int) -> None:
        self.left = after

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def two_turns(model, systems, **options):
    """Return a first prompt's traces, the next prompt, and its traces with what was kept."""
    prefix = PrefixCache()
    first = model.compare(FIRST, systems, prefix=prefix, max_new_tokens=6, **options)
    longer = [*FIRST, *(step.token_id for step in first[systems[0]].steps), *NEXT]
    return longer, model.compare(longer, systems, prefix=prefix, max_new_tokens=6, **options)


@pytest.mark.parametrize("family", SHAPES)
def test_the_next_turn_equals_one_that_is_read_whole(family):
    model = Model(tiny.decoder(family, seed=2))
    longer, traces = two_turns(model, ["lm"])
    same(traces["lm"], model.generate(longer, "lm", max_new_tokens=6))
    kept = family not in ("mistral", "gemma2", "gemma3_text", "phi3") or model.decoder.fast_pass
    written = len(longer) - len(FIRST) - len(NEXT)
    reused = len(FIRST) + written - 1 if kept else 0  # the last token written was not read
    assert traces["lm"].cost.get("reused_tokens", 0) in (reused, reused + 1)


def test_a_token_that_ends_an_answer_was_not_read():
    model = Model(tiny.decoder())
    prefix = PrefixCache()
    first = model.generate(FIRST, prefix=prefix, max_new_tokens=3)
    longer = [*FIRST, *(step.token_id for step in first.steps), *NEXT]
    trace = model.generate(longer, prefix=prefix, max_new_tokens=1)
    assert trace.cost["reused_tokens"] == len(FIRST) + 2


@pytest.mark.parametrize("systems", [["memory"], ["knn"], ["lm", "memory", "knn"]])
def test_columns_that_wrote_different_texts_share_their_prompt(systems):
    model = tiny.model(seed=3)
    longer, traces = two_turns(model, systems, lmbda=0.6, temperature=1.0, seed=4)
    options = {"lmbda": 0.6, "temperature": 1.0, "seed": 4, "max_new_tokens": 6}
    whole = model.compare(longer, systems, **options)
    for name, trace in traces.items():
        same(trace, whole[name])
        assert trace.cost["reused_tokens"] >= len(FIRST)


@pytest.mark.parametrize("system", ["memory", "mixed"])
@pytest.mark.parametrize("company", [[], ["lm"]])
def test_a_routers_evidence_of_what_was_read_is_kept_for_the_memory(system, company, monkeypatch):
    monkeypatch.setattr(router, "REACH", 20)
    model = tiny.routed()
    prefix, ids, systems, before = PrefixCache(), [7 + i for i in range(30)], [*company, system], 0
    for turn in range(3):
        options = {"lmbda": {system: "auto", "lm": 0.0}, "max_new_tokens": 4}
        got = model.compare(ids, systems, prefix=prefix, **options)
        whole = model.compare(ids, systems, **options)
        for name in systems:
            same(got[name], whole[name])
        reused = got[system].cost.get("reused_tokens", 0)
        if turn and system == "memory":
            assert reused >= before, "the state before the first new token is computed again"
        elif turn:
            assert reused == min(before, len(ids) - 21)
        before = len(ids)
        ids = [*ids, *(step.token_id for step in got[system].steps), 50 + turn, 51 + turn]


def test_evidence_of_a_cut_prompt_of_forced_tokens_and_of_other_settings_is_read_again(
    monkeypatch,
):
    monkeypatch.setattr(router, "REACH", 20)
    model, prefix = tiny.routed(), PrefixCache()
    ids = [7 + i for i in range(50)]
    options = {"lmbda": "auto", "max_new_tokens": 5}
    for prompt, more in (
        (ids, {}),
        (ids[:30], {}),  # its evidence begins before that of the longer one
        ([*ids[:45], 60, 61], {}),
        ([*ids[:45], 60, 61, 62], {"forced": [9, 8, 7]}),
        ([*ids[:45], 60, 61, 62, 9, 8], {"forced": [7]}),
        ([*ids[:45], 60, 61, 62, 9, 8, 7], {"cancel": Stop(2)}),
    ):
        got = model.generate(prompt, prefix=prefix, **options, **more)
        more = {"cancel": Stop(2)} if "cancel" in more else more
        same(got, model.generate(prompt, **options, **more))
        assert got.cost.get("reused_tokens", 0) > 0 or prompt is ids
    model.settings = replace(model.settings, memory_temperature=2.0)
    same(model.generate(ids, prefix=prefix, **options), model.generate(ids, **options))


@pytest.mark.parametrize("turn", [(), (9,), (8, 9)])
@pytest.mark.parametrize("asked", [False, True])
def test_context_vectors_go_on_where_the_text_does(turn, asked):
    bound = with_memory.model_of(context=(4.0, 16.0), turn=turn, asked=asked and bool(turn))
    bound.memory.bind(bound.decoder)
    model = Model(bound.decoder, bound.memory)
    first, longer = [*FIRST[:9], 8, 9, 11, 12], [*FIRST[:9], 8, 9, 11, 12, 13, 8, 9, 14, 15]
    prefix = PrefixCache()
    model.generate(first, prefix=prefix, lmbda=0.5, max_new_tokens=1)
    trace = model.generate(longer, prefix=prefix, lmbda=0.5, max_new_tokens=4)
    assert trace.cost["reused_tokens"] == len(first)
    same(trace, model.generate(longer, lmbda=0.5, max_new_tokens=4))


def test_an_edited_a_shorter_and_the_same_prompt_are_read_as_far_as_they_agree():
    model = tiny.model()
    prefix = PrefixCache()
    model.generate([*FIRST, *NEXT], prefix=prefix, max_new_tokens=4)
    for prompt, reused in (
        ([*FIRST[:10], 30, 31, *NEXT], 10),
        (FIRST[:6], 5),
        ([*FIRST, *NEXT], 6),
        ([*FIRST, *NEXT], len(FIRST + NEXT) - 1),
        ([60, 61, 62], 0),
    ):
        trace = model.generate(prompt, prefix=prefix, max_new_tokens=4)
        same(trace, model.generate(prompt, max_new_tokens=4))
        assert trace.cost.get("reused_tokens", 0) == reused, prompt


def test_forced_tokens_are_read_behind_what_was_kept():
    model = tiny.model()
    prefix = PrefixCache()
    written = [step.token_id for step in model.generate(FIRST, max_new_tokens=6).steps]
    model.generate(FIRST, prefix=prefix, max_new_tokens=6)
    options = {"forced": [*written[:3], 33], "max_new_tokens": 7}
    trace = model.generate(FIRST, prefix=prefix, **options)
    same(trace, model.generate(FIRST, **options))
    assert trace.cost["reused_tokens"] == len(FIRST) - 1, "forced tokens are steps"


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_stopped_run_leaves_what_it_has_read(after):
    model = tiny.model()
    prefix = PrefixCache()
    forced = [11, 12, 13, 14, 15]
    for options in ({}, {"forced": forced}):
        stopped = {"cancel": Stop(after), "max_new_tokens": 8, **options}
        list(model.stream(FIRST, ["memory"], prefix=prefix, **stopped))
        longer = [*FIRST, *NEXT]
        trace = model.generate(longer, prefix=prefix, max_new_tokens=4)
        same(trace, model.generate(longer, max_new_tokens=4))


def test_another_decoder_reads_for_itself():
    one, other = tiny.model(seed=1), tiny.model(seed=2)
    prefix = PrefixCache()
    one.generate(FIRST, prefix=prefix, max_new_tokens=2)
    trace = other.generate(FIRST, prefix=prefix, max_new_tokens=2)
    assert "reused_tokens" not in trace.cost
    same(trace, other.generate(FIRST, max_new_tokens=2))


def test_runs_at_the_same_time_never_share_a_text():
    model = tiny.model()
    prefix = PrefixCache()
    prompts = [[*FIRST, *NEXT[: 2 + i % 5]] for i in range(24)]
    wanted = [model.generate(prompt, max_new_tokens=5) for prompt in prompts]
    start = threading.Barrier(4)

    def ask(i: int):
        if i < 4:
            start.wait()
        return model.generate(prompts[i], prefix=prefix, max_new_tokens=5)

    with ThreadPoolExecutor(4) as pool:
        for got, whole in zip(pool.map(ask, range(24)), wanted, strict=True):
            same(got, whole)
    assert len(prefix) <= TEXTS


def test_texts_beyond_their_number_or_size_are_dropped_and_all_can_be():
    model = tiny.model()
    prefix = PrefixCache()
    for i in range(TEXTS + 2):
        model.generate([30 + i, *FIRST], prefix=prefix, max_new_tokens=1)
    assert len(prefix) == TEXTS and prefix.bytes > 0
    small = PrefixCache(most=prefix.bytes // TEXTS)
    for i in range(3):
        model.generate([30 + i, *FIRST], prefix=small, max_new_tokens=1)
    assert len(small) == 1 and small.bytes <= small.most
    tight = PrefixCache(most=10)
    model.generate(FIRST, prefix=tight, max_new_tokens=1)
    assert len(tight) == 0
    prefix.clear()
    assert len(prefix) == 0 and prefix.bytes == 0


def test_a_batch_has_no_prefix():
    with pytest.raises(MlpMemError, match="prefix is for one prompt"):
        tiny.model().generate(["a", "b"], prefix=PrefixCache())


def test_a_decoder_that_is_gone_keeps_nothing_alive():
    prefix = PrefixCache()
    Model(tiny.decoder()).generate(FIRST, prefix=prefix, max_new_tokens=1)
    model = Model(tiny.decoder())
    assert "reused_tokens" not in model.generate(FIRST, prefix=prefix, max_new_tokens=1).cost
    assert torch.is_inference_mode_enabled() is False

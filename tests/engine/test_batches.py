"""Several prompts and samples as batches, and the log-probs of what they choose."""

import math

import pytest
import tiny
import torch

from mlpmem.engine.distributions import interpolate

PROMPTS = ["Peru is", "Gold has", "The capital of Peru is", "Peru was"]


def chosen(trace) -> list[int]:
    return [step.token_id for step in trace.steps]


@pytest.mark.parametrize("system", ["lm", "memory", "knn"])
def test_samples_of_a_batch_are_runs_of_their_own_with_the_next_seeds(system, tiny_model):
    options = {"max_new_tokens": 6, "temperature": 1.3, "seed": 7}
    *_, done = tiny_model.stream_batch(PROMPTS, [system], samples=3, **options)
    texts = set()
    for (i, name, sample), trace in done.values.items():
        own = {**options, "seed": 7 + sample}
        single = tiny_model.generate(PROMPTS[i], system, **own)
        assert name == system and chosen(trace) == chosen(single) and trace.text == single.text
        texts.add((i, trace.text))
    assert len(done.values) == 12 and len(texts) > 6, "samples differ"


def test_a_batch_streams_every_step_and_the_traces_of_each_group(tiny_model):
    events = list(tiny_model.stream_batch(PROMPTS, ["memory"], samples=2, max_new_tokens=4))
    steps: dict = {}
    for event in events[:-1]:
        if event.kind == "step":
            for name, step in event.values.items():
                steps.setdefault(name, []).append(step)
        else:
            assert event.kind == "part" and {i for i, _, _ in event.values} in ({0}, {1, 3}, {2})
    assert events[-1].kind == "done"
    assert {name: trace.steps for name, trace in events[-1].values.items()} == steps


@pytest.mark.parametrize("system", ["lm", "memory", "knn", "mixed"])
def test_ranked_tokens_are_the_best_of_the_whole_mix(system):
    model = tiny.model(seed=2)
    lmbda = 0.0 if system == "lm" else 0.3
    options = {"max_new_tokens": 5, "ranked": 12, "lmbda": lmbda, "temperature": 1.0, "top_k": 3}
    *_, done = model.stream_batch(PROMPTS[:1], [system], repetition_penalty=1.2, **options)
    (trace,) = done.values.values()
    read = list(trace.prompt_ids)
    for step in trace.steps:
        sources = model.distributions(read)
        parts = {"lm": ["lm"], "mixed": ["memory", "knn"]}.get(system, [system])
        other = interpolate(*(sources[p] for p in parts), 0.5) if parts[1:] else sources[parts[0]]
        fused = interpolate(sources["lm"], other, lmbda)
        own, *best = step.ranked
        assert own.token_id == step.token_id and len(best) == 12
        assert own.log_probs["fused"] == pytest.approx(float(fused[step.token_id]), abs=1e-4)
        values = [one.log_probs["fused"] for one in best]
        assert values == sorted(values, reverse=True)
        assert values == pytest.approx(fused.topk(12).values.tolist(), abs=1e-4)
        for one in step.ranked:
            for name in {"lm", *parts}:
                expected = float(sources[name][one.token_id])
                assert one.log_probs[name] == pytest.approx(expected, abs=1e-4)
        read.append(step.token_id)


def test_steps_have_no_ranked_tokens_unless_asked_for_and_none_are_saved(tiny_model):
    *_, done = tiny_model.stream_batch(PROMPTS[:1], ["lm"], max_new_tokens=2)
    (trace,) = done.values.values()
    assert [step.ranked for step in trace.steps] == [(), ()]
    *_, done = tiny_model.stream_batch(PROMPTS[:1], ["lm"], max_new_tokens=2, ranked=1)
    (with_ranks,) = done.values.values()
    ranked, plain = with_ranks.to_dict()["steps"], trace.to_dict()["steps"]
    assert [row.keys() for row in ranked] == [row.keys() for row in plain]


@pytest.mark.parametrize("lmbda", [None, 0.0, 0.3, 1.0])
def test_a_given_texts_log_probs_are_the_scores_to_the_last_bit(lmbda, tiny_model):
    text = "The capital of Peru is Lima; its café is small. " * 6  # several windows
    score = tiny_model.score(text)
    assert len(score.ids) > tiny_model.decoder.max_positions
    for system in ("lm", "memory", "knn", "mixed"):
        own = 0.0 if system == "lm" else lmbda
        found = tiny_model.ranked(text, system, 1, lmbda=own, sources=["memory", "knn"])
        fused = [tokens[0].log_probs["fused"] for _, tokens in found]
        assert fused == (-score.mixed(system, own)).tolist()
        assert [tokens[0].token_id for _, tokens in found] == score.ids[1:]
        for source, nll in score.nll.items():
            assert [tokens[0].log_probs[source] for _, tokens in found] == (-nll).tolist()
        greedy = [tokens[0].token_id == tokens[1].token_id for _, tokens in found]
        equal = [tokens[0].log_probs == tokens[1].log_probs for _, tokens in found]
        assert [g and not e for g, e in zip(greedy, equal, strict=True)].count(True) == 0


def test_a_given_text_under_a_router_has_the_lambdas_of_its_score():
    model = tiny.routed(auto=True)
    text = "The capital of Peru is Lima."
    score = model.score(text)
    found = model.ranked(text, "memory")
    assert [lmbda for lmbda, _ in found] == score.routed["memory"].tolist()
    fused = [tokens[0].log_probs["fused"] for _, tokens in found]
    assert fused == (-score.mixed("memory", "auto")).tolist()


def test_an_impossible_token_has_a_log_prob_of_minus_infinity():
    found = tiny.model(k=1).ranked("zzz qqq", "knn", lmbda=1.0)
    assert -math.inf in [tokens[0].log_probs["fused"] for _, tokens in found]
    assert all(math.isfinite(tokens[0].log_probs["lm"]) for _, tokens in found)


def test_cancelled_reading_returns_what_was_read(tiny_model):
    class Cancelled:
        def is_set(self):
            return True

    assert tiny_model.ranked("The capital of Peru", "lm", cancel=Cancelled()) == []
    *_, done = tiny_model.stream_batch(PROMPTS, ["lm"], samples=2, cancel=Cancelled())
    assert {trace.finish for trace in done.values.values()} == {"stop"}
    assert not any(trace.steps for trace in done.values.values())
    assert torch.is_grad_enabled()

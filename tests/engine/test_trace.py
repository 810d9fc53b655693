"""Traces survive JSON, and can be mixed again."""

import json

import pytest

from mlpmem.engine.trace import Trace, mix
from mlpmem.errors import MlpMemError


@pytest.fixture(scope="module")
def traces(tiny_model):
    return tiny_model.compare("The capital of Peru", max_new_tokens=4, temperature=1.0)


def test_a_trace_read_from_its_json_equals_the_original(traces):
    for trace in traces.values():
        read = Trace.from_json(trace.to_json())
        assert (read.system, read.text, read.finish) == (trace.system, trace.text, trace.finish)
        assert read.to_json() == trace.to_json()
        for ours, theirs in zip(read.steps, trace.steps, strict=True):
            assert [c.token_id for c in ours.candidates] == [c.token_id for c in theirs.candidates]
            for a, b in zip(ours.candidates, theirs.candidates, strict=True):
                assert a.text == b.text
                assert a.probs == pytest.approx(b.probs, rel=1e-5, abs=1e-12)
            for a, b in zip(ours.neighbours, theirs.neighbours, strict=True):
                assert (a.entry, a.title, a.left, a.target) == (b.entry, b.title, b.left, b.target)
                assert a.distance == pytest.approx(b.distance, rel=1e-5)


def test_the_json_is_plain_and_has_every_source_in_every_column(traces):
    row = json.loads(traces["lm"].to_json())
    assert row["v"] == 1
    for step in row["steps"]:
        assert set(step["p"]) == {"lm", "memory", "knn", "fused"}
        assert all(len(candidate) == 5 for candidate in step["cand"])
        assert all(len(neighbour) == 9 for neighbour in step["nn"])


def test_a_missing_source_is_null_and_reads_back_as_missing():
    import tiny

    from mlpmem.api import Model

    trace = Model(tiny.decoder()).generate("Peru", max_new_tokens=1)
    row = json.loads(trace.to_json())["steps"][0]
    assert row["cand"][0][3:] == [None, None] and row["js"] is None and row["nn"] == []
    assert set(Trace.from_json(trace.to_json()).steps[0].candidates[0].probs) == {"lm", "fused"}


def test_mixing_is_linear_in_probabilities_and_lm_is_not_mixed():
    probs = {"lm": 0.2, "memory": 0.6}
    assert mix(probs, "memory", 0.25) == pytest.approx(0.3)
    assert mix(probs, "lm", 0.25) == mix(probs, "knn", 0.25) == 0.2


@pytest.mark.parametrize("text", ["{", "[]", '{"v": 2}', '{"v": 1}', '{"v": 1, "steps": 3}'])
def test_json_that_is_not_a_trace_is_refused(text):
    with pytest.raises(MlpMemError, match="trace: .*again"):
        Trace.from_json(text)

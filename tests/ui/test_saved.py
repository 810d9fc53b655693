"""Saved runs: round trip, refused files, and the bundled recordings."""

import json
from pathlib import Path

import fake
import pytest

from mlpmem.engine.trace import OTHER, Candidate, Neighbour, Step, Trace
from mlpmem.errors import MlpMemError
from mlpmem.ui.recordings import recorded, saved

ROOT = Path(__file__).parents[2]


def _run():
    probs = {"lm": 0.25, "memory": 0.5, "fused": 0.375}
    near = Neighbour(4, "Lima", "A1", "the city of", " Lima", 9, " is", 2.5, 0.75)
    candidates, far = [Candidate(9, " Lima", probs)], {9: 0.125, OTHER: 0.125}
    step = Step(0, 9, " Lima", probs, candidates, probs, 0.25, [near], 1.5, far)
    model, settings = {"bundle": "b"}, {"seed": 0, "forced": [9]}
    trace = Trace("memory", "x", [1], 0.5, settings, model, [step], "eos", " Lima", {"a_ms": 1})
    known = {"answer": "y", "aliases": [], "part": "B", "wording": "test"}
    return saved.record("x", known, 0.25, {"memory": trace})


def test_a_saved_run_is_read_back_unchanged():
    assert saved.read(json.dumps(_run())) == _run()
    mine = _run() | {"own": True}  # it searched a visitor's own text
    assert saved.read(json.dumps(mine)) == mine
    assert saved.read(json.dumps(_run() | {"own": "yes"})) == _run()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((), []), (("v",), 2), (("traces",), {}), (("traces",), None), (("lmbda",), 1.5),
        (("answer",), 3), (("prompt",), None), (("traces", "memory", "system"), "knn"),
        (("traces", "memory", "lmbda"), "a"), (("traces", "memory", "text"), None),
        (("traces", "memory", "steps"), 7), (("traces", "memory", "settings"), {"a": []}),
        (("traces", "memory", "cost"), []), (("traces", "memory", "prompt_ids"), 5),
        (("traces", "memory", "settings"), {"a": float("nan")}),
        (("traces", "memory", "settings", "forced"), [4]),
        (("traces", "memory", "settings", "forced"), 9), (("wording",), 3),
        (("traces", "memory", "steps", 0, "far"), [["9", 0.5]]),
        (("traces", "memory", "steps", 0, "far"), [[9, 2]]),
        (("traces", "memory", "steps", 0, "far"), [[i, 0] for i in range(99)]),
        (("traces", "memory", "steps", 0, "i"), 4),
        (("traces", "memory", "steps", 0, "p"), {"lm": "0.5"}),
        (("traces", "memory", "steps", 0, "p", "lm"), float("nan")),
        (("traces", "memory", "steps", 0, "rest"), {"lm": 1, "else": 0}),
        (("traces", "memory", "steps", 0, "s"), {"html": "x"}),
        (("traces", "memory", "steps", 0, "ms"), None),
        (("traces", "memory", "steps", 0, "cand", 0, 1), ["x"]),
        (("traces", "memory", "steps", 0, "cand", 0, 2), True),
        (("traces", "memory", "steps", 0, "nn", 0, 8), 4),
        (("traces", "memory", "steps", 0, "nn", 0, 1), "x" * 30_000),
    ],
)  # fmt: skip
def test_an_invalid_saved_run_is_refused(path, value):
    run = {"": json.loads(json.dumps(_run()))}
    place = run
    for key in ("", *path)[:-1]:
        place = place[key]
    place[("", *path)[-1]] = value
    with pytest.raises(MlpMemError, match="again"):
        saved.read(json.dumps(run[""]))


def test_a_file_that_is_not_json_or_too_large_is_refused():
    for text in ("[" * 100_000, "{", None, "x" * (saved.MAX_BYTES + 1)):
        with pytest.raises(MlpMemError, match="again"):
            saved.read(text)


def test_bundled_recordings_contain_the_datastores_whole_mass():
    comparisons = recorded.read(ROOT / "assets" / "atlas").comparisons
    steps = [s for c in comparisons for trace in c["traces"].values() for s in trace["steps"]]
    assert len(steps) > 50
    for step in steps:
        mass = sum(row[8] for row in step["nn"]) + sum(mass for _, mass in step["far"])
        assert mass == pytest.approx(1, abs=1e-4), "removing a neighbour must be exact"


def test_a_run_with_stop_texts_and_control_tokens_can_be_opened():
    trace = fake.FakeModel(pace=0).compare("Peru", stop=["\n"], special=True)["lm"]
    assert trace.settings["stop"] == ["\n"] and trace.settings["special"] is True
    record = saved.record("Peru", {}, None, {"lm": trace})
    assert saved.read(json.dumps(record))["traces"]["lm"]["settings"]["stop"] == ["\n"]
    for wrong in ({"stop": [3]}, {"stop": "x"}, {"special": 1}):
        record["traces"]["lm"]["settings"] |= wrong
        with pytest.raises(MlpMemError):
            saved.read(json.dumps(record))
        record["traces"]["lm"]["settings"] |= {"stop": ["\n"], "special": True}

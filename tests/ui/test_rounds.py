"""Rounds of the game, made of recordings; those that are not whole are left out."""

import copy
from pathlib import Path

import pytest

from mlpmem.ui.recordings import recorded
from mlpmem.ui.recordings.rounds import GRID, rounds

ATLAS = Path(__file__).parents[2] / "assets" / "atlas"


@pytest.fixture(scope="module")
def atlas():
    return recorded.read(ATLAS)


def test_a_recorded_question_has_an_answer_at_every_lambda(atlas):
    rows = rounds(atlas)
    assert len(rows) == 4
    for row in rows:
        assert len(row["memory"]) == len(row["knn"]) == len(row["lmbdas"]) == 11
        assert row["memory"][-1].strip() == row["answers"][0] != row["lm"].strip()
        assert len(row["curve"]) == len(GRID) and row["curve"] == sorted(row["curve"])


def test_the_curve_is_the_product_of_the_mixed_tokens(atlas):
    (row,) = (r for r in rounds(atlas) if "Sevilla" in r["prompt"])
    run = atlas.comparison(row["prompt"])
    lm = memory = 1.0
    for step in run["traces"]["memory"]["steps"][:-1]:
        lm, memory = lm * step["p"]["lm"], memory * step["p"]["memory"]
    assert row["curve"][0] == pytest.approx(lm, abs=1e-6)
    assert row["curve"][-1] == pytest.approx(memory, abs=1e-6)


@pytest.mark.parametrize("damage", ["scrubs", "answer", "lm", "grid", "p"])
def test_what_is_not_whole_is_left_out(atlas, damage):
    runs = [copy.deepcopy(run) for run in atlas.comparisons if run["answer"]]
    for run in runs:
        if damage == "scrubs":
            del run["scrubs"]["knn"]
        elif damage == "answer":
            run["answer"] = ""
        elif damage == "lm":
            del run["traces"]["lm"]
        elif damage == "grid":
            run["scrubs"]["knn"]["texts"].pop()
        else:
            run["traces"]["memory"]["steps"][0]["p"] = {"lm": "x"}
    rows = rounds(recorded.Recorded(comparisons=runs))
    assert [row["curve"] for row in rows] == ([[]] * len(runs) if damage == "p" else [])

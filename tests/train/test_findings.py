"""Findings: intervals against known values, and files that round-trip."""

import dataclasses
import math

import numpy as np
import pytest
import tiny

from mlpmem.loading.bundle import load_bundle
from mlpmem.results import findings as charts
from train.measure import findings
from train.measure.findings import Finding
from train.report import bundle as gather


def test_the_interval_of_a_share_is_wilsons():
    share = findings.share([True] * 8 + [False] * 2)
    assert share["value"] == 0.8 and share["n"] == 10
    # Brown, Cai and DasGupta 2001, eq. 4, computed by hand for 8 of 10
    assert (share["low"], share["high"]) == pytest.approx((0.49016, 0.94331), abs=1e-4)


@pytest.mark.parametrize("right", [[True] * 5, [False] * 5])
def test_a_share_of_0_or_1_still_has_an_interval(right):
    share = findings.share(right)
    assert share["low"] <= share["value"] <= share["high"] and share["high"] > share["low"]


def test_the_bootstrap_agrees_with_the_normal_interval_of_a_mean():
    values = np.random.default_rng(1).normal(3, 2, 2000)
    mean = findings.mean(values)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert mean["low"] == pytest.approx(values.mean() - half, abs=0.02)
    assert mean["high"] == pytest.approx(values.mean() + half, abs=0.02)
    ppl = findings.perplexity(values)
    assert ppl["value"] == pytest.approx(math.exp(values.mean()))
    assert ppl["low"] == pytest.approx(math.exp(mean["low"]))


def test_whole_documents_are_resampled_so_that_equal_tokens_count_once():
    rng = np.random.default_rng(2)
    of = np.repeat(np.arange(100, 400), rng.integers(1, 20, 300))
    values = rng.normal(3, 2, 300)[of - 100]
    mean = findings.mean(values, of)
    assert mean["value"] == pytest.approx(values.mean()) and mean["n"] == len(of)
    counts = np.bincount(of - 100)  # the delta method's interval of a ratio of means
    residual = (counts * values.mean() - np.bincount(of - 100, values)).std()
    half = 1.96 * residual / counts.mean() / math.sqrt(300)
    assert mean["low"] == pytest.approx(values.mean() - half, abs=0.03)
    assert mean["high"] == pytest.approx(values.mean() + half, abs=0.03)
    single = findings.mean(values)
    assert mean["high"] - mean["low"] > 2 * (single["high"] - single["low"])
    assert findings.mean(values, np.arange(len(values))) == single


def test_a_studys_findings_round_trip_and_replace_its_earlier_ones(tmp_path):
    one = Finding("a", "lm", "B/test", "exact_match", 0.5, "python -m x", **{"n": 2})
    findings.save(tmp_path, "a", [one, one])
    findings.save(tmp_path, "b", [])
    findings.save(tmp_path, "a", [one])
    (row,) = findings.load(tmp_path)
    assert Finding(**row) == one


@pytest.mark.parametrize("bad", [{"value": math.nan}, {"value": 1.0, "low": 2.0, "high": 3.0}])
def test_a_number_that_is_not_finite_or_outside_its_interval_is_refused(bad):
    with pytest.raises(ValueError, match="finding a/m"):
        Finding("a", "lm", "x", "m", how="", **bad)


def finding(system, value, **other):
    fields = {"low": value - 0.1, "high": value + 0.1, "n": 9} | other
    return Finding("questions", system, "B/test", "exact_match", value, "python -m x", **fields)


def test_gathered_findings_change_nothing_else_in_a_bundle(tmp_path, capsys):
    bundle = tiny.bundle(tmp_path / "tiny", traces=[]).folder
    options = ["gather", "any", "--runs", str(tmp_path / "runs"), "--bundle", str(bundle)]
    assert gather.main(options) == 1 and "there are no findings" in capsys.readouterr().err
    before = load_bundle(bundle).read_json("results.json")
    for value in (0.2, 0.5):  # the second run replaces the findings of the first
        findings.save(tmp_path / "runs/any/findings", "questions", [finding("lm", value)])
        assert gather.main(options) == 0
    after = load_bundle(bundle).read_json("results.json")
    assert [Finding(**row) for row in after.pop("findings")] == [finding("lm", 0.5)]
    assert after == before


def test_the_table_of_findings_has_one_column_per_measured_system():
    rows = [finding("lm", 0.25), finding("rag", 0.5, low=None, high=None)]
    head, lines = charts.table({"findings": [dataclasses.asdict(row) for row in rows]})
    assert head == ["task", "lm", "rag"]
    assert lines == [["exact match, B new, %", "25 (15 to 35)", "50"]]
    assert charts.table({}) == (["task"], [])


@pytest.mark.parametrize("value", [5, [3], [{"study": "questions"}], [{"value": "<b>"}], None])
def test_invalid_findings_are_left_out(value):
    assert charts.table({"findings": value}) == (["task"], [])

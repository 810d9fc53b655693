"""Findings: intervals against known values, and files that come back as they went."""

import dataclasses
import math

import numpy as np
import pytest
import tiny

from mlpmem.loading.bundle import load_bundle
from mlpmem.results import findings as shown
from train.measure import findings
from train.measure.findings import Finding
from train.report import bundle as gather


def test_the_interval_of_a_share_is_wilsons():
    found = findings.share([True] * 8 + [False] * 2)
    assert found["value"] == 0.8 and found["n"] == 10
    # Brown, Cai and DasGupta 2001, eq. 4, worked by hand for 8 of 10
    assert (found["low"], found["high"]) == pytest.approx((0.49016, 0.94331), abs=1e-4)


@pytest.mark.parametrize("right", [[True] * 5, [False] * 5])
def test_a_share_of_all_or_nothing_still_has_an_interval(right):
    found = findings.share(right)
    assert found["low"] <= found["value"] <= found["high"] and found["high"] > found["low"]


def test_the_bootstrap_agrees_with_the_normal_interval_of_a_mean():
    values = np.random.default_rng(1).normal(3, 2, 2000)
    found = findings.mean(values)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert found["low"] == pytest.approx(values.mean() - half, abs=0.02)
    assert found["high"] == pytest.approx(values.mean() + half, abs=0.02)
    ppl = findings.perplexity(values)
    assert ppl["value"] == pytest.approx(math.exp(values.mean()))
    assert ppl["low"] == pytest.approx(math.exp(found["low"]))


def test_documents_are_drawn_whole_so_that_tokens_alike_count_as_one():
    luck = np.random.default_rng(2)
    of = np.repeat(np.arange(100, 400), luck.integers(1, 20, 300))
    alike = luck.normal(3, 2, 300)[of - 100]
    found = findings.mean(alike, of)
    assert found["value"] == pytest.approx(alike.mean()) and found["n"] == len(of)
    counts = np.bincount(of - 100)  # the delta method's interval of a ratio of means
    rest = (counts * alike.mean() - np.bincount(of - 100, alike)).std()
    half = 1.96 * rest / counts.mean() / math.sqrt(300)
    assert found["low"] == pytest.approx(alike.mean() - half, abs=0.03)
    assert found["high"] == pytest.approx(alike.mean() + half, abs=0.03)
    one_by_one = findings.mean(alike)
    assert found["high"] - found["low"] > 2 * (one_by_one["high"] - one_by_one["low"])
    assert findings.mean(alike, np.arange(len(alike))) == one_by_one


def test_a_studys_findings_come_back_and_replace_its_earlier_ones(tmp_path):
    one = Finding("a", "lm", "B/test", "exact_match", 0.5, "python -m x", **{"n": 2})
    findings.save(tmp_path, "a", [one, one])
    findings.save(tmp_path, "b", [])
    findings.save(tmp_path, "a", [one])
    (row,) = findings.load(tmp_path)
    assert Finding(**row) == one


@pytest.mark.parametrize("bad", [{"value": math.nan}, {"value": 1.0, "low": 2.0, "high": 3.0}])
def test_a_number_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="finding a/m"):
        Finding("a", "lm", "x", "m", how="", **bad)


def asked(system, value, **other):
    kept = {"low": value - 0.1, "high": value + 0.1, "n": 9} | other
    return Finding("questions", system, "B/test", "exact_match", value, "python -m x", **kept)


def test_a_bundle_gathers_the_findings_and_stays_whole(tmp_path, capsys):
    bundle = tiny.bundle(tmp_path / "tiny", traces=[]).folder
    options = ["gather", "any", "--runs", str(tmp_path / "runs"), "--bundle", str(bundle)]
    assert gather.main(options) == 1 and "there are no findings" in capsys.readouterr().err
    before = load_bundle(bundle).read_json("results.json")
    for value in (0.2, 0.5):  # what was gathered before is replaced
        findings.save(tmp_path / "runs/any/findings", "questions", [asked("lm", value)])
        assert gather.main(options) == 0
    after = load_bundle(bundle).read_json("results.json")
    assert [Finding(**row) for row in after.pop("findings")] == [asked("lm", 0.5)]
    assert after == before


def test_the_table_of_findings_has_a_column_a_system_and_leaves_out_what_was_not_measured():
    rows = [asked("lm", 0.25), asked("rag", 0.5, low=None, high=None)]
    head, lines = shown.table({"findings": [dataclasses.asdict(row) for row in rows]})
    assert head == ["", "lm", "rag"]
    assert lines == [["exact match, B new, %", "25 (15 to 35)", "50"]]
    assert shown.table({}) == ([""], [])


@pytest.mark.parametrize("found", [5, [3], [{"study": "questions"}], [{"value": "<b>"}], None])
def test_findings_that_are_none_are_left_out(found):
    assert shown.table({"findings": found}) == ([""], [])

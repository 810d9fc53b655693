"""Findings: intervals against known values, and files that come back as they went."""

import math

import numpy as np
import pytest

from train import findings
from train.findings import Finding


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

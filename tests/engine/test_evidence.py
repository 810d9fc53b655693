"""Evidence of the router: its sums per text, and the positions they reach."""

import numpy as np
import pytest
import tiny
import torch

from mlpmem.engine.router import DECAY, REACH, Evidence, gaps, reach, reached
from mlpmem.retrieval.documents import join_passages

PROMPT = "The capital of Peru is Lima."


def test_a_gap_is_the_difference_of_log_probs_above_a_floor():
    lm = torch.tensor([[-1.0, -40.0, -torch.inf], [-1.0, -9.0, -0.5]])
    other = torch.tensor([[-3.0, -1.0, -torch.inf], [-8.0, -20.0, -2.0]])
    assert gaps(lm, other, torch.tensor([0, 2])).tolist() == [-2.0, -1.5]
    assert gaps(lm, other, torch.tensor([1, 0])).tolist() == [3.0, -3.0]
    assert gaps(lm, other, torch.tensor([2, 1])).tolist() == [0.0, 0.0], "both are surprised"


def test_evidence_is_the_decayed_sum_of_earlier_gaps_per_text():
    gaps_read = torch.tensor([1.0, 5.0, 2.0, -3.0])
    evidence = Evidence()
    before = evidence.read(["a", "b", "a", "a"], gaps_read)
    assert before.tolist() == pytest.approx([0, 0, 1, DECAY + 2])
    assert evidence.now(["b", "a", "c"]).tolist() == pytest.approx([5, DECAY * (DECAY + 2) - 3, 0])


def test_without_decay_evidence_is_the_log_odds_of_two_experts_by_bayes_rule(monkeypatch):
    monkeypatch.setattr("mlpmem.engine.router.DECAY", 1.0)
    monkeypatch.setattr("mlpmem.engine.router.LEAST_SURPRISE", -99.0)
    lm, other = torch.log_softmax(torch.randn(2, 9, 5), -1)
    tokens = torch.randint(5, (9,))
    evidence = Evidence()
    evidence.read([0] * 9, gaps(lm, other, tokens))
    odds = [x.gather(1, tokens[:, None]).sum() for x in (lm, other)]
    assert float(evidence.now([0])) == pytest.approx(float(odds[1] - odds[0]), abs=1e-4)


def test_reach_adds_earlier_positions_of_the_same_passage():
    lengths = (REACH + 20, 5, 3)
    pairs = [(0, list(range(n))) for n in lengths]
    documents = join_passages(pairs, [""], [""])
    last, second = lengths[0] - 1, lengths[0] + 2
    read, given = reach(documents, np.array([last, second]))
    assert read[given].tolist() == [last, second]
    assert read.tolist() == [*range(last - REACH, last + 1), second - 1, second]
    for wrong in ([second, last], [last, last], [lengths[0]]):
        with pytest.raises(ValueError, match="must ascend and exclude the first token"):
            reach(documents, np.array(wrong))
    assert reached([7]) == 0 and reached([7, 8, 9]) == 2 and reached(range(999)) == REACH
    assert reached([7, 8, 9], False) == 0


@pytest.fixture(scope="module")
def model():
    """Return a tiny model whose lambda depends only on the evidence."""
    return tiny.routed(k=8)


def test_generation_distributions_and_scoring_have_the_same_lambdas(model):
    ids = model.decoder.encode(PROMPT * 8)[: model.decoder.max_positions - 8]
    trace = model.generate(ids, "mixed", lmbda="auto", max_new_tokens=6)
    whole = [*ids, *(step.token_id for step in trace.steps)]
    expected = model.score(whole).routed["mixed"][len(ids) - 1 :]
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose([step.lmbda for step in trace.steps], expected, atol=2e-3)
    forced = whole[len(ids) :]
    again = model.generate(ids, "mixed", lmbda="auto", max_new_tokens=6, forced=forced)
    np.testing.assert_allclose([s.lmbda for s in again.steps], expected, atol=2e-3)


def test_a_column_has_the_same_lambdas_in_any_company(model):
    together = model.compare(PROMPT, ["lm", "memory", "mixed"], lmbda="auto", max_new_tokens=5)
    for system in ("memory", "mixed"):
        alone = model.generate(PROMPT, system, lmbda="auto", max_new_tokens=5)
        pairs = zip(alone.steps, together[system].steps, strict=True)
        assert all(a.lmbda == pytest.approx(b.lmbda, abs=1e-4) for a, b in pairs)


def test_nothing_before_the_prompts_reach_is_computed(model, monkeypatch):
    rows = []
    whole = type(model).sources
    monkeypatch.setattr(
        type(model), "sources", lambda self, *a, **k: rows.append(len(a[0])) or whole(self, *a, **k)
    )
    ids = model.decoder.encode(PROMPT)
    model.generate(ids, "memory", max_new_tokens=1)
    assert rows == [1], "a fixed lambda needs no evidence"
    model.generate(ids, "memory", lmbda="auto", max_new_tokens=1)
    assert rows == [1, len(ids) - 1, 1]

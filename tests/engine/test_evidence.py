"""Evidence of the router: its sums per text, and the positions they reach."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from mlpmem.api import Model
from mlpmem.engine.prefix import PrefixCache
from mlpmem.engine.router import DECAY, REACH, Evidence, Router, gaps, reach, reached
from mlpmem.engine.scoring import distributions
from mlpmem.errors import MlpMemError
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


@pytest.fixture
def rows(monkeypatch):
    """Return the numbers of positions at which sources were computed, as they are."""
    counts, whole = [], Model.sources
    monkeypatch.setattr(
        Model, "sources", lambda self, *a, **k: counts.append(len(a[0])) or whole(self, *a, **k)
    )
    return counts


def test_nothing_before_the_prompts_reach_is_computed(model, rows):
    ids = model.decoder.encode(PROMPT)
    model.generate(ids, "memory", max_new_tokens=1)
    assert rows == [1], "a fixed lambda needs no evidence"
    model.generate(ids, "memory", lmbda="auto", max_new_tokens=1)
    assert rows == [1, len(ids) - 1, 1]


@pytest.fixture
def deaf():
    """Return a model whose router reads how sure the decoder is, and no evidence."""
    model = tiny.routed(k=8)
    for router in model.routers.values():
        router.config = replace(router.config, evidence=False)
        router.out.weight.data[:, 0] = 0.5
    return model


def test_a_router_without_evidence_needs_no_prompt_scored(deaf, rows):
    ids = deaf.decoder.encode(PROMPT)
    trace = deaf.generate(ids, "memory", lmbda="auto", max_new_tokens=2)
    assert rows == [1, 1] and "evidence_ms" not in trace.cost
    distributions(deaf, ids, "memory", lmbda="auto")
    assert rows == [1, 1, 1]


def test_without_evidence_every_way_to_ask_has_the_same_lambdas(deaf):
    ids, prefix = deaf.decoder.encode(PROMPT), PrefixCache()
    trace = deaf.generate(ids, "memory", lmbda="auto", max_new_tokens=6, prefix=prefix)
    lambdas = [step.lmbda for step in trace.steps]
    assert np.ptp(lambdas) > 1e-4
    whole = [*ids, *(step.token_id for step in trace.steps)]
    scored = deaf.score(whole).routed["memory"][len(ids) - 1 :]
    np.testing.assert_allclose(lambdas, scored, atol=2e-3)
    again = deaf.generate(whole, "memory", lmbda="auto", max_new_tokens=3, prefix=prefix)
    assert again.cost["reused_tokens"] == len(whole) - 1
    plain = deaf.generate(whole, "memory", lmbda="auto", max_new_tokens=3)
    for one, other in zip(again.steps, plain.steps, strict=True):
        assert one.lmbda == pytest.approx(other.lmbda, abs=1e-4)


def test_a_router_says_whether_it_reads_evidence(deaf, tmp_path):
    deaf.routers["memory"].save(tmp_path)
    assert not Router.load(tmp_path).config.evidence
    with pytest.raises(MlpMemError, match="evidence must be true or false"):
        replace(deaf.routers["memory"].config, evidence=1)

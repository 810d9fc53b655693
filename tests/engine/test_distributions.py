"""The maths against references in this file, written with loops and float64."""

import math

import numpy as np
import pytest
import torch

from mlpmem.engine import distributions as d

V = 7


def random_log_probs(*shape: int) -> torch.Tensor:
    return torch.log_softmax(torch.randn(*shape) * 2, dim=-1)


def naive_knn(distances, values, counts, temperature, vocab_size) -> list[list[float]]:
    rows = []
    for distance_row, value_row, count_row in zip(distances, values, counts, strict=True):
        row = [0.0] * vocab_size
        for distance, value, count in zip(distance_row, value_row, count_row, strict=True):
            if value >= 0:
                row[int(value)] += int(count) * math.exp(-float(distance) / temperature)
        total = sum(row)
        rows.append([p / total if total else 0.0 for p in row])
    return rows


def random_neighbours(rows: int = 5, k: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    distances = torch.rand(rows, k).sort(dim=1).values * 30
    return distances, torch.randint(0, V, (rows, k)), torch.randint(1, 4, (rows, k))


@pytest.mark.parametrize("temperature", [1.0, 0.3, 4.0])
def test_log_softmax_is_the_definition_in_float32(temperature):
    logits = torch.randn(3, V).half()
    exact = logits.double() / temperature
    exact = exact - exact.exp().sum(-1, keepdim=True).log()
    actual = d.log_softmax(logits, temperature)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), exact, atol=1e-6, rtol=0)


@pytest.mark.parametrize("lmbda", [1e-6, 0.25, 0.5, 0.999])
def test_interpolate_is_the_mix_of_probabilities(lmbda):
    lm, other = random_log_probs(4, V), random_log_probs(4, V)
    exact = ((1 - lmbda) * lm.double().exp() + lmbda * other.double().exp()).log()
    torch.testing.assert_close(d.interpolate(lm, other, lmbda).double(), exact, atol=1e-5, rtol=0)


def test_interpolate_is_exact_at_both_ends_even_with_impossible_tokens():
    lm, other = random_log_probs(4, V), random_log_probs(4, V)
    lm[0, 2] = other[0, 2] = other[1, 3] = lm[2, 4] = -torch.inf
    assert torch.equal(d.interpolate(lm, other, 0.0), lm)
    assert torch.equal(d.interpolate(lm, other, 1.0), other)
    assert not d.interpolate(lm, other, 0.5).isnan().any()
    assert d.interpolate(lm, other, 0.5)[0, 2] == -torch.inf


@pytest.mark.parametrize("lmbda", [0.0, 1e-9, 0.25, 0.999, 1.0])
def test_the_nll_of_a_mix_is_that_of_mixed_probabilities_in_float64(lmbda):
    lm, other = torch.rand(50, dtype=torch.float64), torch.rand(50, dtype=torch.float64)
    exact = -((1 - lmbda) * lm + lmbda * other).log()
    for kind in (torch.Tensor.numpy, torch.Tensor.clone):
        actual = d.mix_nll(kind(-lm.log()), kind(-other.log()), lmbda)
        assert actual.dtype == torch.float64
        torch.testing.assert_close(actual, exact, atol=1e-12, rtol=1e-12)


def test_the_nll_of_a_mix_is_exact_at_the_ends_and_takes_one_lambda_per_token():
    lm, other = torch.tensor([2.0, torch.inf, 1.0]), torch.tensor([torch.inf, 3.0, 2.0])
    assert torch.equal(d.mix_nll(lm, other, 0.0), lm.double())
    assert torch.equal(d.mix_nll(lm, other, 1.0), other.double())
    actual = d.mix_nll(lm, other, np.array([0.0, 1.0, 0.5]))
    half = -math.log((math.exp(-1) + math.exp(-2)) / 2)
    assert actual.tolist() == pytest.approx([2.0, 3.0, half], rel=1e-12)


def test_weighing_is_the_mix_with_its_gradient():
    torch.manual_seed(0)
    lm, other = -3 * torch.rand(2, 7, dtype=torch.float64)
    logits = (6 * torch.randn(7, dtype=torch.float64)).requires_grad_()
    keep = torch.nn.functional.logsigmoid
    d.weigh(lm, other, keep(-logits), keep(logits)).sum().backward()
    weight = logits.detach().sigmoid()
    slope = weight * (1 - weight) * (other.exp() - lm.exp())
    exact = slope / ((1 - weight) * lm.exp() + weight * other.exp())
    torch.testing.assert_close(logits.grad, exact)


def test_interpolate_takes_one_lambda_per_row():
    lm, other = random_log_probs(3, V), random_log_probs(3, V)
    lmbdas = torch.tensor([0.0, 0.3, 1.0])
    mixed = d.interpolate(lm, other, lmbdas)
    for row, lmbda in enumerate(lmbdas.tolist()):
        assert torch.equal(mixed[row], d.interpolate(lm[row], other[row], lmbda))
    assert torch.equal(mixed, d.interpolate(lm, other, lmbdas[:, None]))


@pytest.mark.parametrize("temperature", [0.5, 20.0])
def test_knn_log_probs_equal_the_loops(temperature):
    distances, values, counts = random_neighbours()
    values[1, 4:] = -1
    actual = d.knn_log_probs(distances, values, counts, temperature, V).exp()
    exact = torch.tensor(naive_knn(distances, values, counts, temperature, V))
    torch.testing.assert_close(actual, exact, atol=1e-6, rtol=1e-5)


def test_a_row_without_neighbours_has_probability_0_everywhere():
    distances, values, counts = random_neighbours()
    values[2] = -1
    distances[2] = torch.inf
    actual = d.knn_log_probs(distances, values, counts, 1.0, V)
    assert (actual[2] == -torch.inf).all()
    assert d.knn_weights(distances, values, counts, 1.0)[2].sum() == 0
    assert d.knn_sparse(distances, values, counts, 1.0).probs[2].sum() == 0


def test_a_count_weighs_as_much_as_that_many_copies():
    distances, values = torch.tensor([[1.0, 4.0]]), torch.tensor([[3, 5]])
    counted = d.knn_log_probs(distances, values, torch.tensor([[3, 1]]), 2.0, V)
    copies = torch.tensor([[1.0, 1.0, 1.0, 4.0]]), torch.tensor([[3, 3, 3, 5]])
    torch.testing.assert_close(counted, d.knn_log_probs(*copies, None, 2.0, V))


def test_far_neighbours_do_not_underflow():
    distances, values = torch.tensor([[1e5, 1e5 + 1]]), torch.tensor([[3, 5]])
    actual = d.knn_log_probs(distances, values, None, 1.0, V).exp()
    torch.testing.assert_close(actual[0, 3], 1 / (1 + torch.exp(torch.tensor(-1.0))))


@pytest.mark.parametrize("k", [1, 9, 40])
def test_sparse_rows_hold_the_dense_distribution(k):
    distances, values, counts = random_neighbours(k=k)
    values[0, : k // 2] = -1
    sparse = d.knn_sparse(distances, values, counts, 3.0)
    dense = torch.zeros(len(values), V).scatter_add_(1, sparse.token_ids, sparse.probs)
    torch.testing.assert_close(dense, d.knn_log_probs(distances, values, counts, 3.0, V).exp())
    assert (sparse.probs[:, :-1] >= sparse.probs[:, 1:]).all()
    assert sparse.probs.shape[1] <= min(k, V)
    assert (sparse.token_ids[sparse.probs == 0] == 0).all()


def test_js_divergence_equals_its_definition_and_stays_within_log_2():
    p, q = random_log_probs(4, V), random_log_probs(4, V)
    p[0, 1] = q[0, 1] = q[1, 2] = -torch.inf
    p, q = torch.log_softmax(p, -1), torch.log_softmax(q, -1)
    for row in range(4):
        a, b = p[row].double().exp(), q[row].double().exp()
        m = (a + b) / 2
        halves = [sum(x * math.log(x / y) for x, y in zip(s, m, strict=True) if x) for s in (a, b)]
        assert float(d.js_divergence(p, q)[row]) == pytest.approx(float(sum(halves)) / 2, abs=1e-6)
    apart = torch.tensor([[0.0, -torch.inf]])
    assert float(d.js_divergence(apart, apart.flip(1))) == pytest.approx(math.log(2))
    assert float(d.js_divergence(apart, apart)) == 0.0


def test_top_k_keeps_the_k_most_probable():
    log_probs = random_log_probs(4, V)
    filtered = d.filter_top_k_top_p(log_probs, top_k=3)
    for row, original in zip(filtered, log_probs, strict=True):
        best = set(sorted(range(V), key=lambda i, o=original: -o[i])[:3])
        assert {i for i in range(V) if row[i] > -torch.inf} == best
    assert torch.equal(d.filter_top_k_top_p(log_probs, 0, 1.0), log_probs)
    assert torch.equal(d.filter_top_k_top_p(log_probs, V + 5, 1.0), log_probs)


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9])
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p):
    log_probs = random_log_probs(6, V)
    filtered = d.filter_top_k_top_p(log_probs, top_p=top_p)
    for row, original in zip(filtered, log_probs, strict=True):
        order = sorted(range(V), key=lambda i, o=original: -o[i])
        best, mass = set(), 0.0
        while mass < top_p:
            mass += math.exp(original[order[len(best)]])
            best.add(order[len(best)])
        assert {i for i in range(V) if row[i] > -torch.inf} == best


def test_sampling_follows_the_distribution():
    log_probs = random_log_probs(1, V)
    uniform = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    ids = d.sample(log_probs.expand(20000, V), 0.7, uniform=uniform)
    share = torch.bincount(ids, minlength=V) / 20000
    torch.testing.assert_close(share, torch.softmax(log_probs[0] / 0.7, -1), atol=2e-4, rtol=0)


def test_sampling_never_takes_a_filtered_token_and_greedy_takes_the_best():
    log_probs = random_log_probs(50, V)
    uniform = torch.linspace(0, 1 - 1e-12, 50, dtype=torch.float64)
    assert torch.equal(d.sample(log_probs, 0.0), log_probs.argmax(-1))
    assert torch.equal(d.sample(log_probs, 1.0, top_k=1, uniform=uniform), log_probs.argmax(-1))
    ids = d.sample(log_probs, 1.3, top_k=2, uniform=uniform)
    assert (d.filter_top_k_top_p(log_probs, 2).gather(1, ids[:, None]) > -torch.inf).all()

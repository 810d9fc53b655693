"""Bulk and inverted search against float64 brute force: blocks, ties, shards, thresholds."""

import numpy as np
import pytest
import torch

from mlpmem.errors import MlpMemError
from mlpmem.retrieval import bulk_search as search_module
from mlpmem.retrieval import exact_search
from mlpmem.retrieval.bulk_search import BulkSearch, pieces
from mlpmem.retrieval.exact_search import ExactSearch, rescore
from mlpmem.retrieval.inverted_file import InvertedSearch, probes_for
from mlpmem.retrieval.top_k import Survivors, above, pack, smallest_first, unpack

RNG = np.random.default_rng(0)
CENTRES = 3 * RNG.standard_normal((60, 24)) + 5
KEYS = (CENTRES[RNG.integers(0, 60, 6001)] + RNG.standard_normal((6001, 24))).astype(np.float16)
QUERIES = KEYS[::601] + np.float16(0.25)


class Shards:
    """Keys that can only be sliced and indexed by entries."""

    def __init__(self, keys):
        self._keys, self.shape, self.dtype = keys, keys.shape, keys.dtype

    def __len__(self):
        return len(self._keys)

    def __getitem__(self, at):
        assert isinstance(at, (slice, np.ndarray)), type(at)
        return self._keys[at]


def brute_force(keys, queries):
    """Return all squared distances (Q, N) in float64."""
    queries, keys = torch.as_tensor(queries).double(), torch.as_tensor(keys).double()
    return torch.stack([(keys - query).square().sum(-1) for query in queries])


def check(search, keys, queries, k):
    """Assert that a search finds the nearest keys, each once, with true distances."""
    _, distances, indices = next(search.search(queries, k))
    every = brute_force(keys, queries)
    torch.testing.assert_close(distances, every.gather(1, indices).float(), rtol=1e-5, atol=1e-5)
    nearest = every.topk(k, largest=False).values.float()
    torch.testing.assert_close(distances, nearest, rtol=1e-5, atol=1e-5)
    assert all(len({*row}) == k for row in indices.tolist())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("k", "block"), [(1, 4096), (7, 1000), (33, 251), (60, 8)])
def test_thresholds_from_a_sample_lose_no_neighbour(dtype, k, block, monkeypatch):
    monkeypatch.setattr(search_module, "fast_dtype", lambda kind: dtype)
    monkeypatch.setitem(search_module.KEY_BLOCK, "cpu", block)
    monkeypatch.setitem(exact_search.BLOCK, "cpu", block)
    monkeypatch.setattr(exact_search, "EXTRA", 4)
    search = BulkSearch(KEYS)
    sampled = search._thresholds(torch.from_numpy(QUERIES).float() - search.mean, k + 4)
    assert (sampled is None) == (k > 7)
    check(search, KEYS, QUERIES, k)


@pytest.mark.parametrize("keys", [Shards(KEYS), torch.from_numpy(KEYS), KEYS.astype(np.float32)])
@pytest.mark.parametrize("budget", [0, 2**30])
def test_keys_of_any_type_are_searched_within_any_budget(keys, budget):
    search = BulkSearch(keys, budget=budget)
    assert bool(search.coarse) == (budget > 0)
    check(search, KEYS, QUERIES, 5)
    check(ExactSearch(keys), KEYS, QUERIES, 5)


def test_rows_whose_threshold_was_too_high_are_searched_again(monkeypatch):
    monkeypatch.setattr(exact_search, "EXTRA", 4)
    search = BulkSearch(KEYS)
    thresholds = search._thresholds
    monkeypatch.setattr(
        search, "_thresholds", lambda q, k: thresholds(q, k) + 1e6 * (torch.arange(len(q)) % 2)
    )
    check(search, KEYS, QUERIES, 5)


def test_thousands_of_equal_keys_do_not_displace_nearer_ones():
    keys = np.concatenate([np.repeat(KEYS[:1], 5000, axis=0), KEYS[:2000]])
    check(BulkSearch(keys), keys, np.concatenate([KEYS[:3], QUERIES[:3]]), 9)


@pytest.mark.parametrize("apart", [3, 300])
def test_of_equal_keys_the_first_are_found(apart):
    keys = KEYS.copy()
    keys[5::apart] = KEYS[5]  # 2,000, or 20 that are all candidates
    search = BulkSearch(keys)
    for queries in (keys[5:6], KEYS[5:6] + np.float16(0.25)):
        _, _, indices = next(search.search(queries, 9))
        assert indices[0].tolist() == list(range(5, len(KEYS), apart))[:9]


def test_packed_integers_sort_by_score_then_index():
    scores = torch.tensor([[-torch.inf, -2.0, -1.5, 0.0, 1e-30, 3.0, 3.0, torch.inf]])
    packed = pack(scores, torch.tensor([[7, 6, 5, 4, 3, 9, 2, 1]]))
    assert torch.equal(packed.argsort(1)[0], torch.arange(8)), "index 2 is better than 9"
    assert torch.equal(smallest_first(packed.flip(1)), packed)


def test_packing_loses_nothing():
    scores = torch.randn(4, 500) * 10.0 ** torch.randint(-38, 38, (4, 500))
    indices = torch.randint(0, 2**32, scores.shape)
    indices[0, :2] = torch.tensor([0, 2**32 - 1])
    actual = unpack(pack(scores, indices))
    assert torch.equal(actual[0], scores)
    assert torch.equal(actual[1], indices)


def test_coarse_scores_find_nearly_all_neighbours_of_long_similar_keys():
    keys = torch.randn(1, 256) * 3 + torch.randn(20000, 256) * torch.linspace(1, 0.05, 256)
    queries = keys[::2000].clone()
    actual = BulkSearch(keys).candidates(queries, 64)
    every = brute_force(keys, queries)
    right = every.gather(1, actual) <= every.kthvalue(64).values[:, None]
    assert right.double().mean() > 0.99


def test_three_pieces_hold_a_float32():
    values = torch.randn(100) * 10.0 ** torch.arange(-10, 10).repeat(5)
    parts = pieces(values, torch.bfloat16)
    torch.testing.assert_close(parts.double().sum(1).float(), values, rtol=2**-23, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("columns", [1, 7, 64])
def test_entries_above_zero_are_found_by_rows(dtype, columns):
    scores = (torch.randn(9, columns) - 0.5).to(dtype)
    scores[0, 0] = 0.0
    rows, at, values = above(scores)
    assert torch.equal(rows, rows.sort().values)
    assert {*zip(rows.tolist(), at.tolist(), strict=True)} == {
        tuple(place) for place in (scores > 0).nonzero().tolist()
    }
    assert torch.equal(values, scores[rows, at].float())


def test_survivors_are_the_best_in_any_order_of_blocks():
    scores, k = torch.randn(5, 400), 6
    survivors = Survivors(torch.full((5,), -10.0), k)
    for start in range(0, 400, 50):
        better = scores[:, start : start + 50] > survivors.thresholds[:, None]
        rows, at = better.nonzero(as_tuple=True)
        survivors.add(rows, at + start, scores[rows, at + start])
    indices, enough = survivors.finish()
    assert enough.all()
    assert torch.equal(indices.sort().values, scores.topk(k).indices.sort().values)


def test_a_row_with_few_survivors_keeps_them_when_others_have_too_many():
    k, survivors = 6, Survivors(torch.zeros(2), 6)
    few = torch.rand(9) + 1  # of row 1, three per block; row 0 has fifty per block
    for start in range(0, 150, 50):
        rows = torch.cat([torch.zeros(50, dtype=torch.long), torch.ones(3, dtype=torch.long)])
        at = torch.cat([torch.arange(50), torch.arange(3)]) + start
        scores = torch.cat([torch.rand(50) + 1, few[start // 50 * 3 :][:3]])
        survivors.add(rows, at, scores)
    indices, enough = survivors.finish()
    every = torch.tensor([0, 1, 2, 50, 51, 52, 100, 101, 102])
    assert enough.all()
    assert indices[1].sort().values.tolist() == every[few.topk(k).indices].sort().values.tolist()


def test_neighbours_are_exact_if_the_first_blocks_hold_many_of_some_queries(monkeypatch):
    monkeypatch.setattr(search_module, "fast_dtype", lambda kind: torch.float32)
    crowd = np.tile(KEYS[:5], (800, 1)) + RNG.normal(0, 0.02, (4000, 24))
    keys = np.concatenate([crowd, KEYS[:4000], KEYS[4000:] + 1]).astype(np.float16)
    check(BulkSearch(keys), keys, keys[::97], 17)


@pytest.mark.gpu
def test_a_gpu_finds_the_nearest_keys():
    check(BulkSearch(KEYS, "cuda"), KEYS, QUERIES, 33)


@pytest.mark.parametrize("kind", ["ivfsq", "ivfpq"])
def test_an_inverted_file_with_all_lists_probed_finds_nearly_all(kind):
    pytest.importorskip("faiss")
    search = InvertedSearch(Shards(KEYS), kind, lists=8, probes=8)
    _, distances, indices = next(search.search(QUERIES, 10))
    every = brute_force(KEYS, QUERIES)
    torch.testing.assert_close(distances, every.gather(1, indices).float(), rtol=1e-5, atol=1e-5)
    right = distances <= every.kthvalue(10).values[:, None].float() * (1 + 1e-5)
    assert right.float().mean() > 0.95
    assert 0.95 < search.recall(10) <= 1.0
    assert InvertedSearch(KEYS, kind, lists=150, probes=1).recall(10) < search.recall(10) - 0.05


def test_too_few_probes_are_refused_with_the_least_number():
    assert probes_for(1000, 10, 20) == 10
    assert probes_for(1_000_000, 4096, 1024) == 32
    assert probes_for(1_000_000, 4096, 10_000) == 123
    assert probes_for(1_000_000, 4096, 1024, 64) == 64
    assert probes_for(100, 5, 400, 5) == 5  # all lists are always enough
    with pytest.raises(MlpMemError, match="Set probes to 123 or more"):
        probes_for(1_000_000, 4096, 10_000, 122)
    with pytest.raises(MlpMemError, match="must hold 3 x 100 entries"):
        pytest.importorskip("faiss")
        next(InvertedSearch(KEYS, "ivfsq", lists=64, probes=1).search(QUERIES, 100))


def test_candidates_are_rescored_with_padding_and_large_indices():
    keys, far = torch.randn(30, 6), 2**33
    at = torch.stack([torch.randperm(30)[:20] for _ in range(4)]) + far
    at[:, :3] = -1
    queries = torch.randn(4, 6)
    distances, indices = rescore(lambda n: keys[(n - far).clamp_min(0)], queries, at, 18)
    assert (indices[:, -1] == -1).all() and distances[:, -1].isinf().all()
    actual = indices[:, :-1]
    assert torch.equal(actual.sort().values, at[:, 3:].sort().values)
    expected = (keys[actual - far] - queries[:, None]).square().sum(-1)
    torch.testing.assert_close(distances[:, :-1], expected)
    assert (expected.diff() >= 0).all()


def test_a_key_finding_itself_does_not_count_as_recall():
    pytest.importorskip("faiss")
    search = InvertedSearch(KEYS, "ivfsq", lists=4, probes=4)
    search_all = search.search

    def only_itself(queries, k):
        for start, distances, indices in search_all(queries, k):
            yield start, torch.where(distances > 0, torch.inf, distances), indices

    search.search = only_itself
    assert search.recall(5) == 0.0

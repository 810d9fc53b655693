"""Every retriever against distances computed one by one."""

import numpy as np
import pytest
import torch

from mlpmem.errors import MlpMemError
from mlpmem.retrieval import exact_search
from mlpmem.retrieval import retriever as r

RNG = np.random.default_rng(0)
KEYS = (RNG.standard_normal((700, 24)) * np.linspace(2, 0.1, 24)).astype(np.float16)
QUERIES = torch.from_numpy(KEYS[::97].astype(np.float32) + 0.01)


def plain_distances(keys: np.ndarray, queries: torch.Tensor) -> np.ndarray:
    return ((queries.numpy()[:, None].astype(np.float64) - keys[None]) ** 2).sum(-1)


@pytest.mark.parametrize("kind", ["exact", "flat"])
@pytest.mark.parametrize("k", [1, 17, 700])
def test_exact_retrievers_find_the_nearest_keys_in_order(kind, k, monkeypatch):
    monkeypatch.setitem(exact_search.BLOCK, "cpu", 128)
    neighbours = r.make_retriever(kind, KEYS).search(QUERIES, k)
    exact = plain_distances(KEYS, QUERIES)
    order = np.argsort(exact, axis=1, kind="stable")[:, :k]
    assert neighbours.indices.dtype == torch.int64 and neighbours.distances.dtype == torch.float32
    expected = np.take_along_axis(exact, order, 1)
    actual = np.take_along_axis(exact, neighbours.indices.numpy(), 1)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)  # near ties may be rounded apart
    np.testing.assert_allclose(neighbours.distances.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert all(len({*row}) == k for row in neighbours.indices.tolist())


@pytest.mark.parametrize("kind", r.RETRIEVERS)
def test_fewer_keys_than_neighbours_are_padded_with_minus_one(kind):
    neighbours = r.make_retriever(kind, KEYS[:300]).search(QUERIES[:2], 305)
    missing = neighbours.indices < 0
    assert (missing == neighbours.distances.isinf()).all()
    if kind != "ivfpq":
        assert missing.sum(1).tolist() == [5, 5]
        assert sorted(neighbours.indices[0, :300].tolist()) == list(range(300))


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_equal_distances_are_ordered_by_index(kind):
    keys = np.repeat(KEYS[:3], 4, axis=0)
    neighbours = r.make_retriever(kind, keys).search(
        torch.from_numpy(keys[:1].astype(np.float32)), 12
    )
    assert neighbours.indices[0, :4].tolist() == [0, 1, 2, 3]
    assert neighbours.distances[0, :4].tolist() == [0.0] * 4


def test_the_approximate_retriever_finds_most_and_gives_true_distances():
    neighbours = r.make_retriever("ivfpq", KEYS).search(QUERIES, 8)
    exact = plain_distances(KEYS, QUERIES)
    best = np.argsort(exact, axis=1)[:, :8]
    pairs = zip(neighbours.indices.tolist(), best.tolist(), strict=True)
    assert np.mean([len({*a} & {*b}) / 8 for a, b in pairs]) > 0.5
    expected = np.take_along_axis(exact, neighbours.indices.numpy(), 1)
    np.testing.assert_allclose(neighbours.distances.numpy(), expected, rtol=1e-3, atol=1e-4)
    assert r.make_retriever("ivfpq", KEYS).bytes < KEYS.nbytes / 2


@pytest.mark.parametrize("kind", r.RETRIEVERS)
def test_a_read_only_map_is_searched_and_not_changed(kind, tmp_path):
    np.save(tmp_path / "keys.npy", KEYS)
    keys = np.load(tmp_path / "keys.npy", mmap_mode="r")
    neighbours = r.make_retriever(kind, keys).search(QUERIES, 3)
    assert torch.equal(neighbours.indices, r.make_retriever(kind, KEYS).search(QUERIES, 3).indices)
    np.testing.assert_array_equal(np.load(tmp_path / "keys.npy"), KEYS)


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_one_query_or_many_find_the_same(kind, monkeypatch):
    monkeypatch.setitem(exact_search.BLOCK, "cpu", 64)
    retriever, queries = r.make_retriever(kind, KEYS), torch.from_numpy(KEYS[::17]).float() + 0.01
    assert len(queries) >= r.MANY
    together = retriever.search(queries, 5)
    for row, query in enumerate(queries):
        single = retriever.search(query[None], 5)
        assert torch.equal(single.indices[0], together.indices[row])
        torch.testing.assert_close(single.distances[0], together.distances[row])


@pytest.mark.parametrize("kind", ["exact", "flat"])
@pytest.mark.parametrize("queries", [1, r.MANY])
def test_of_more_than_k_equal_keys_the_first_are_found(kind, queries, monkeypatch):
    monkeypatch.setitem(exact_search.BLOCK, "cpu", 64)
    keys = np.concatenate([KEYS[:200], np.repeat(KEYS[9:10], 300, axis=0), KEYS[200:]])
    query_rows = torch.from_numpy(KEYS[9:10].astype(np.float32)).repeat(queries, 1)
    neighbours = r.make_retriever(kind, keys).search(query_rows, 20)
    assert neighbours.indices.tolist() == [[9, *range(200, 219)]] * queries
    zeros = np.zeros((200, 24), np.float16)  # every score is 0, as is the threshold
    neighbours = r.make_retriever(kind, zeros).search(torch.zeros(queries, 24), 20)
    assert neighbours.indices.tolist() == [[*range(20)]] * queries


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_equal_keys_in_distant_blocks_are_ordered_by_index(kind, monkeypatch):
    monkeypatch.setitem(exact_search.BLOCK, "cpu", 64)
    spread = np.random.default_rng(1).permutation(2000)[:300]
    keys = (RNG.standard_normal((2000, 24)) * 3).astype(np.float16)
    keys[spread] = keys[spread[0]]
    query_rows = torch.from_numpy(keys[spread[:1]].astype(np.float32)).repeat(r.MANY, 1)
    query_rows += 0.01 * torch.randn(r.MANY, 24, generator=torch.Generator().manual_seed(2))
    neighbours = r.make_retriever(kind, keys).search(query_rows, 5)
    assert neighbours.indices.tolist() == [sorted(spread.tolist())[:5]] * r.MANY


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_keys_far_from_zero_are_searched_exactly(kind):
    keys = (RNG.standard_normal((5000, 24)) * 0.3).astype(np.float32)
    keys[:, 3] += 2000  # as a hidden state's outlier dimension
    keys = keys.astype(np.float16)
    queries = torch.from_numpy(keys[:: 5000 // r.MANY].astype(np.float32))
    neighbours = r.make_retriever(kind, keys).search(queries, 20)
    exact = plain_distances(keys, queries)
    actual = np.take_along_axis(exact, neighbours.indices.numpy(), 1)
    kth = np.sort(exact)[:, 19:20]
    assert (actual <= kth * (1 + 1e-6)).all()


@pytest.mark.parametrize("kind", r.RETRIEVERS)
def test_no_queries_find_nothing(kind):
    neighbours = r.make_retriever(kind, KEYS).search(torch.zeros(0, 24), 5)
    assert neighbours.indices.shape == neighbours.distances.shape == (0, 5)


def test_a_slice_of_a_map_is_copied_right(tmp_path):
    np.save(tmp_path / "keys.npy", KEYS)
    whole = np.load(tmp_path / "keys.npy", mmap_mode="r")
    for part in (whole, whole[50:150], whole[::3]):
        np.testing.assert_array_equal(exact_search.writable(part), part)
        assert exact_search.writable(part).flags.writeable


def test_the_nearest_are_found_in_any_block_and_at_any_block_size(monkeypatch):
    order = np.argsort(plain_distances(KEYS, QUERIES[:1])[0])
    for size in (16, 64, 700):
        monkeypatch.setitem(exact_search.BLOCK, "cpu", size)
        for keys in (KEYS[order], KEYS[order[::-1]]):  # best keys first, then last
            neighbours = r.make_retriever("exact", keys).search(QUERIES, 8)
            expected = np.sort(plain_distances(keys, QUERIES))[:, :8]
            np.testing.assert_allclose(neighbours.distances.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("entries", [1, 2, 15, 16])
def test_keys_too_few_for_an_index_are_searched_exactly_with_a_warning(entries, caplog):
    retriever = r.make_retriever("ivfpq", KEYS[:entries])
    neighbours = retriever.search(QUERIES[:1], 1)
    assert neighbours.indices.tolist() == [[0]]
    few = entries < r.LEAST
    assert isinstance(retriever, r.IVFPQRetriever) != few
    assert (f"ivfpq needs at least 16 entries; got {entries}" in caplog.text) == few


def test_an_unknown_kind_and_an_empty_datastore_are_refused():
    with pytest.raises(MlpMemError, match="must be one of exact, flat.*; got 'magic'"):
        r.make_retriever("magic", KEYS)
    with pytest.raises(MlpMemError, match="must have entries"):
        r.make_retriever("flat", KEYS[:0])

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
    found = r.make_retriever(kind, KEYS).search(QUERIES, k)
    exact = plain_distances(KEYS, QUERIES)
    order = np.argsort(exact, axis=1, kind="stable")[:, :k]
    assert found.indices.dtype == torch.int64 and found.distances.dtype == torch.float32
    wanted = np.take_along_axis(exact, order, 1)
    of_found = np.take_along_axis(exact, found.indices.numpy(), 1)
    np.testing.assert_allclose(of_found, wanted, rtol=1e-5)  # two may be a rounding apart
    np.testing.assert_allclose(found.distances.numpy(), wanted, rtol=1e-4, atol=1e-5)
    assert all(len({*row}) == k for row in found.indices.tolist())


@pytest.mark.parametrize("kind", r.RETRIEVERS)
def test_fewer_keys_than_neighbours_leave_minus_one(kind):
    found = r.make_retriever(kind, KEYS[:300]).search(QUERIES[:2], 305)
    missing = found.indices < 0
    assert (missing == found.distances.isinf()).all()
    if kind != "ivfpq":
        assert missing.sum(1).tolist() == [5, 5]
        assert sorted(found.indices[0, :300].tolist()) == list(range(300))


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_equal_distances_come_in_the_order_of_their_index(kind):
    keys = np.repeat(KEYS[:3], 4, axis=0)
    found = r.make_retriever(kind, keys).search(torch.from_numpy(keys[:1].astype(np.float32)), 12)
    assert found.indices[0, :4].tolist() == [0, 1, 2, 3]
    assert found.distances[0, :4].tolist() == [0.0] * 4


def test_the_approximate_retriever_finds_most_and_gives_true_distances():
    found = r.make_retriever("ivfpq", KEYS).search(QUERIES, 8)
    exact = plain_distances(KEYS, QUERIES)
    best = np.argsort(exact, axis=1)[:, :8]
    pairs = zip(found.indices.tolist(), best.tolist(), strict=True)
    assert np.mean([len({*a} & {*b}) / 8 for a, b in pairs]) > 0.5
    wanted = np.take_along_axis(exact, found.indices.numpy(), 1)
    np.testing.assert_allclose(found.distances.numpy(), wanted, rtol=1e-3, atol=1e-4)
    assert r.make_retriever("ivfpq", KEYS).bytes < KEYS.nbytes / 2


@pytest.mark.parametrize("kind", r.RETRIEVERS)
def test_a_read_only_map_is_searched_and_left_alone(kind, tmp_path):
    np.save(tmp_path / "keys.npy", KEYS)
    keys = np.load(tmp_path / "keys.npy", mmap_mode="r")
    found = r.make_retriever(kind, keys).search(QUERIES, 3)
    assert torch.equal(found.indices, r.make_retriever(kind, KEYS).search(QUERIES, 3).indices)
    np.testing.assert_array_equal(np.load(tmp_path / "keys.npy"), KEYS)


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_one_query_or_many_find_the_same(kind, monkeypatch):
    monkeypatch.setitem(exact_search.BLOCK, "cpu", 64)
    retriever, queries = r.make_retriever(kind, KEYS), torch.from_numpy(KEYS[::17]).float() + 0.01
    assert len(queries) >= r.MANY
    together = retriever.search(queries, 5)
    for row, query in enumerate(queries):
        alone = retriever.search(query[None], 5)
        assert torch.equal(alone.indices[0], together.indices[row])
        torch.testing.assert_close(alone.distances[0], together.distances[row])


@pytest.mark.parametrize("kind", ["exact", "flat"])
@pytest.mark.parametrize("queries", [1, r.MANY])
def test_more_equal_keys_than_are_asked_for_give_the_first(kind, queries, monkeypatch):
    monkeypatch.setitem(exact_search.BLOCK, "cpu", 64)
    keys = np.concatenate([KEYS[:200], np.repeat(KEYS[9:10], 300, axis=0), KEYS[200:]])
    asked = torch.from_numpy(KEYS[9:10].astype(np.float32)).repeat(queries, 1)
    found = r.make_retriever(kind, keys).search(asked, 20)
    assert found.indices.tolist() == [[9, *range(200, 219)]] * queries
    nothing = np.zeros((200, 24), np.float16)  # every score is 0, as is the threshold
    found = r.make_retriever(kind, nothing).search(torch.zeros(queries, 24), 20)
    assert found.indices.tolist() == [[*range(20)]] * queries


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_equal_keys_in_blocks_apart_come_in_the_order_of_their_index(kind, monkeypatch):
    monkeypatch.setitem(exact_search.BLOCK, "cpu", 64)
    spread = np.random.default_rng(1).permutation(2000)[:300]
    keys = (RNG.standard_normal((2000, 24)) * 3).astype(np.float16)
    keys[spread] = keys[spread[0]]
    asked = torch.from_numpy(keys[spread[:1]].astype(np.float32)).repeat(r.MANY, 1)
    asked += 0.01 * torch.randn(r.MANY, 24, generator=torch.Generator().manual_seed(2))
    found = r.make_retriever(kind, keys).search(asked, 5)
    assert found.indices.tolist() == [sorted(spread.tolist())[:5]] * r.MANY


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_keys_far_from_zero_are_searched_exactly(kind):
    keys = (RNG.standard_normal((5000, 24)) * 0.3).astype(np.float32)
    keys[:, 3] += 2000  # as a hidden state's outlier dimension
    keys = keys.astype(np.float16)
    queries = torch.from_numpy(keys[:: 5000 // r.MANY].astype(np.float32))
    found = r.make_retriever(kind, keys).search(queries, 20)
    exact = plain_distances(keys, queries)
    of_found = np.take_along_axis(exact, found.indices.numpy(), 1)
    kth = np.sort(exact)[:, 19:20]
    assert (of_found <= kth * (1 + 1e-6)).all()


@pytest.mark.parametrize("kind", r.RETRIEVERS)
def test_no_queries_find_nothing(kind):
    found = r.make_retriever(kind, KEYS).search(torch.zeros(0, 24), 5)
    assert found.indices.shape == found.distances.shape == (0, 5)


def test_a_part_of_a_map_is_that_part(tmp_path):
    np.save(tmp_path / "keys.npy", KEYS)
    whole = np.load(tmp_path / "keys.npy", mmap_mode="r")
    for part in (whole, whole[50:150], whole[::3]):
        np.testing.assert_array_equal(exact_search.writable(part), part)
        assert exact_search.writable(part).flags.writeable


def test_the_nearest_are_found_wherever_they_lie_and_however_the_blocks_fall(monkeypatch):
    order = np.argsort(plain_distances(KEYS, QUERIES[:1])[0])
    for size in (16, 64, 700):
        monkeypatch.setitem(exact_search.BLOCK, "cpu", size)
        for keys in (KEYS[order], KEYS[order[::-1]]):  # none better later, every one better
            found = r.make_retriever("exact", keys).search(QUERIES, 8)
            wanted = np.sort(plain_distances(keys, QUERIES))[:, :8]
            np.testing.assert_allclose(found.distances.numpy(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("entries", [1, 2, 15, 16])
def test_keys_too_few_for_an_index_are_searched_exactly_and_said_so(entries, caplog):
    made = r.make_retriever("ivfpq", KEYS[:entries])
    found = made.search(QUERIES[:1], 1)
    assert found.indices.tolist() == [[0]]
    few = entries < r.LEAST
    assert isinstance(made, r.IVFPQRetriever) != few
    assert (f"{entries} entries are too few for ivfpq, which needs 16" in caplog.text) == few


def test_an_unknown_kind_and_an_empty_datastore_are_refused():
    with pytest.raises(MlpMemError, match="use one of exact, flat"):
        r.make_retriever("magic", KEYS)
    with pytest.raises(MlpMemError, match="no entries"):
        r.make_retriever("flat", KEYS[:0])

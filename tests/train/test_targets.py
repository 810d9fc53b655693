"""Bulk search equals brute force; targets are the kNN distribution without the row itself."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from mlpmem.errors import MlpMemError
from mlpmem.retrieval import bulk_search, exact_search
from mlpmem.retrieval.bulk_search import BulkSearch
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.documents import Documents
from train.config.tables import TargetsConfig
from train.run.stage import StageContext
from train.stages import targets as stored
from train.stages.targets import SearchedTargets, make_targets, open_targets, sparse_targets


def search(keys, queries, k):
    """Return (distances, indices) of all queries, after checking the blocks' starts."""
    blocks = list(BulkSearch(keys).search(queries, k))
    sizes = np.cumsum([0] + [len(distances) for _, distances, _ in blocks])
    assert [start for start, _, _ in blocks] == sizes[:-1].tolist() and sizes[-1] == len(queries)
    return torch.cat([d for _, d, _ in blocks]), torch.cat([i for _, _, i in blocks])


def brute_force(keys, queries):
    """Return all squared distances (Q, N) in float64."""
    return (queries.double()[:, None] - keys.double()).square().sum(-1)


@pytest.mark.parametrize(("query_block", "key_block"), [(2048, 8192), (7, 64), (300, 1), (1, 599)])
def test_bulk_search_equals_brute_force_for_any_block_size(query_block, key_block, monkeypatch):
    monkeypatch.setattr(exact_search, "QUERY_BLOCK", query_block)
    monkeypatch.setitem(bulk_search.KEY_BLOCK, "cpu", key_block)
    monkeypatch.setitem(exact_search.BLOCK, "cpu", key_block)
    keys, queries = torch.randn(600, 12), torch.randn(23, 12)
    distances, indices = search(keys, queries, 9)
    expected = brute_force(keys, queries).topk(9, largest=False)
    assert torch.equal(indices, expected.indices)
    torch.testing.assert_close(distances, expected.values.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_keys_in_half_precision_far_from_zero_are_searched_exactly(dtype):
    keys = (torch.randn(900, 16) + 30).to(dtype)
    queries = keys[::50] + (torch.randn(18, 16) / 4).to(dtype)
    distances, indices = search(keys, queries, 5)
    expected = brute_force(keys, queries)
    torch.testing.assert_close(distances, expected.topk(5, largest=False).values.float())
    torch.testing.assert_close(distances, expected.gather(1, indices).float())


@pytest.mark.parametrize("count", [1, 2, 20])
def test_more_neighbours_than_keys_gives_all_keys(count):
    keys = torch.randn(count, 3)
    distances, indices = search(keys, torch.randn(4, 3), 50)
    assert indices.shape == distances.shape == (4, count)
    assert indices.sort().values.tolist() == [list(range(count))] * 4
    assert (distances.diff() >= 0).all()


def test_duplicate_keys_are_each_found_once():
    keys = torch.randn(40, 4).repeat(3, 1)
    distances, indices = search(keys, keys[:40], 3)
    assert not distances.any()
    rows = torch.arange(40)[:, None] + torch.tensor([0, 40, 80])
    assert torch.equal(indices.sort().values, rows)


def test_ties_beyond_rescoring_may_return_other_equal_neighbours():
    keys = torch.randn(1, 64) * 2 + torch.randn(2000, 64) / 64
    distances, indices = search(keys, keys[:20], 16)
    expected = brute_force(keys, keys[:20])
    torch.testing.assert_close(distances, expected.gather(1, indices).float())
    nearest = expected.topk(16, largest=False).values.float()
    assert (distances - nearest).abs().max() < nearest.max() / 2


# Targets


def store_of(keys, values, counts):
    """Return a Datastore whose entries are the second tokens of passages of two."""
    tokens = np.stack([np.zeros(len(values), np.int32), np.array(values, np.int32)], 1).ravel()
    documents = Documents(
        tokens=tokens,
        offsets=np.arange(len(values) + 1) * 2,
        document_of=np.zeros(len(values), np.int32),
        titles=["one"],
        groups=["text"],
    )
    positions = np.arange(len(values)) * 2 + 1
    return Datastore(np.array(keys, np.float16), positions, np.array(counts, np.int32), documents)


def targets_of(store, own, k, temperature=2.0):
    """Return {row: {token: prob}} of the sparse targets of entries `own`."""
    keys = torch.from_numpy(store.keys)
    _, distances, indices = next(BulkSearch(keys).search(keys[own], k + 1))
    sparse = sparse_targets(store, np.array(own), distances, indices, temperature)
    return [
        {int(t): float(p) for t, p in zip(ids, probs, strict=True) if p > 0}
        for ids, probs in zip(*sparse, strict=True)
    ]


def leave_one_out(store, row, temperature=2.0):
    """Return {token: prob} by a plain loop over all entries, without one copy of `row`."""
    mass = {}
    for i, (key, value, count) in enumerate(
        zip(np.asarray(store.keys, float), store.values, store.counts, strict=True)
    ):
        copies = int(count) - (i == row)
        if copies:
            weight = copies * np.exp(-np.square(key - store.keys[row]).sum() / temperature)
            mass[int(value)] = mass.get(int(value), 0.0) + weight
    total = sum(mass.values())
    return {token: weight / total for token, weight in mass.items()}


def test_a_row_excludes_itself_by_index_not_by_key():
    store = store_of([[1, 1], [1, 1], [1, 1], [0, 0]], [5, 6, 7, 8], [1, 1, 1, 1])
    for row, own in enumerate([5, 6, 7]):
        probs = targets_of(store, [row], 3)[0]
        assert own not in probs and set(probs) == {5, 6, 7, 8} - {own}
        assert probs == pytest.approx(leave_one_out(store, row))


def test_an_entry_of_two_copies_keeps_one():
    store = store_of([[0, 0], [0, 0], [1, 0]], [5, 6, 7], [2, 1, 3])
    probs = targets_of(store, [0, 1, 2], 2)
    near, far = 1.0, np.exp(-0.5)
    assert probs[0] == pytest.approx(
        {t: w / (2 * near + 3 * far) for t, w in ((5, 1.0), (6, 1.0), (7, 3 * far))}
    )
    assert probs[1] == pytest.approx({5: 2 / (2 + 3 * far), 7: 3 * far / (2 + 3 * far)})
    assert probs[2] == pytest.approx(leave_one_out(store, 2))


def test_a_row_with_no_other_entry_has_an_empty_target():
    store = store_of([[0, 0]], [5], [1])
    assert targets_of(store, [0], 4) == [{}]


@pytest.mark.parametrize("seed", range(3))
def test_targets_equal_a_plain_loop_over_all_entries(seed):
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 3, (50, 2))  # few values, so that many keys coincide
    store = store_of(keys, rng.integers(2, 9, 50), rng.integers(1, 4, 50))
    for row, probs in enumerate(targets_of(store, list(range(50)), 60)):
        assert probs == pytest.approx(leave_one_out(store, row), rel=1e-5)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Return folders of a tiny decoder and its datastore."""
    return tiny.stages(tmp_path_factory.mktemp("inputs"))


def context(folder, inputs, **config):
    folder.mkdir(exist_ok=True)
    return StageContext(
        folder, inputs, TargetsConfig(**{"k": 6, "temperature": 30.0, **config}), seed=0
    )


def arrays(folder):
    names = ("rows", "offsets", "token_ids", "probs")
    return [np.load(folder / f"{name}.npy", allow_pickle=False) for name in names]


def test_stored_targets_read_back_as_the_distributions(inputs, tmp_path):
    counts = make_targets(context(tmp_path, inputs, k=158, nll_floor=-1.0))  # all but itself
    store = Datastore.load(inputs["datastore"])
    rows, offsets, token_ids, probs = arrays(tmp_path)
    assert counts["tokens"] == len(rows) == len(store) and counts["entries"] == len(store)
    assert offsets[0] == 0 and offsets[-1] == len(token_ids) == len(probs)
    assert probs.dtype == np.float16 and probs.min() >= 1e-6 * 0.99
    assert counts["mean_support"] == pytest.approx(len(probs) / len(rows), abs=0.01)
    for row in rows:
        at = slice(offsets[row], offsets[row + 1])
        actual = dict(zip(token_ids[at].tolist(), probs[at].astype(float).tolist(), strict=True))
        expected = leave_one_out(store, row, 30.0)
        large = {t: p for t, p in expected.items() if p > 1.01e-6}
        assert large.keys() <= actual.keys() <= {t for t, p in expected.items() if p > 0.99e-6}
        assert {t: actual[t] for t in large} == pytest.approx(large, rel=2e-2, abs=1e-7)
    left = {p.name for p in tmp_path.iterdir()} - set(counts["scratch"])
    assert left == {"offsets.npy", "probs.npy", "rows.npy", "token_ids.npy"}


def test_rows_are_all_hard_entries_and_a_share_of_the_easy_ones(inputs, tmp_path):
    bound, store = tiny.decoder(), Datastore.load(inputs["datastore"])
    nll = []
    for position in store.positions:
        start = store.documents.offsets[store.documents.passage_at(position)]
        ids = torch.from_numpy(store.documents.tokens[start : position + 1].astype(np.int64))
        log_probs = bound.forward(ids[None, :-1]).logits[0, -1].log_softmax(-1)
        nll.append(-float(log_probs[ids[-1]]))
    floor = float(np.median(nll)) + 1e-3
    hard = np.flatnonzero(np.array(nll) > floor)
    for share, name in ((0.0, "none"), (0.4, "some"), (1.0, "all")):
        make_targets(context(tmp_path / name, inputs, nll_floor=floor, easy_share=share))
    none, some, every = (arrays(tmp_path / name)[0] for name in ("none", "some", "all"))
    assert none.tolist() == hard.tolist() and len(every) == len(store)
    assert set(hard) < set(some) and len(hard) < len(some) < len(store)


def test_rows_sampled_evenly_need_no_decoder(inputs, tmp_path):
    inputs = {name: path for name, path in inputs.items() if name != "decoder"}
    make_targets(context(tmp_path, inputs, nll_floor=100.0, easy_share=0.4))
    rows, entries = arrays(tmp_path)[0], len(Datastore.load(inputs["datastore"]))
    assert 0.2 * entries < len(rows) < 0.6 * entries


def test_a_killed_run_resumes_from_its_shards(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "QUERY_BLOCK", 16)
    make_targets(context(tmp_path / "whole", inputs))
    save, written = stored._save_shard, []

    def killed(path, *values):
        if len(written) == 2:
            path.with_name(f"new_{path.name}").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        written.append(path.name)
        save(path, *values)

    monkeypatch.setattr(stored, "_save_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        make_targets(context(tmp_path / "killed", inputs))
    first = list(written)
    monkeypatch.setattr(
        stored, "_save_shard", lambda path, *v: (written.append(path.name), save(path, *v))
    )
    counts = make_targets(context(tmp_path / "killed", inputs))
    assert len(first) == 2 and len(set(written)) == len(written) > 4  # none is written twice
    for one, other in zip(arrays(tmp_path / "whole"), arrays(tmp_path / "killed"), strict=True):
        assert np.array_equal(one, other)
    left = {p.name for p in (tmp_path / "killed").iterdir()} - set(counts["scratch"])
    assert left == {"rows.npy", "offsets.npy", "token_ids.npy", "probs.npy"}


@pytest.mark.parametrize("damage", ["cut off", "a flipped bit"])
@pytest.mark.parametrize("names", ["shard_*.npz", "rows_*.npz"])
def test_a_damaged_part_of_a_killed_run_is_made_again(
    names, damage, inputs, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(stored, "QUERY_BLOCK", 16)
    for place in ("whole", "damaged"):
        make_targets(context(tmp_path / place, inputs))
    path = sorted((tmp_path / "damaged").glob(names))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data[: len(data) // 2] if damage == "cut off" else data)
    make_targets(context(tmp_path / "damaged", inputs))
    assert f"damaged: {path.name} is damaged; it is made again" in capsys.readouterr().out
    for one, other in zip(arrays(tmp_path / "whole"), arrays(tmp_path / "damaged"), strict=True):
        assert np.array_equal(one, other)


def test_stored_and_searched_rows_are_the_same(inputs, tmp_path):
    make_targets(context(tmp_path, inputs, nll_floor=-1.0))
    store, config = Datastore.load(inputs["datastore"]), TargetsConfig(k=6, temperature=30.0)
    at = np.random.default_rng(0).permutation(len(store))
    stored = open_targets(store, tmp_path, config).rows(at)
    searched = open_targets(store, tmp_path, replace(config, rows="searched")).rows(at)
    for one, other in ((stored, searched), (searched, stored)):
        for ids, probs, other_ids, other_probs in zip(*one, *other, strict=True):
            mass = dict(zip(other_ids[other_probs > 0], other_probs[other_probs > 0], strict=True))
            for token, prob in zip(ids[probs > 1e-5], probs[probs > 1e-5], strict=True):
                assert mass[token] == pytest.approx(prob, rel=2e-3, abs=1e-6)
    assert stored[0].dtype == searched[0].dtype == np.int64
    assert stored[1].dtype == searched[1].dtype == np.float32


def test_searched_targets_store_only_the_rows(inputs, tmp_path):
    counts = make_targets(context(tmp_path, inputs, rows="searched"))
    left = {p.name for p in tmp_path.iterdir()} - set(counts["scratch"])
    assert left == {"rows.npy"} and counts["search"] == "exact"


def test_an_empty_batch_has_empty_targets(inputs, tmp_path):
    make_targets(context(tmp_path, inputs, nll_floor=-1.0))
    store = Datastore.load(inputs["datastore"])
    for rows in ("stored", "searched"):
        config = TargetsConfig(k=6, temperature=30.0, rows=rows)
        ids, probs = open_targets(store, tmp_path, config).rows(np.zeros(0, np.int64))
        assert len(ids) == len(probs) == 0


def test_a_recipe_that_chooses_no_row_is_refused_with_the_remedy(inputs, tmp_path):
    with pytest.raises(
        MlpMemError, match=r"none of the 159 entries .* lower nll_floor \(90\) or raise"
    ):
        make_targets(context(tmp_path, inputs, nll_floor=90.0, easy_share=0.0))


def test_a_teacher_sets_the_distances_and_must_have_the_same_entries(inputs, tmp_path):
    store = Datastore.load(inputs["datastore"])
    keys = np.random.default_rng(1).standard_normal((len(store), 5)).astype(np.float16)
    replace(store, keys=keys).save(tmp_path / "teacher")
    config = TargetsConfig(k=len(store), temperature=2.0, teacher=str(tmp_path / "teacher"))
    ids, probs = SearchedTargets(store, np.arange(len(store)), config).rows(np.arange(3))
    for row in range(3):
        actual = {int(t): float(p) for t, p in zip(ids[row], probs[row], strict=True) if p > 0}
        expected = leave_one_out(replace(store, keys=keys), row)
        assert actual == pytest.approx({t: p for t, p in expected.items() if p > 1e-6}, rel=1e-3)
    replace(store, counts=store.counts + 1).save(tmp_path / "other")
    with pytest.raises(MlpMemError, match="Build it from the same corpus"):
        SearchedTargets(store, np.arange(3), replace(config, teacher=str(tmp_path / "other")))


def test_an_inverted_file_reports_its_recall(inputs, tmp_path):
    pytest.importorskip("faiss")
    counts = make_targets(context(tmp_path, inputs, exact_most=3, k=4, lists=2))
    assert counts["search"] == "ivfsq" and counts["lists"] == 2 and 0.5 < counts["recall"] <= 1.0


def test_invalid_choices_are_refused():
    with pytest.raises(MlpMemError, match="rows must be one of stored, searched; got 'kept'"):
        TargetsConfig(rows="kept")
    with pytest.raises(MlpMemError, match="k must be 1 or more; got 0"):
        TargetsConfig(k=0)

"""Shards against the one array they were cut from."""

import hashlib
import json
from itertools import product

import numpy as np
import pytest
import torch

from mlpmem.errors import MlpMemError
from mlpmem.retrieval import shards
from mlpmem.retrieval.retriever import make_retriever
from mlpmem.retrieval.shards import open_keys, read_index, write_index, write_shard

KEYS = np.random.default_rng(0).standard_normal((97, 5)).astype(np.float16)
CUTS = (0, 30, 31, 80, 97)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("shards")
    spans = zip(CUTS, CUTS[1:], strict=False)
    written = [write_shard(path, i, KEYS[a:b]) for i, (a, b) in enumerate(spans)]
    write_index(path, 5, written)
    return path


def test_shards_have_the_attributes_of_their_array(folder):
    keys = open_keys(folder)
    assert (len(keys), keys.shape, keys.ndim, keys.dtype) == (97, (97, 5), 2, np.float16)
    assert keys.nbytes == KEYS.nbytes
    np.testing.assert_array_equal(np.asarray(keys), KEYS)
    np.testing.assert_array_equal(np.asarray(keys, np.float32), KEYS.astype(np.float32))


def test_any_slice_is_the_slice_of_the_array(folder):
    keys, bounds = open_keys(folder), (None, -120, -67, -1, 0, 29, 30, 31, 80, 96, 97, 120)
    for first, end in product(bounds, bounds):
        for step in (None, 1, 3, -1, -4):
            at = slice(first, end, step)
            np.testing.assert_array_equal(keys[at], KEYS[at])


@pytest.mark.parametrize("count", [0, 1, 2, 7, 200])
def test_any_entries_are_those_of_the_array(folder, count):
    keys, at = open_keys(folder), np.random.default_rng(count).integers(-97, 97, count)
    np.testing.assert_array_equal(keys[at], KEYS[at])
    np.testing.assert_array_equal(keys[at.tolist()], KEYS[at])
    square = np.stack([at, at[::-1]])
    np.testing.assert_array_equal(keys[square], KEYS[square])


def test_an_int_a_mask_and_a_tensor_index_entries_too(folder):
    keys, mask = open_keys(folder), np.arange(97) % 7 == 3
    np.testing.assert_array_equal(keys[30], KEYS[30])
    np.testing.assert_array_equal(keys[mask], KEYS[mask])
    np.testing.assert_array_equal(keys[torch.tensor([80, 2])], KEYS[[80, 2]])
    for at in (97, [-98], [3, 97]):
        with pytest.raises(IndexError):
            keys[at]


def test_a_slice_within_a_shard_is_a_view_of_its_map(folder):
    assert not open_keys(folder)[31:80].flags.owndata
    assert open_keys(folder)[29:32].flags.owndata


def test_more_shards_than_may_be_open_can_be_read(folder, monkeypatch):
    monkeypatch.setattr(shards, "OPEN", 1)
    np.testing.assert_array_equal(open_keys(folder)[::-1], KEYS[::-1])


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_a_retriever_over_shards_equals_one_over_the_array(folder, kind):
    if kind == "flat":
        pytest.importorskip("faiss")
    queries = torch.from_numpy(KEYS[:9].astype(np.float32)) + 0.1
    neighbours = make_retriever(kind, open_keys(folder)).search(queries, 7)
    expected = make_retriever(kind, KEYS).search(queries, 7)
    assert torch.equal(neighbours.indices, expected.indices)


def test_the_index_lists_entries_and_hashes(folder):
    size, listed = read_index(folder)
    assert size == 5 and [s.entries for s in listed] == [30, 1, 49, 17]
    for shard in listed:
        assert shard.sha256 == hashlib.sha256((folder / shard.file).read_bytes()).hexdigest()
        assert np.load(folder / shard.file, allow_pickle=False).dtype == np.float16


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "keys-00000.npy").unlink(), "keys-00000.npy"),
        (lambda f: (f / "keys-00000.npy").write_bytes(b"short"), "keys-00000.npy"),
        (lambda f: write_shard(f, 0, KEYS[:3]), "must hold .97, 5. float16; got .3, 5. float16"),
        (lambda f: (f / "shards.json").unlink(), "shards.json"),
        (lambda f: (f / "shards.json").write_text("{"), "shards.json"),
        (lambda f: (f / "shards.json").write_text(json.dumps({"size": 5})), "shards.json"),
    ],
)
def test_a_missing_or_damaged_file_is_named_with_the_next_step(damage, message, tmp_path):
    write_index(tmp_path, 5, [write_shard(tmp_path, 0, KEYS)])
    damage(tmp_path)
    with pytest.raises(MlpMemError, match=f"{message}.*Build or download"):
        open_keys(tmp_path)

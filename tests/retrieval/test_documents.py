"""Entries against a dictionary of prefixes; damaged folders are refused."""

from collections import Counter

import numpy as np
import pytest
import tiny

from mlpmem.errors import MlpMemError
from mlpmem.retrieval.documents import Documents, entries, join_documents, join_passages


def random_documents(seed: int) -> Documents:
    """Return passages over three tokens, so that prefixes repeat often."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, 40)
    passages = [(i % 5, rng.integers(0, 3, length).tolist()) for i, length in enumerate(lengths)]
    return join_passages(passages, [f"d{i}" for i in range(5)], ["text"] * 5)


@pytest.mark.parametrize("seed", range(4))
def test_there_is_one_entry_per_distinct_prefix_with_its_number_of_copies(seed):
    documents = random_documents(seed)
    expected = Counter()
    for p in range(len(documents)):
        passage = tuple(documents.passage(p).tolist())
        expected.update(passage[: end + 1] for end in range(1, len(passage)))
    positions, counts = entries(documents)
    actual = {}
    for position, count in zip(positions, counts, strict=True):
        first = documents.offsets[documents.passage_at(position)]
        actual[tuple(documents.tokens[first : position + 1].tolist())] = int(count)
    assert actual == dict(expected)
    assert (np.diff(positions) > 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_appended_documents_do_not_move_earlier_entries(seed):
    old, new = random_documents(seed), random_documents(seed + 10)
    joined = join_documents(old, new)
    for p in range(len(new)):
        assert joined.passage(len(old) + p).tolist() == new.passage(p).tolist()
        document = int(joined.document_of[len(old) + p])
        assert joined.titles[document] == new.titles[new.document_of[p]]
        assert document >= len(old.titles)
    (before, counts), (after, more) = entries(old), entries(joined)
    assert after[: len(before)].tolist() == before.tolist()
    assert (more[: len(before)] >= counts).all() and more.sum() > counts.sum()
    assert (after[len(before) :] >= len(old.tokens)).all()


def test_a_passage_of_one_token_has_no_entry():
    documents = join_passages([(0, [4])], ["one"], ["text"])
    positions, counts = entries(documents)
    assert len(positions) == len(counts) == 0


def test_loaded_documents_equal_the_saved_ones(tmp_path):
    documents = tiny.documents()
    documents.save(tmp_path)
    loaded = Documents.load(tmp_path)
    for name in ("tokens", "offsets", "document_of"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(documents, name))
    assert (loaded.titles, loaded.groups) == (documents.titles, documents.groups)
    assert loaded.tokens.dtype == np.uint16


def test_token_ids_beyond_two_bytes_are_saved(tmp_path):
    join_passages([(0, [1, 70000])], ["big"], ["text"]).save(tmp_path)
    assert Documents.load(tmp_path).tokens.tolist() == [1, 70000]


@pytest.mark.parametrize("name", ["tokens.npy", "offsets.npy", "titles.json"])
def test_a_folder_with_a_missing_or_truncated_file_is_refused(name, tmp_path):
    tiny.documents().save(tmp_path)
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(MlpMemError, match="again"):
        Documents.load(tmp_path)
    file.unlink()
    with pytest.raises(MlpMemError, match="again"):
        Documents.load(tmp_path)


def test_arrays_that_contradict_one_another_are_refused():
    documents = tiny.documents()
    with pytest.raises(MlpMemError, match="do not cut"):
        Documents(documents.tokens[:-1], *_rest(documents))
    with pytest.raises(MlpMemError, match="titles and groups"):
        Documents(documents.tokens, documents.offsets, documents.document_of, [], [])


def _rest(documents: Documents) -> tuple:
    return documents.offsets, documents.document_of, documents.titles, documents.groups

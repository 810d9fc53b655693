"""Packed passages: a row is a tree of prefixes; hidden states equal those of single passages."""

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlpmem.retrieval import passages
from mlpmem.retrieval.documents import entries, join_passages
from mlpmem.retrieval.passages import lay_out, pack, row_size

few_tokens = st.lists(st.integers(0, 3), min_size=1, max_size=9).map(np.array)


@given(st.lists(few_tokens, min_size=1, max_size=20), st.integers(1, 24))
def test_every_sequence_lies_in_one_row_along_its_own_path(sequences, size):
    rows = pack(sequences, size)
    assert sorted(i for row in rows for i, _ in row) == list(range(len(sequences)))
    ids, positions, mask = lay_out(rows, sequences)
    for r, row in enumerate(rows):
        assert row_size(row) <= max(size, max(len(sequences[i]) for i, _ in row))
        for i, path in row:
            assert ids[r, path].tolist() == sequences[i].tolist()
            assert positions[r, path].tolist() == list(range(len(path)))
            for n, at in enumerate(path):
                assert np.flatnonzero(mask[r, 0, at]).tolist() == sorted(path[: n + 1])


def test_a_shared_beginning_is_stored_once_per_row():
    sequences = [np.array([5, 6, 7]), np.array([5, 6, 8, 9]), np.array([5, 6, 7, 1])]
    (row,) = pack(sequences)
    assert row_size(row) == len({(5,), (5, 6), (5, 6, 7), (5, 6, 7, 1), (5, 6, 8), (5, 6, 8, 9)})


def alike(decoder, count=14):
    """Return documents whose passages share beginnings of every length."""
    rng = np.random.default_rng(0)
    start = [0, *rng.integers(2, decoder.vocab_size, 30).tolist()]
    rows = [start[: 2 * n + 2] + rng.integers(2, 50, 3).tolist() for n in range(count)]
    return join_passages([(0, row) for row in rows], ["alike"], ["text"])


@pytest.mark.parametrize("family", sorted({*tiny.FAMILIES, *tiny.OTHERS} - {"bloom"}))
def test_states_of_packed_passages_equal_those_of_single_ones(family):
    decoder = tiny.decoder(family, depth=1)
    documents = alike(decoder)
    positions, _ = entries(documents)
    batches = passages.plan(documents, positions, passages.CPU_BATCH)
    assert passages._shared(decoder, documents, batches) is not None
    keys = torch.full((len(positions), decoder.hidden_size), torch.nan)
    for places in passages.forward_positions(decoder, documents, positions, head=False):
        keys[places.at] = places.hidden
    assert places.done == places.total
    for row, position in zip(keys, positions, strict=True):
        p = int(documents.passage_at(position))
        before = documents.tokens[documents.offsets[p] : position].astype(np.int64)
        ids = torch.from_numpy(before)[None]
        torch.testing.assert_close(row, decoder.forward(ids).hidden[0, -1], atol=2e-5, rtol=1e-4)


def test_passages_that_share_little_or_have_a_short_window_are_not_packed():
    decoder = tiny.decoder()
    apart = join_passages([(0, [n, n + 1, n + 2]) for n in range(9)], ["apart"], ["text"])
    batches = passages.plan(apart, entries(apart)[0], 64)
    assert passages._shared(decoder, apart, batches) is None
    windowed, documents = tiny.decoder("mistral"), alike(decoder)
    windowed.model.config.sliding_window = 8
    batches = passages.plan(documents, entries(documents)[0], 64)
    assert passages._shared(windowed, documents, batches) is None

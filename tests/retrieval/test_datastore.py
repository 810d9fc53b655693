"""Keys against single prefixes; contexts within their passage."""

import numpy as np
import pytest
import tiny
import torch

from mlpmem.errors import MlpMemError
from mlpmem.retrieval.datastore import Datastore, build_keys
from mlpmem.retrieval.documents import entries, join_passages


def plain_keys(decoder, documents, positions) -> np.ndarray:
    """Return every entry's key from a separate pass over its prefix, float32."""
    rows = []
    for position in positions:
        p = int(documents.passage_at(position))
        prefix = documents.tokens[documents.offsets[p] : position].astype(np.int64)
        rows.append(decoder.forward(torch.from_numpy(prefix)[None]).hidden[0, -1].numpy())
    return np.stack(rows)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("batch_tokens", [1, 64, None])
def test_a_key_is_the_hidden_state_one_token_before_the_value(family, batch_tokens):
    decoder = tiny.decoder(family)
    documents = tiny.documents()
    positions, _ = entries(documents)
    keys = build_keys(decoder, documents, positions, batch_tokens=batch_tokens)
    assert keys.dtype == np.float16
    expected = plain_keys(decoder, documents, positions)
    np.testing.assert_allclose(keys.astype(np.float32), expected, atol=3e-3, rtol=2e-3)


def test_positions_in_any_order_get_their_own_keys():
    decoder, documents = tiny.decoder(), tiny.documents()
    positions, _ = entries(documents)
    keys = build_keys(decoder, documents, positions, dtype=np.float32)
    some = np.random.default_rng(0).permutation(len(positions))[:17]
    chosen_keys = build_keys(decoder, documents, positions[some], dtype=np.float32)
    np.testing.assert_allclose(chosen_keys, keys[some], atol=1e-4)


def test_keys_are_written_into_out_and_progress_reaches_the_end(tmp_path):
    decoder, documents = tiny.decoder(), tiny.documents()
    positions, _ = entries(documents)
    shape = len(positions), decoder.hidden_size
    out = np.lib.format.open_memmap(tmp_path / "keys.npy", "w+", np.float16, shape)
    seen = []
    build_keys(decoder, documents, positions, out, lambda *pair: seen.append(pair), batch_tokens=64)
    np.testing.assert_array_equal(out, build_keys(decoder, documents, positions, batch_tokens=64))
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]
    assert seen[-1][0] < len(documents.tokens), "a repeated passage is not run"


def test_building_can_be_stopped_between_batches():
    decoder, documents = tiny.decoder(), tiny.documents()
    positions, _ = entries(documents)
    answers = iter([False, True])
    with pytest.raises(MlpMemError, match="stopped"):
        build_keys(decoder, documents, positions, batch_tokens=8, stop=lambda: next(answers))


def test_a_passage_longer_than_the_decoder_reads_is_refused():
    documents = join_passages([(0, [0] * (tiny.POSITIONS + 5))], ["long"], ["text"])
    with pytest.raises(MlpMemError, match="Cut the documents into shorter passages"):
        build_keys(tiny.decoder(), documents, np.array([tiny.POSITIONS + 4]))


def test_hidden_states_that_half_precision_cannot_hold_are_refused():
    decoder = tiny.decoder()
    decoder.model.model.layers[-1].post_attention_layernorm.weight.data.fill_(1e6)
    documents = tiny.documents()
    with pytest.raises(MlpMemError, match="half precision"):
        build_keys(decoder, documents, entries(documents)[0])


def test_a_context_never_leaves_its_passage():
    store = tiny.datastore(tiny.decoder())
    documents = store.documents
    for i, position in enumerate(store.positions):
        context = store.context(i, before=5, after=3)
        p = int(documents.passage_at(position))
        passage = documents.passage(p).tolist()
        at = int(position - documents.offsets[p])
        assert context.left == passage[max(0, at - 5) : at]
        assert [context.target, *context.right] == passage[at : at + 4]
        assert context.target == store.values[i]
        assert context.title == documents.titles[documents.document_of[p]]
        assert context.group == documents.groups[documents.document_of[p]]


def test_a_loaded_datastore_equals_the_saved_one(tmp_path):
    store = tiny.datastore(tiny.decoder())
    store.save(tmp_path)
    loaded = Datastore.load(tmp_path)
    for name in ("keys", "positions", "counts", "values"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(store, name))
    assert loaded.documents.titles == store.documents.titles
    assert len(loaded) == len(store)


def test_a_datastore_whose_files_are_missing_or_do_not_match_is_refused(tmp_path):
    store = tiny.datastore(tiny.decoder())
    store.save(tmp_path)
    np.save(tmp_path / "counts.npy", store.counts[:-1])
    with pytest.raises(MlpMemError, match="Build the keys again"):
        Datastore.load(tmp_path)
    (tmp_path / "keys-00000.npy").unlink()
    with pytest.raises(MlpMemError, match="cannot read .*keys-00000.npy"):
        Datastore.load(tmp_path)

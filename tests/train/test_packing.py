"""Packing loses no token, and a packed passage has the logits of the unpacked one."""

import numpy as np
import pytest
import tiny
import torch

from mlpmem.retrieval.documents import join_passages
from train.fit.packing import NO_TARGET, pack
from train.stages.decoder import packed_loss, quick_attention


def passages_of(lengths, vocab=200, seed=0):
    """Return Documents with passages of these lengths."""
    rng = np.random.default_rng(seed)
    pairs = [(0, rng.integers(2, vocab, n).tolist()) for n in lengths]
    return join_passages(pairs, ["one"], ["text"])


@pytest.mark.parametrize("length", [1, 7, 16])
@pytest.mark.parametrize("count", [1, 3, 200])
def test_every_passage_is_packed_once_complete_or_cut_at_the_row(length, count):
    lengths = np.random.default_rng(count).integers(1, 20, count)
    documents = passages_of(lengths)
    rows = pack(documents, length, "0/3")
    ids, segments, positions = rows.fill(np.arange(len(rows)))
    assert ids.shape == segments.shape == positions.shape == (len(rows), length)
    assert (segments > 0).sum() == np.minimum(lengths, length).sum()
    for p in range(count):
        row, column = (segments == p + 1).nonzero()
        assert len(set(row)) == 1 and (np.diff(column) == 1).all()
        assert ids[row, column].tolist() == documents.passage(p)[:length].tolist()
        assert positions[row, column].tolist() == list(range(len(row)))


def test_the_order_depends_only_on_the_seed():
    documents = passages_of(np.random.default_rng(1).integers(1, 9, 60))
    packed = (pack(documents, 12, seed) for seed in ("1/0", "1/0", "1/1"))
    one, same, other = (rows.fill(np.arange(len(rows))) for rows in packed)
    assert all(map(np.array_equal, one, same))
    assert not np.array_equal(one[1], other[1])


def test_short_passages_share_rows():
    rows = pack(passages_of([5] * 90), 20, "")
    assert len(rows) == 23  # four a row


def test_a_prompts_tokens_are_no_targets():
    pairs = [(0, [5, 6, 7, 8]), (0, [9, 10, 11])]
    documents = join_passages(pairs, ["one"], ["text"], [3, 1])
    rows = pack(documents, 4, "")
    batch = rows.batch(np.arange(len(rows)))
    found = {
        tuple(ids): row for ids, row in zip(batch["ids"].tolist(), batch["targets"], strict=True)
    }
    assert found[5, 6, 7, 8].tolist() == [NO_TARGET, NO_TARGET, 8, NO_TARGET]
    assert found[9, 10, 11, 0].tolist() == [10, 11, NO_TARGET, NO_TARGET]


def test_targets_and_mask_never_cross_passages():
    documents = passages_of(np.random.default_rng(5).integers(1, 9, 40))
    rows = pack(documents, 12, "")
    at = np.array([len(rows) - 1, 0, 2])
    batch = rows.batch(at)
    assert batch["attention_mask"].shape == (3, 1, 12, 12)
    for b, row in enumerate(at):
        ids, segments, _ = (x[0] for x in rows.fill([row]))
        for i in range(12):
            inside = i + 1 < 12 and segments[i] == segments[i + 1] != 0
            assert batch["targets"][b, i] == (ids[i + 1] if inside else NO_TARGET)
            for j in range(12):
                seen = j <= i and segments[i] == segments[j]
                assert bool(batch["attention_mask"][b, 0, i, j]) == seen


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_packed_logits_equal_those_of_the_unpacked_passage(family):
    model = tiny.decoder(family).model
    documents = passages_of([9, 1, 4, 30, 2, 7, 11, 5])
    rows = pack(documents, 24, "0/0")
    batch = rows.batch(np.arange(len(rows)))
    packed = model(
        input_ids=batch["ids"],
        position_ids=batch["position_ids"],
        attention_mask=batch["attention_mask"],
        use_cache=False,
    ).logits
    assert packed.isfinite().all()
    _, segments, _ = rows.fill(np.arange(len(rows)))
    for p in range(len(documents)):
        unpacked = model(torch.from_numpy(documents.passage(p)[None, :24].astype(np.int64))).logits[
            0
        ]
        row, column = (segments == p + 1).nonzero()
        torch.testing.assert_close(packed[row, column], unpacked, rtol=1e-4, atol=1e-4)


def test_short_rows_train_with_eager_attention_which_is_restored_afterwards():
    model = tiny.decoder("llama").model.requires_grad_(True)
    rows = pack(passages_of([9, 1, 4, 30, 2, 7, 11, 5]), 24, "0/0")
    batch = rows.batch(np.arange(len(rows)))
    found = []
    for row in (257, 24):  # longer rows keep the fused kernel
        model.zero_grad()
        with quick_attention(model, row):
            kept = model.config._attn_implementation
            loss, _ = packed_loss(model, batch)
            loss.backward()
        found.append((kept, loss.detach(), [p.grad.clone() for p in model.parameters()]))
        assert model.config._attn_implementation == "sdpa"
    (fused, loss, expected), (written, other, grads) = found
    assert (fused, written) == ("sdpa", "eager")
    torch.testing.assert_close(loss, other)
    for one, another in zip(expected, grads, strict=True):
        torch.testing.assert_close(one, another, rtol=1e-4, atol=1e-5)
    with pytest.raises(KeyError), quick_attention(model, 24):
        raise KeyError
    assert model.config._attn_implementation == "sdpa"

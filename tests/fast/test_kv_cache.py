"""A cache that grows in place always equals transformers' own."""

import tiny
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mlpmem.fast.attention import ROOM, GrowingLayer, growing_cache


def states(size, rows=2):
    return torch.randn(rows, 3, size, 4), torch.randn(rows, 3, size, 4)


def same(one, other):
    assert torch.equal(one.keys, other.keys) and torch.equal(one.values, other.values)
    assert one.get_seq_length() == other.get_seq_length()


def both(*sizes):
    """Return a growing layer and transformers', with the same tokens in both."""
    layers = GrowingLayer(), DynamicLayer()
    for size in sizes:
        new = states(size)
        cached = [layer.update(*new) for layer in layers]
        assert all(torch.equal(a, b) for a, b in zip(*cached, strict=True))
    return layers


def test_it_grows_beyond_its_first_buffer():
    same(*both(3, *[1] * (2 * ROOM), 7, ROOM, 1))


def test_steps_within_the_room_copy_nothing():
    mine, _ = both(5)
    begin = mine.keys.data_ptr()
    for _ in range(ROOM):
        mine.update(*states(1))
    assert mine.keys.data_ptr() == begin and mine.get_seq_length() == 5 + ROOM
    mine.update(*states(1))
    assert mine.keys.data_ptr() != begin


def test_selected_repeated_or_cropped_rows_get_new_buffers():
    for change, rows in (
        (lambda layer: layer.batch_select_indices(torch.tensor([1, 1, 0])), 3),
        (lambda layer: layer.batch_repeat_interleave(2), 4),
        (lambda layer: layer.crop(-2), 2),
        (lambda layer: layer.reset(), 1),
    ):
        mine, theirs = both(4, 1)
        copies = [x.clone() for x in (mine.keys, mine.values)]
        before = mine.keys, mine.values
        for layer in (mine, theirs):
            change(layer)
        for size in (1, 2):
            new = states(size, rows)
            for layer in (mine, theirs):
                layer.update(*new)
        same(mine, theirs)
        assert all(torch.equal(a, b) for a, b in zip(copies, before, strict=True))


def test_sliding_window_layers_stay_transformers_own():
    for family, grown in (("gpt2", 3), ("llama", 3), ("gemma3_text", None)):
        config = tiny.decoder(family).model.config
        layers = growing_cache(config).layers
        kinds = [type(layer) for layer in DynamicCache(config=config).layers]
        assert len(layers) == len(kinds)
        for layer, kind in zip(layers, kinds, strict=True):
            assert type(layer) is (GrowingLayer if kind is DynamicLayer else kind)
        if grown:
            assert kinds.count(DynamicLayer) == grown


def test_a_pass_outside_inference_mode_can_continue_it():
    decoder = tiny.decoder("llama")
    ids = torch.tensor([[0, 9, 4]])
    cache = decoder.forward(ids, use_cache=True).cache
    with torch.no_grad():
        logits = decoder.model(torch.tensor([[7]]), past_key_values=cache).logits
    wanted = decoder.forward(torch.tensor([[0, 9, 4, 7]])).logits[:, -1:]
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)


def test_decoders_use_it():
    for family in ("gpt2", "llama", "qwen2"):
        cache = tiny.decoder(family).forward(torch.tensor([[0, 9, 4]]), use_cache=True).cache
        assert any(type(layer) is GrowingLayer for layer in cache.layers), family


def test_rows_made_of_one_share_its_tokens():
    layer = GrowingLayer()
    layer.update(*states(5, 1))
    assert layer.shared == 0
    layer.batch_select_indices(torch.tensor([0, 0, 0]))
    layer.update(*states(2, 3))
    layer.batch_select_indices(torch.tensor([1, 2]))
    assert layer.shared == 5
    layer.crop(-4)
    assert layer.shared == 3
    other = GrowingLayer()
    other.update(*states(5, 2))
    other.batch_select_indices(torch.tensor([0, 0]))
    assert other.shared == 0

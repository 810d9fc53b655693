"""Decoding uses the fastest number of threads, as measured, and restores torch's number."""

from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import tiny
import torch

from mlpmem.fast import devices, sharing


@pytest.fixture
def four():
    """Have torch use four threads."""
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({1: 4.0, 2: 2.0, 4: 1.0}, 4),
        ({1: 1.03, 2: 1.0, 4: 1.0}, 1),  # as fast as more
        ({1: 2.0, 2: 1.0, 4: 3.0}, 2),
    ],
)
def test_the_fewest_threads_that_are_about_as_fast_are_chosen(four, monkeypatch, seconds, chosen):
    monkeypatch.setattr(devices, "_seconds", lambda decoder, memory, count: seconds[count])
    decoder = tiny.decoder()
    assert devices.calibrate(decoder) == decoder.threads == chosen


def test_few_rows_use_them_and_torchs_number_is_restored(four):
    decoder = tiny.decoder()
    decoder.threads, decoder.all_threads = 2, 4
    for rows, inside in ((1, 2), (devices.ROWS, 2), (devices.ROWS + 1, 4)):
        with devices.threads_for(decoder, rows):
            assert torch.get_num_threads() == inside
        assert torch.get_num_threads() == 4
    with pytest.raises(KeyError), devices.threads_for(decoder, 1):
        raise KeyError
    assert torch.get_num_threads() == 4


def test_runs_at_the_same_time_share_the_threads(four):
    decoder = SimpleNamespace(threads=2, all_threads=4)
    for runs, few, many in ((1, 2, 4), (2, 1, 2), (3, 1, 1), (5, 1, 1)):
        with ExitStack() as stack:
            for _ in range(runs):
                stack.enter_context(sharing.sharing())
            for rows, inside in ((1, few), (9, many)):
                with devices.threads_for(decoder, rows):
                    assert torch.get_num_threads() == inside
    decoder.threads = decoder.all_threads = 0
    with sharing.sharing(), sharing.sharing(), devices.threads_for(decoder, 1):
        assert torch.get_num_threads() == 4, "torch's own number"


def test_many_rows_use_all_threads_in_any_python_thread(four):
    decoder = tiny.decoder()
    decoder.threads, decoder.all_threads = 1, 4
    torch.set_num_threads(1)  # as inherited by a thread that starts while another decodes
    seen = []
    decoder.model.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    decoder.forward(torch.zeros(1, 8, dtype=torch.long))
    decoder.forward(torch.zeros(1, 1, dtype=torch.long))
    assert seen == [4, 1]


def test_calibration_changes_neither_torchs_threads_nor_the_text(four):
    model = tiny.model()
    before = model.generate("The capital", max_new_tokens=8)
    assert devices.calibrate(model.decoder) in (1, 2, 4)
    assert torch.get_num_threads() == 4
    assert model.generate("The capital", max_new_tokens=8).text == before.text


def test_calibration_while_others_decode_measures_every_number_of_threads(four):
    decoder, seen = tiny.decoder(), []
    devices.calibrate(decoder)
    before = decoder.threads, decoder.all_threads
    assert before[1] == 4
    hook = decoder.model.register_forward_pre_hook(
        lambda *_: seen.append((torch.get_num_threads(), decoder.threads, decoder.all_threads))
    )
    torch.set_num_threads(1)  # as inherited by a thread that starts while another decodes
    with sharing.sharing(), sharing.sharing():
        devices.calibrate(decoder)
    hook.remove()
    assert seen[:3] == [(count, *before) for count in (1, 2, 4)]
    assert decoder.all_threads == 4 and torch.get_num_threads() == 1


def test_with_one_thread_calibration_does_nothing():
    torch.set_num_threads(1)
    assert devices.calibrate(tiny.decoder()) == 0


def test_between_compiled_steps_torch_has_one_thread(four):
    decoder = SimpleNamespace(threads=2, all_threads=4, is_compiled=True)
    for compiled, rows, inside in ((True, 1, 1), (False, 1, 2), (True, devices.ROWS + 1, 4)):
        decoder.is_compiled = compiled
        with devices.threads_between(decoder, rows):
            assert torch.get_num_threads() == inside
        assert torch.get_num_threads() == 4
    with pytest.raises(KeyError), devices.threads_between(decoder, 1):
        raise KeyError
    assert torch.get_num_threads() == 4

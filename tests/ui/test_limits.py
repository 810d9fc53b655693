"""What a request may take, and what may be said of what went wrong."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import gradio as gr
import pytest
from gradio import processing_utils

from mlpmem import errors
from mlpmem.errors import MlpMemError
from mlpmem.ui.request import limits, stream


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read /srv/app/assets/atlas: gone", "cannot read atlas: gone"),
        ("bundle '/home/a/x y/z.json' is bad", "bundle 'z.json' is bad"),
        (r"No such file: 'C:\Users\My Name\x y.npy'", "No such file: 'x y.npy'"),
        (r"in C:\Users\me\cache\keys.npy", "in keys.npy"),
        ("see https://example.org/a/b/c, and/or tok/s, 1/2", None),
        ("decoder/config.json is altered", None),
    ],
)
def test_of_a_servers_path_only_the_last_part_is_shown(text, shown):
    said = errors.public_text(MlpMemError(text))
    assert said == (text if shown is None else shown) and "/home" not in said


def test_a_run_that_takes_too_long_is_stopped_and_says_so(monkeypatch):
    monkeypatch.setattr(limits.Deadline.__init__, "__defaults__", (0.02,))

    def patient(stop):
        while not stop.is_set():
            yield {"kind": "steps"}

    *_, last = stream.guarded(patient)
    assert last["kind"] == "message" and last["text"] == limits.LATE


def test_a_run_in_time_says_nothing_more():
    assert list(stream.guarded(lambda stop: iter([{"kind": "done"}]))) == [{"kind": "done"}]


def test_what_a_lease_says_is_told_without_its_markup():
    def refused(stop):
        yield {"kind": "steps"}
        raise gr.Error("GPU quota exceeded, <a href='/x'>sign in</a> or wait 2 hours")

    *_, last = stream.guarded(refused)
    assert last["kind"] == "message"
    assert last["text"] == "GPU quota exceeded, sign in or wait 2 hours"


def test_gradio_fetches_no_address_for_a_visitor():
    """It would for every component whose value names one in place of a file."""
    limits.refuse_addresses()
    given = {"path": "https://example.org/a.bin", "meta": {"_type": "gradio.FileData"}}
    moved = processing_utils.async_move_files_to_cache(given, gr.Textbox(render=False))
    with pytest.raises(ValueError, match="files are uploaded"), ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, moved).result()

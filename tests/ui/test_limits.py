"""Deadlines of runs, and error messages without paths or markup."""

import asyncio
import threading
import time
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
def test_only_the_last_part_of_a_servers_path_is_shown(text, shown):
    message = errors.public_text(MlpMemError(text))
    assert message == (text if shown is None else shown) and "/home" not in message


def test_a_run_past_its_deadline_is_stopped_with_a_message(monkeypatch):
    monkeypatch.setattr(limits.Deadline.__init__, "__defaults__", (0.02,))

    def patient(stop):
        while not stop.is_set():
            yield {"kind": "steps"}

    *_, last = stream.guarded(patient)
    assert last["kind"] == "message" and last["text"] == limits.LATE


def test_a_run_within_its_deadline_adds_no_message():
    assert list(stream.guarded(lambda stop: iter([{"kind": "done"}]))) == [{"kind": "done"}]


@pytest.mark.parametrize("allowed", [1, 2])
def test_runs_beyond_the_bound_wait_for_a_turn(monkeypatch, allowed):
    monkeypatch.setattr(stream, "_TURN", threading.BoundedSemaphore(allowed))
    running, most = [], []

    def make(stop):
        running.append(stop)
        yield {"kind": "begin"}
        time.sleep(0.02)
        most.append(len(running))
        running.remove(stop)

    with ThreadPoolExecutor(4) as pool:
        values = list(pool.map(lambda _: list(stream.guarded(make)), range(8)))
    assert values == [[{"kind": "begin"}]] * 8 and max(most) == allowed


def test_a_leases_error_is_shown_without_markup():
    def refused(stop):
        yield {"kind": "steps"}
        raise gr.Error("GPU quota exceeded, <a href='/x'>sign in</a> or wait 2 hours")

    *_, last = stream.guarded(refused)
    assert last["kind"] == "message"
    assert last["text"] == "GPU quota exceeded, sign in or wait 2 hours"


def test_gradio_downloads_no_url_for_a_visitor():
    """Without the block, it would for every component whose value is a URL."""
    limits.refuse_addresses()
    value = {"path": "https://example.org/a.bin", "meta": {"_type": "gradio.FileData"}}
    moved = processing_utils.async_move_files_to_cache(value, gr.Textbox(render=False))
    with pytest.raises(ValueError, match="upload the file"), ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, moved).result()

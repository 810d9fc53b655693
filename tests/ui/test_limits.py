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


def ask(
    parts: list[bytes],
    headers: list[tuple[bytes, bytes]],
    path: str = "/",
    bound=limits.BoundedBody,
) -> tuple[list[int], int]:
    """Return (statuses sent, bytes the app was given) of one request to a bounded app."""
    sent, given, waiting = [], 0, list(parts)

    async def app(scope, receive, send):
        nonlocal given
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            given += len(message["body"])
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive():
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message):
        sent.extend([message["status"]] if "status" in message else [])

    scope = {"type": "http", "path": path, "headers": headers}
    answer = bound(app, most=10)(scope, receive, send)
    with ThreadPoolExecutor(1) as thread:  # this one may be driving a browser, in a loop of its own
        thread.submit(asyncio.run, answer).result()
    return sent, given


def test_a_body_within_its_bound_passes():
    assert ask([b"12345", b"67890"], []) == ([200], 10)


@pytest.mark.parametrize("headers", [[(b"content-length", b"15")], [(b"content-length", b"5")], []])
def test_a_body_above_its_bound_is_refused_whatever_its_header_says(headers):
    sent, given = ask([b"12345"] * 3, headers)
    assert sent == [413] and given <= 10


def test_uploads_are_taken_while_they_have_room(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(limits, "FILE_BYTES", 1)
    upload = "/gradio_api/upload"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_bytes(b"1234567890")
    assert ask([b"12345"], [], upload, limits.BoundedUploads) == ([200], 5)
    (tmp_path / "a" / "y.txt").write_bytes(b"1")
    assert ask([b"12345"], [], upload, limits.BoundedUploads) == ([413], 0)
    assert ask([b"12345"], [], "/gradio_api/queue/join", limits.BoundedUploads) == ([200], 5)
    monkeypatch.setattr(limits, "FILE_BYTES", 6)
    (tmp_path / "a" / "x.txt").write_bytes(b"1")
    assert ask([b"12345"], [], upload, limits.BoundedUploads) == ([413], 0), "small ones count too"

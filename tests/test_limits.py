"""What a request may take, and what may be said of what went wrong."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlpmem.errors import MlpMemError
from mlpmem.ui import limits, stream


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
    said = limits.said(MlpMemError(text))
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


def ask(parts: list[bytes], headers: list[tuple[bytes, bytes]]) -> tuple[list[int], int]:
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

    scope = {"type": "http", "headers": headers}
    answer = limits.BoundedBody(app, most=10)(scope, receive, send)
    with ThreadPoolExecutor(1) as thread:  # this one may be driving a browser, in a loop of its own
        thread.submit(asyncio.run, answer).result()
    return sent, given


def test_a_body_within_its_bound_passes():
    assert ask([b"12345", b"67890"], []) == ([200], 10)


@pytest.mark.parametrize("headers", [[(b"content-length", b"15")], [(b"content-length", b"5")], []])
def test_a_body_above_its_bound_is_refused_whatever_its_header_says(headers):
    sent, given = ask([b"12345"] * 3, headers)
    assert sent == [413] and given <= 10

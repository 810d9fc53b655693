"""Request bodies are read whole, in time, up to a limit, and in the form that the page sends."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from mlpmem.ui.door import sizes
from mlpmem.ui.door.bounds import Bounds
from mlpmem.ui.door.routes import RefusedError

BOUNDS = Bounds(body_seconds=0.05, small_body=200)


def body_of(run, parts: list[bytes], most: int = 10, wait: float = 0.0) -> bytes:
    waiting = list(parts)

    async def receive():
        await asyncio.sleep(wait)
        if not waiting:
            return {"type": "http.disconnect"}
        part = waiting.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(waiting)}

    return run(sizes.read(receive, most, BOUNDS))


def refusal(call, *args) -> RefusedError:
    with pytest.raises(RefusedError) as refused:
        call(*args)
    return refused.value


def test_a_body_below_its_limit_is_read_whole(run):
    assert body_of(run, [b"12345", b"67890"]) == b"1234567890"


def test_a_body_above_its_limit_is_refused_whatever_its_header_declares(run):
    assert refusal(body_of, run, [b"12345", b"67890", b"1", b"2"]).status == 413
    assert refusal(sizes.length, {"content-length": "11"}, 10).status == 413
    assert sizes.length({"content-length": "5"}, 10) == 5
    assert sizes.length({}, 10) == sizes.length({"content-length": "-3"}, 10) == 10


def test_a_slow_body_is_refused_and_a_disconnected_one_raises(run):
    assert refusal(body_of, run, [b"1"] * 9, 10, 0.03).status == 408
    with pytest.raises(ConnectionError):
        body_of(run, [])


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 150,
        b'{"a": ' * 40 + b"1" + b"}" * 40,
        b'{"data": [' + b"1," * 200 + b"1]}",
        b'{"data": [' + b'"",' * 300 + b"1]}",
    ],
)
def test_too_many_or_too_deep_values_are_refused_before_parsing(run, body):
    assert refusal(lambda: run(sizes.parsed(body, BOUNDS))).status == 413


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"3", b'"x"', b"\xff\xfe", b"1" * 100])
def test_a_body_other_than_a_json_object_is_refused(run, body):
    assert refusal(lambda: run(sizes.parsed(body, BOUNDS))).status == 422


def test_long_strings_do_not_count_as_values_whatever_they_contain(run):
    for text in ("[{" * 300_000, '\\"' * 100_000, "\ud83d", "a\nb"):
        payload = run(sizes.parsed(json.dumps({"data": [text]}).encode(), BOUNDS))
        assert payload == {"data": [text]}


@pytest.mark.parametrize("name", ["", "a" * 65, "a b", "a/b", "é", "a\n", 3, None, ["a"]])
def test_a_name_is_short_and_plain(name):
    assert refusal(sizes.check_name, name, "session_hash").status == 422
    assert sizes.check_name("a" * 64, "session_hash") == "a" * 64


FUNCTIONS = {
    3: SimpleNamespace(
        inputs=[SimpleNamespace(label="Prompt"), SimpleNamespace(label=None)],
        cancels=[],
        fn=print,
    ),
    5: SimpleNamespace(inputs=[], cancels=[0], fn=None),
}
ASKED = {"data": ["x", None], "fn_index": 3, "session_hash": "abc", "trigger_id": 7}


def test_requests_of_the_page_are_accepted():
    sizes.check_event(ASKED, FUNCTIONS)
    sizes.check_event({**ASKED, "event_data": {"index": 1}, "simple_format": False}, FUNCTIONS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"event_data": [1]}, "event_data must be an object"),
        ({"event_data": "x"}, "event_data must be an object"),
        ({"event_data": 0}, "event_data must be an object"),
        ({"session_hash": None}, "session_hash is missing"),
        ({"session_hash": "a" * 100}, "1 to 64"),
        ({"event_id": {"a": 1}}, "1 to 64"),
        ({"fn_index": 4}, "does not name a function"),
        ({"fn_index": 5, "data": []}, "does not name a function"),
        ({"fn_index": True}, "whole number"),
        ({"fn_index": "3"}, "whole number"),
        ({"trigger_id": []}, "whole number"),
        ({"batched": True}, "'batched' is not a known field"),
        ({"oauth_token": "x"}, "'oauth_token' is not a known field"),
        ({"data": None}, "a list of 2 values .Prompt, value.; got no list"),
        ({"data": {"0": 1}}, "got no list"),
        ({"data": ["x"]}, "got 1"),
    ],
)
def test_a_request_that_the_page_would_not_send_is_refused_with_its_reason(change, message):
    refused = refusal(sizes.check_event, ASKED | change, FUNCTIONS)
    assert refused.status == 422
    with pytest.raises(RefusedError, match=message):
        raise refused


def test_named_arguments_are_those_of_the_endpoint():
    names = {"prompt": True, "lmbda": False}
    sizes.check_arguments({"prompt": "x"}, names)
    assert "not known" in refusal(sizes.check_arguments, {"promt": "x"}, names).sentence
    assert "is missing" in refusal(sizes.check_arguments, {"lmbda": 1}, names).sentence


FILE = (b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n'
        b"Content-Type: text/plain\r\n\r\nhello\r\n--x--\r\n")  # fmt: skip


def test_an_upload_is_one_file():
    kind = "multipart/form-data; boundary=x"
    sizes.check_upload(FILE, kind)
    sizes.check_upload(FILE, 'multipart/form-data; boundary="x"')
    two = FILE.replace(b"--x--", FILE.rstrip())
    field = FILE.replace(b'; filename="a.txt"', b"")
    for body in (two, field, b"", b"--x\r\nx--x--", FILE[:-6], FILE.replace(b"files", b"other")):
        assert refusal(sizes.check_upload, body, kind).status == 422
    for other in ("", "text/plain", "multipart/form-data", "application/json; boundary=x"):
        assert refusal(sizes.check_upload, FILE, other).status == 415

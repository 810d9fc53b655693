"""Bodies: read whole and in time, then checked, before Gradio sees them.

What Gradio is given is thus small, complete, and of the shape that the page sends; whoever sends a
body slowly, or half of one, leaves nothing behind.
"""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from mlpmem.ui.door.bounds import Bounds
from mlpmem.ui.door.routes import PATTERN, RefusedError

PACE = 20_000  # bytes a second that a body must come in on the whole
DEEP = 32  # objects and arrays within one another
LARGE = 262_144  # bytes from which a body is checked in a thread
TEXTS = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)  # of JSON
OTHERS = bytes(set(range(256)) - set(b"[]{}"))
NAMES = ("session_hash", "event_id")
PLAIN = (*NAMES, "data", "event_data", "fn_index", "trigger_id")
AGAIN = "Reload the page and try again."


async def read(
    receive: Callable[[], Awaitable[dict]],
    most: int,
    bounds: Bounds,
    clock: Callable[[], float] = time.monotonic,
) -> bytes:
    """Return a body; RefusedError(413) above most bytes, (408) where it does not come in time.

    ConnectionError where whoever sent it has gone.
    """
    parts, size, begin = [], 0, clock()
    while True:
        left = begin + bounds.body_seconds + size / PACE - clock()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, left))
        except TimeoutError:
            raise RefusedError(408, "The request came too slowly and was closed.") from None
        if message["type"] == "http.disconnect":
            raise ConnectionError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise RefusedError(413, f"The request is larger than {most:,} bytes. Send less.")
        if not message.get("more_body"):
            return b"".join(parts)


def length(headers: Mapping[str, str], most: int) -> int:
    """Return how large a body will be at most; RefusedError(413) where that is too large.

    A body that does not say its length may become as large as any.
    """
    said = headers.get("content-length", "")
    if not said.isdecimal() or len(said) > 15:
        return most
    if int(said) > most:
        raise RefusedError(413, f"The request is larger than {most:,} bytes. Send less.")
    return int(said)


async def parsed(body: bytes, bounds: Bounds) -> dict:
    """Return a body's JSON object; RefusedError(422) for another, or one of countless values."""
    if len(body) > LARGE:
        return await asyncio.to_thread(_parsed, body, bounds.small_body)
    return _parsed(body, bounds.small_body)


def _parsed(body: bytes, most: int) -> dict:
    bones = TEXTS.sub(b"", body)  # a value takes many times its bytes in memory, a text does not
    if len(bones) > most or _depth(bones) > DEEP:
        raise RefusedError(413, "The request has too many values. Send fewer.")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError(422, "The request is not JSON. Send a JSON object.") from None
    if not isinstance(found, dict):
        raise RefusedError(422, "The request is no JSON object. Send one.")
    return found


def _depth(bones: bytes) -> int:
    """Return how deep objects and arrays are within one another at most."""
    depth = most = 0
    for byte in bones.translate(None, OTHERS):
        if byte in b"[{":
            depth += 1
            most = max(most, depth)
        elif byte in b"]}":
            depth -= 1
    return most


def check_name(value: Any, what: str) -> str:
    """Return a name of a session, event or function; RefusedError(422) for anything else."""
    if not isinstance(value, str) or not PATTERN.fullmatch(value):
        raise RefusedError(
            422, f"{what} must be 1 to 64 letters, digits, - and _; got another name. {AGAIN}"
        )
    return value


def check_names(body: Mapping[str, Any]) -> None:
    """Raise RefusedError for a name in a body that is none."""
    for what in NAMES:
        if body.get(what) is not None:
            check_name(body[what], what)
    for what in ("fn_index", "trigger_id"):
        if body.get(what) is not None and type(body[what]) is not int:
            raise RefusedError(422, f"{what} must be a whole number. {AGAIN}")


def check_event(body: Mapping[str, Any], functions: Mapping[int, Any]) -> None:
    """Raise RefusedError for a request of a function that the page would not send.

    Only what the page sends is let through, so that nothing else can turn up in Gradio.
    """
    check_names(body)
    if odd := [what for what, value in body.items() if what not in PLAIN and value]:
        raise RefusedError(422, f"{str(odd[0])[:40]!r} is not taken here. {AGAIN}")
    if body.get("session_hash") is None:
        raise RefusedError(422, f"session_hash is missing. {AGAIN}")
    function = functions.get(body.get("fn_index"))
    if function is None or function.fn is None:  # what is done in the browser alone has none
        raise RefusedError(422, f"fn_index names no function of this page. {AGAIN}")
    if not isinstance(body.get("event_data"), dict | None):
        raise RefusedError(422, f"event_data must be an object. {AGAIN}")
    check_data(body.get("data"), [block.label or "value" for block in function.inputs],
               bool(function.cancels))  # fmt: skip


def check_data(data: Any, names: Sequence[str], any_number: bool = False) -> None:
    """Raise RefusedError unless data is a list with a value for every name."""
    if not isinstance(data, list) or (len(data) != len(names) and not any_number):
        got = f"{len(data)}" if isinstance(data, list) else "none"
        raise RefusedError(
            422, f"data must be a list of {len(names)} values ({', '.join(names)}); got {got}."
        )


def check_arguments(body: Mapping[str, Any], names: Mapping[str, bool]) -> None:
    """Raise RefusedError unless a body has the arguments that names has True of, and no others."""
    known = ", ".join(names)
    for name in body:
        if name not in names:
            raise RefusedError(422, f"{name[:40]!r} is no argument here; there are {known}.")
    for name, needed in names.items():
        if needed and name not in body:
            raise RefusedError(422, f"The argument {name!r} is missing; there are {known}.")


def check_upload(body: bytes, content_type: str) -> None:
    """Raise RefusedError unless a body is one file in a form, as the page sends it."""
    found = re.search(r'boundary="?([^";\s]{1,200})', content_type)
    if not content_type.lower().startswith("multipart/form-data") or not found:
        raise RefusedError(415, "An upload is a form (multipart/form-data) with one file.")
    mark = b"--" + found[1].encode("latin-1", "replace")
    head = body.partition(b"\r\n\r\n")[0]
    named = re.search(rb'name="?files"?\s*(;|\r|$)', head) and b"filename=" in head
    if body.count(mark) != 2 or mark + b"--" not in body[-len(mark) - 8 :] or not named:
        raise RefusedError(422, "An upload is a form with one file named files. Send one file.")


def replay(body: bytes, receive: Callable[[], Awaitable[dict]]) -> Callable[[], Awaitable[dict]]:
    """Return a `receive` that gives a body that was read, and then what else comes."""
    given = False

    async def again() -> dict:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again

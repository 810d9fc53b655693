"""Request bodies are read whole and in time, then checked, before Gradio sees them.

Gradio thus receives only small, complete bodies of the form that the page sends. A slow or
incomplete body leaves nothing behind.
"""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from mlpmem.ui.door.bounds import Bounds
from mlpmem.ui.door.routes import PATTERN, RefusedError

PACE = 20_000  # bytes per second, the least average rate of a body
DEEP = 32  # levels of nested objects and arrays
LARGE = 262_144  # bytes above which a body is parsed in a thread
TEXTS = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)  # JSON strings
OTHERS = bytes(set(range(256)) - set(b"[]{}"))
NAMES = ("session_hash", "event_id")
FIELDS = (*NAMES, "data", "event_data", "fn_index", "trigger_id")
AGAIN = "Reload the page and try again."


async def read(
    receive: Callable[[], Awaitable[dict]],
    most: int,
    bounds: Bounds,
    clock: Callable[[], float] = time.monotonic,
) -> bytes:
    """Return a body; RefusedError(413) above `most` bytes, (408) if it is too slow.

    ConnectionError if the client disconnects.
    """
    parts, size, begin = [], 0, clock()
    while True:
        left = begin + bounds.body_seconds + size / PACE - clock()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, left))
        except TimeoutError:
            raise RefusedError(408, "The request was too slow and was closed. Try again.") from None
        if message["type"] == "http.disconnect":
            raise ConnectionError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise RefusedError(413, f"The request is larger than {most:,} bytes. Send less.")
        if not message.get("more_body"):
            return b"".join(parts)


def length(headers: Mapping[str, str], most: int) -> int:
    """Return a body's declared length, `most` without one; RefusedError(413) above `most`."""
    declared = headers.get("content-length", "")
    if not declared.isdecimal() or len(declared) > 15:
        return most
    if int(declared) > most:
        raise RefusedError(413, f"The request is larger than {most:,} bytes. Send less.")
    return int(declared)


async def parsed(body: bytes, bounds: Bounds) -> dict:
    """Return a body's JSON object; RefusedError(422) for another, (413) for too many values."""
    if len(body) > LARGE:
        return await asyncio.to_thread(_parsed, body, bounds.small_body)
    return _parsed(body, bounds.small_body)


def _parsed(body: bytes, most: int) -> dict:
    skeleton = TEXTS.sub(b"", body)  # other values take many times their bytes in memory
    if len(skeleton) > most or _depth(skeleton) > DEEP:
        raise RefusedError(413, "The request has too many values. Send fewer.")
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError(422, "The request is not JSON. Send a JSON object.") from None
    if not isinstance(payload, dict):
        raise RefusedError(422, "The request is not a JSON object. Send one.")
    return payload


def _depth(skeleton: bytes) -> int:
    """Return the deepest nesting of objects and arrays."""
    depth = most = 0
    for byte in skeleton.translate(None, OTHERS):
        if byte in b"[{":
            depth += 1
            most = max(most, depth)
        elif byte in b"]}":
            depth -= 1
    return most


def check_name(value: Any, what: str) -> str:
    """Return the name of a session, event or function; RefusedError(422) if it is not valid."""
    if not isinstance(value, str) or not PATTERN.fullmatch(value):
        raise RefusedError(
            422, f"{what} must be 1 to 64 letters, digits, - and _; got {value!r:.70}. {AGAIN}"
        )
    return value


def check_names(body: Mapping[str, Any]) -> None:
    """Raise RefusedError if a name or a number in a body is not valid."""
    for what in NAMES:
        if body.get(what) is not None:
            check_name(body[what], what)
    for what in ("fn_index", "trigger_id"):
        if body.get(what) is not None and type(body[what]) is not int:
            raise RefusedError(422, f"{what} must be a whole number. {AGAIN}")


def check_event(body: Mapping[str, Any], functions: Mapping[int, Any]) -> None:
    """Raise RefusedError unless a request calls a function with the fields that the page sends."""
    check_names(body)
    if odd := [what for what, value in body.items() if what not in FIELDS and value]:
        raise RefusedError(422, f"{str(odd[0])[:40]!r} is not a known field. {AGAIN}")
    if body.get("session_hash") is None:
        raise RefusedError(422, f"session_hash is missing. {AGAIN}")
    function = functions.get(body.get("fn_index"))
    if function is None or function.fn is None:  # functions of the browser have none
        raise RefusedError(422, f"fn_index does not name a function of this page. {AGAIN}")
    if not isinstance(body.get("event_data"), dict | None):
        raise RefusedError(422, f"event_data must be an object. {AGAIN}")
    check_data(body.get("data"), [block.label or "value" for block in function.inputs],
               bool(function.cancels))  # fmt: skip


def check_data(data: Any, names: Sequence[str], any_number: bool = False) -> None:
    """Raise RefusedError unless data is a list with one value per name."""
    if not isinstance(data, list) or (len(data) != len(names) and not any_number):
        got = f"{len(data)}" if isinstance(data, list) else "no list"
        raise RefusedError(
            422, f"data must be a list of {len(names)} values ({', '.join(names)}); got {got}."
        )


def check_arguments(body: Mapping[str, Any], names: Mapping[str, bool]) -> None:
    """Raise RefusedError for an unknown argument, or a missing one that `names` maps to True."""
    known = ", ".join(names)
    for name in body:
        if name not in names:
            raise RefusedError(422, f"The argument {name[:40]!r} is not known. Use {known}.")
    for name, needed in names.items():
        if needed and name not in body:
            raise RefusedError(422, f"The argument {name!r} is missing. Use {known}.")


def check_upload(body: bytes, content_type: str) -> None:
    """Raise RefusedError unless a body is a form with one file, as the page sends it."""
    boundary = re.search(r'boundary="?([^";\s]{1,200})', content_type)
    if not content_type.lower().startswith("multipart/form-data") or not boundary:
        raise RefusedError(415, "An upload must be a form (multipart/form-data) with one file.")
    mark = b"--" + boundary[1].encode("latin-1", "replace")
    head = body.partition(b"\r\n\r\n")[0]
    named = re.search(rb'name="?files"?\s*(;|\r|$)', head) and b"filename=" in head
    if body.count(mark) != 2 or mark + b"--" not in body[-len(mark) - 8 :] or not named:
        raise RefusedError(422, "An upload must be a form with one file in the field files.")


def replay(body: bytes, receive: Callable[[], Awaitable[dict]]) -> Callable[[], Awaitable[dict]]:
    """Return a `receive` that returns a body that was read, then all later messages."""
    replayed = False

    async def replaying() -> dict:
        nonlocal replayed
        if replayed:
            return await receive()
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replaying

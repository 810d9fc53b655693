"""What the door sends by itself, and what it changes of Gradio's responses."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlpmem.ui.door import headers
from mlpmem.ui.door.preview import Preview
from mlpmem.ui.door.programs import Programs
from mlpmem.ui.door.routes import RefusedError

GONE = "This result has expired. Send the request again."


class LostError(RefusedError):
    """Raised for an event stream that does not exist; the reply is an event, which clients read."""

    def __init__(self, data: str, status: int) -> None:
        """Store the event's data, a JSON text."""
        super().__init__(status, GONE)
        self.body = f"event: error\ndata: {data}\n\n" if status == 404 else f"data: {data}\n\n"


class Watched:
    """A `send` that adds the door's headers and records whether a response has begun."""

    lines = headers.lines()

    def __init__(self, send: Any) -> None:
        self._send, self.begun = send, False

    async def __call__(self, message: dict) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            message = {**message, "headers": [*message.get("headers", []), *self.lines]}
        await self._send(message)


class Paths:
    """A `send` that records an upload's response: the paths of its files."""

    def __init__(self, send: Any) -> None:
        self._send, self._body, self._status = send, b"", 0

    async def __call__(self, message: dict) -> None:
        self._status = message.get("status", self._status)
        self._body += message.get("body", b"")
        await self._send(message)

    def found(self) -> list[Path]:
        """Return the paths, [] if the upload failed."""
        if self._status != 200:
            return []
        return [Path(path) for path in json.loads(self._body)]


class Sentences:
    """A `send` that turns Gradio's 500 with a message for the visitor into a 422."""

    def __init__(self, send: Any) -> None:
        self._send, self._start = send, None

    async def __call__(self, message: dict) -> None:
        if message["type"] == "http.response.start" and message["status"] == 500:
            self._start = message
            return
        if self._start is not None:
            with suppress(ValueError, AttributeError):
                if json.loads(message.get("body", b"")).get("error"):
                    self._start["status"] = 422
            await self._send(self._start)
            self._start = None
        await self._send(message)


async def refuse(send: Any, refused: RefusedError, programs: Programs | None) -> None:
    """Send the refusal, and close the connection if part of a body may still arrive."""
    status = refused.status
    if isinstance(refused, LostError):
        body, kind = refused.body.encode(), b"text/event-stream"
    else:
        body = json.dumps({"detail": refused.sentence}).encode()
        kind = b"application/json"
        if programs is not None:
            status, body = programs.refusal(refused)
    lines = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    if refused.status in (408, 413):
        lines.append((b"connection", b"close"))
    if refused.status in (429, 503):
        lines.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Any, status: int, body: bytes) -> None:
    """Send JSON that may not be cached."""
    lines = [(b"content-type", b"application/json"), (b"cache-control", b"no-store"),
             (b"content-length", b"%d" % len(body))]  # fmt: skip
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})


async def send_picture(send: Any, previews: Mapping[str, Preview], method: str) -> None:
    """Send the picture of the page's preview; RefusedError without one."""
    body = max((preview.picture for preview in previews.values()), default=b"", key=len)
    if not body:
        raise RefusedError(404, "This page has no picture.")
    headers = [(b"content-type", b"image/png"), (b"content-length", b"%d" % len(body)),
               (b"cache-control", b"max-age=86400")]  # fmt: skip
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})

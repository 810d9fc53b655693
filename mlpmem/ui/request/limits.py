"""What a request may take, in seconds and bytes, and what may be said of what went wrong."""

import threading
import time
from asyncio import to_thread
from contextlib import suppress
from pathlib import Path
from typing import Any

from gradio import processing_utils
from gradio.utils import get_upload_folder

from mlpmem.errors import MlpMemError

SECONDS = 180.0  # of one run; three columns of 128 tokens need a few
BODY_BYTES = 16_000_000  # a saved run with everything in it escaped
UPLOAD_BYTES = 400_000_000  # of all uploads that lie on disk
FILE_BYTES = 65_536  # that a small one counts, so that there are never many thousands
LATE = (
    f"That took longer than {SECONDS:.0f} seconds, so it was stopped to let others go on. "
    "Ask for fewer tokens or a shorter text."
)


class Deadline(threading.Event):
    """What a run is asked to stop by: set by whoever leaves, and of itself when time is over."""

    def __init__(self, seconds: float = SECONDS) -> None:
        """Begin now."""
        super().__init__()
        self._ends = time.monotonic() + seconds

    @property
    def over(self) -> bool:
        """Return whether the time is over."""
        return time.monotonic() > self._ends

    def is_set(self) -> bool:
        """Return whether to stop."""
        return super().is_set() or self.over

    def check(self) -> None:
        """Raise MlpMemError where the time is over."""
        if self.over:
            raise MlpMemError(LATE)


class BoundedUploads:
    """ASGI middleware: while uploads fill their room, one more is answered with 413.

    Gradio takes any number of files, and looks for old ones every ten minutes.
    """

    def __init__(self, app: Any, most: int = UPLOAD_BYTES) -> None:
        """Stand before app."""
        self.app, self.most = app, most

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Pass a request on, unless it brings a file that there is no room for."""
        if scope["type"] == "http" and scope["path"].rstrip("/").endswith("/upload"):
            if await to_thread(_bytes_in, Path(get_upload_folder())) > self.most:
                await _refuse(send, b"There is no room for uploads now. Paste the text, or wait.")
                return
        await self.app(scope, receive, send)


def refuse_addresses() -> None:
    """Have Gradio fetch no address that a request names in place of a file.

    It would for every component, whole and without a bound, before anything here is asked; no panel
    takes an address.
    """

    async def refused(*_: Any, **__: Any) -> str:
        raise ValueError("a request named an address in place of a file; files are uploaded")

    processing_utils.async_ssrf_protected_download = refused


def _bytes_in(folder: Path) -> int:
    """Return the size of all files below a folder, FILE_BYTES each at least.

    Those that go meanwhile are left out.
    """
    size = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            size += max(FILE_BYTES, path.stat().st_size) if path.is_file() else 0
    return size


async def _refuse(send: Any, why: bytes) -> None:
    """Answer with 413."""
    await send({"type": "http.response.start", "status": 413, "headers": []})
    await send({"type": "http.response.body", "body": why})


class BoundedBody:
    """ASGI middleware: a request whose body is larger than BODY_BYTES is answered with 413."""

    def __init__(self, app: Any, most: int = BODY_BYTES) -> None:
        """Stand before app."""
        self.app, self.most = app, most

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Pass a request on; count what comes, whatever its header says."""
        came, answered = 0, False

        async def counted() -> dict:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > self.most:
                await refuse()
                return {"type": "http.disconnect"}
            return message

        async def refuse() -> None:
            nonlocal answered
            if not answered:
                answered = True
                await _refuse(send, b"The request is too large.")

        async def guarded(message: dict) -> None:
            if not answered:
                await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.most:
            await refuse()
            return
        await self.app(scope, counted, guarded)

"""`/`, `/config` and `/info`, which are the same for all visitors, rendered once.

Gradio renders half a megabyte for every GET, with the request's address in it. Here each page is
rendered for the address STAND_IN, which is then replaced.
"""

import asyncio
import gzip
import re
from collections import OrderedDict
from typing import Any

from gradio.route_utils import get_root_url
from starlette.requests import Request

from mlpmem.ui.door.preview import Preview
from mlpmem.ui.door.routes import API, RefusedError

STAND_IN = b"http://page.invalid"
ROOT = re.compile(r"https?://[A-Za-z0-9._:\[\]-]{1,255}(/[\w./~-]{0,255})?")
PATHS = {"config": "/config", "info": f"{API}/info"}
KEPT = 16  # cached pages, each for one address


class Pages:
    """The rendered pages, and the last KEPT copies for an address."""

    def __init__(self) -> None:
        """Start with none."""
        self.previews: dict[str, Preview] = {}  # by path
        self._rendered: dict[str, tuple[bytes, bytes]] = {}
        self._addressed: OrderedDict[tuple[str, str, bool], bytes] = OrderedDict()

    def _previewed(self, path: str, kind: bytes, body: bytes) -> tuple[bytes, bytes]:
        """Return a page with its own preview, if there is one."""
        own = self.previews.get(path)
        return own.placed(kind, body, STAND_IN.decode(), path) if own else (kind, body)

    async def answer(self, app: Any, scope: dict, send: Any, path: str) -> None:
        """Send the page of a path; app renders it the first time."""
        root = get_root_url(Request(scope), path, scope["app"].root_path or scope.get("root_path"))
        if not ROOT.fullmatch(root):
            raise RefusedError(400, "The request's host is not valid. Use the page's address.")
        if path not in self._rendered:
            self._rendered[path] = self._previewed(path, *await _render(app, scope, path))
        kind, page = self._rendered[path]
        packed = b"gzip" in dict(scope["headers"]).get(b"accept-encoding", b"")
        body = self._addressed.pop((path, root, packed), None)
        if body is None:
            body = page.replace(STAND_IN, root.encode())
            body = await asyncio.to_thread(gzip.compress, body, 6) if packed else body
        self._addressed[path, root, packed] = body
        while len(self._addressed) > KEPT:
            self._addressed.popitem(last=False)
        headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body)),
                   (b"cache-control", b"no-cache"), (b"vary", b"accept-encoding")]  # fmt: skip
        headers += [(b"content-encoding", b"gzip")] if packed else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        body = b"" if scope["method"] == "HEAD" else body
        await send({"type": "http.response.body", "body": body})


async def _render(app: Any, scope: dict, path: str) -> tuple[bytes, bytes]:
    """Return (content type, body) of app's response to a GET at STAND_IN."""
    parts: list[bytes] = []
    start: dict = {}
    request = {
        **scope, "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"",
        "scheme": "http", "headers": [(b"host", b"page.invalid")],
    }  # fmt: skip

    async def receive() -> dict:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict) -> None:
        start.update(message if message["type"] == "http.response.start" else {})
        parts.append(message.get("body", b""))

    await app(request, receive, send)
    if start["status"] != 200:
        raise RefusedError(503, "The page is not ready yet. Try again in a moment.")
    return dict(start["headers"])[b"content-type"], b"".join(parts)

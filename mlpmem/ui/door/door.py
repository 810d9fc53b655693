"""The way of one request: which route, from which site, whose share, how large, and then Gradio."""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from inspect import Parameter, signature
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from mlpmem.ui.door import files, headers, routes, shares, sizes
from mlpmem.ui.door.bounds import BOUNDS, Bounds
from mlpmem.ui.door.fair import SIZE
from mlpmem.ui.door.health import Health
from mlpmem.ui.door.pages import Pages
from mlpmem.ui.door.routes import RefusedError
from mlpmem.ui.door.sessions import Sessions

SWEEP = 1.0  # seconds between two looks at sessions and queue; files are looked at every tenth time
QUERY = 32_768  # bytes: a link with a prompt in it
GONE = "That is not here any more. Ask again."
log = logging.getLogger(__name__)


class Gate:
    """What the door knows of one page: shares, sessions, uploads, rendered pages, health."""

    def __init__(self, service: Any, bounds: Bounds = BOUNDS) -> None:
        """Open for a service's page."""
        # uvicorn would take a client's address from a header of its own accord
        os.environ.setdefault("FORWARDED_ALLOW_IPS", "")
        self.bounds, folder = bounds, files.claim()
        self.shares, self.sessions = shares.Shares(bounds), Sessions(bounds)
        self.uploads, self.pages = files.Uploads(folder, bounds), Pages()
        self.health = Health(service, folder, bounds)

    @staticmethod
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        """Keep a Gradio app's sessions here, and sweep while it serves."""
        blocks = app.get_blocks()
        app.state_holder = blocks.gate.sessions
        blocks.gate.sessions.set_blocks(blocks)
        sweep = asyncio.create_task(blocks.gate.sweep(blocks))
        try:
            yield
        finally:
            sweep.cancel()
            with suppress(asyncio.CancelledError):
                await sweep

    async def sweep(self, blocks: Any) -> None:
        """Let go, for ever, of what is too old."""
        turn = 0
        while True:
            await asyncio.sleep(SWEEP)
            turn += 1
            try:
                blocks._queue.sweep()
                self.sessions.sweep()
                if turn % 10 == 0:
                    named = [blocks.upload_file_set, *blocks.temp_file_sets]
                    await asyncio.to_thread(self.uploads.sweep, named)
            except Exception:
                log.exception("the sweep failed")


class Door:
    """ASGI middleware before Gradio's app: what is not let in gets a status and a sentence."""

    def __init__(self, app: Any) -> None:
        """Stand before app."""
        self.app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Let a request in, or refuse it."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        blocks, send = scope["app"].get_blocks(), _watched(send)
        try:
            await self._enter(blocks, blocks.gate, scope, receive, send)
        except RefusedError as refused:
            if not send.begun:
                await _refuse(send, refused)
        except ConnectionError:  # whoever asked has gone
            pass

    async def _enter(self, blocks: Any, gate: Gate, scope: dict, receive: Any, send: Any) -> None:
        """Check a request as far as its head goes; RefusedError where it may not go on."""
        said = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        scope[shares.KEY] = client = gate.shares.client(scope)
        route, named = routes.find(scope["method"], path)
        gate.shares.count(client, route)
        if len(scope["query_string"]) > QUERY:
            raise RefusedError(414, "The address is too long. Shorten it.")
        if route.body:
            headers.check_origin(said)
        with gate.shares.opened(client):
            if route.name == "health":
                await _json(send, *gate.health.answer(blocks._queue, gate.sessions, gate.uploads))
            elif route.name in ("page", "config", "info"):
                await gate.pages.answer(self.app, scope, send, route.name)
            elif route.body:
                most = getattr(gate.bounds, route.body)
                with gate.shares.holding(client, sizes.length(said, most)):
                    body = await sizes.read(receive, most, gate.bounds)
                    scope[SIZE] = len(body)
                    async with gate.shares.turn(client):
                        await self._post(blocks, gate, scope, sizes.replay(body, receive), send,
                                         route.name, named, body, said)  # fmt: skip
            else:
                async with _listening(blocks, gate, scope, route.name, named):
                    await self.app(scope, receive, send)

    async def _post(
        self, blocks: Any, gate: Gate, scope: dict, receive: Any, send: Any,
        name: str, named: Mapping[str, str], body: bytes, said: Mapping[str, str],
    ) -> None:  # fmt: skip
        """Check a request's body by its route, and pass it on."""
        client = scope[shares.KEY]
        if name == "upload":
            sizes.check_upload(body, said.get("content-type", ""))
            scope["query_string"] = b""  # the page names no upload
            paths = _Paths(send)
            await self.app(scope, receive, paths)
            for path in paths.found():
                await asyncio.to_thread(gate.uploads.add, client, path)
            return
        asked = await sizes.parsed(body, gate.bounds)
        if name in ("join", "run"):
            sizes.check_event(asked, blocks.fns)
            await _admit(gate, asked["session_hash"], client)
        elif name in ("cancel", "reset"):
            _check_cancel(name, asked)
        else:
            _check_call(blocks, name, named["function"], asked)
        await self.app(scope, receive, _Sentences(send) if name == "run" else send)


def _check_cancel(name: str, asked: Mapping[str, Any]) -> None:
    """Raise RefusedError unless a job is named, as its client knows it."""
    sizes.check_names(asked)
    sizes.check_name(asked.get("event_id"), "event_id")
    if name == "cancel":
        sizes.check_name(asked.get("session_hash"), "session_hash")
        if type(asked.get("fn_index")) is not int:
            raise RefusedError(422, "fn_index must be a whole number. Reload the page.")


def _check_call(blocks: Any, name: str, function: str, asked: Mapping[str, Any]) -> None:
    """Raise RefusedError unless a program calls an endpoint with what it takes."""
    public = {fn.api_name: fn for fn in blocks.fns.values() if fn.api_visibility == "public"}
    if function not in public:
        raise RefusedError(404, f"There is no endpoint {function!r}; there are {sorted(public)}.")
    parameters = signature(public[function].fn).parameters.values()
    taken = {taken.name: taken.default is Parameter.empty for taken in parameters}
    if name == "call_v2":
        sizes.check_arguments(asked, taken)
        return
    if set(asked) - {"data", "session_hash", "event_data"}:
        raise RefusedError(422, "Give data, a list, and nothing else.")
    sizes.check_names(asked)
    sizes.check_data(asked.get("data"), list(taken))


async def _admit(gate: Gate, session: str, client: str) -> None:
    """Note a request of a session; a page that is reloaded leaves its old session a moment late."""
    for wait in (0.3, 0.6, 0.9):
        try:
            return gate.sessions.admit(session, client)
        except RefusedError:
            await asyncio.sleep(wait)
    gate.sessions.admit(session, client)


@asynccontextmanager
async def _listening(
    blocks: Any, gate: Gate, scope: dict, name: str, named: Mapping[str, str]
) -> AsyncIterator[None]:
    """Note who listens to a stream, while it is open; RefusedError for one that is not there."""
    with ExitStack() as stack:
        queue, session = blocks._queue, named.get("session", "")
        if name == "listen":
            asked = parse_qs(scope["query_string"].decode("latin-1"))
            session = sizes.check_name(asked.get("session_hash", [None])[0], "session_hash")
            if session not in queue.pending_messages_per_session:
                raise LostError(json.dumps({"msg": "unexpected_error", "message": GONE,
                                            "success": False, "session_not_found": True}),
                                200)  # fmt: skip
        elif name == "result":
            session = session_of(queue, named["event"])
            if session is None:
                raise LostError(json.dumps(GONE), 404)
        elif name == "heartbeat":
            await _admit(gate, session, scope[shares.KEY])
        if session:
            gate.sessions.opened(session, 1)
            stack.callback(gate.sessions.opened, session, -1)
        if name in ("listen", "result"):
            stack.enter_context(queue.listened(session))
        yield


def session_of(queue: Any, event: str) -> str | None:
    """Return the session that a job's answer waits in, None where there is none."""
    if event in queue.event_ids_to_events:
        return queue.event_ids_to_events[event].session_hash
    pending = queue.pending_event_ids_session
    found = next((name for name, events in pending.items() if event in events), event)
    return found if found in queue.pending_messages_per_session else None


class LostError(RefusedError):
    """Raised for a stream of events that is not there: said as an event, which clients read."""

    def __init__(self, data: str, status: int) -> None:
        """Keep the event's data, JSON."""
        super().__init__(status, GONE)
        self.body = f"event: error\ndata: {data}\n\n" if status == 404 else f"data: {data}\n\n"


class _watched:  # noqa: N801
    """A `send` that adds the door's headers, and knows whether an answer has begun."""

    lines = headers.lines()

    def __init__(self, send: Any) -> None:
        self._send, self.begun = send, False

    async def __call__(self, message: dict) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            message = {**message, "headers": [*message.get("headers", []), *self.lines]}
        await self._send(message)


class _Paths:
    """A `send` that remembers an upload's answer: the paths of its files."""

    def __init__(self, send: Any) -> None:
        self._send, self._body, self._status = send, b"", 0

    async def __call__(self, message: dict) -> None:
        self._status = message.get("status", self._status)
        self._body += message.get("body", b"")
        await self._send(message)

    def found(self) -> list[Path]:
        """Return the paths, none where the upload failed."""
        if self._status != 200:
            return []
        return [Path(path) for path in json.loads(self._body)]


class _Sentences:
    """A `send` that has an error whose sentence is for the visitor come as 422, not as a fault."""

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


async def _refuse(send: Any, refused: RefusedError) -> None:
    """Answer with a sentence, and close the connection where a body may still be coming."""
    if isinstance(refused, LostError):
        body, kind = refused.body.encode(), b"text/event-stream"
    else:
        body = json.dumps({"detail": refused.sentence}).encode()
        kind = b"application/json"
    lines = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    if refused.status in (408, 413):
        lines.append((b"connection", b"close"))
    if refused.status in (429, 503):
        lines.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": refused.status, "headers": lines})
    await send({"type": "http.response.body", "body": body})


async def _json(send: Any, status: int, body: bytes) -> None:
    """Answer with JSON that nobody may keep."""
    lines = [(b"content-type", b"application/json"), (b"cache-control", b"no-store"),
             (b"content-length", b"%d" % len(body))]  # fmt: skip
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})

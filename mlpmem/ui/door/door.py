"""ASGI middleware before Gradio: it checks route, origin, the client's share, and the body.

Routes for other programs go to `Gate.programs`, past the same checks.
"""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from inspect import Parameter, signature
from typing import Any
from urllib.parse import parse_qs

from mlpmem.ui.door import files, headers, routes, shares, sizes
from mlpmem.ui.door.bounds import BOUNDS, Bounds
from mlpmem.ui.door.connections import Connections
from mlpmem.ui.door.fair import SIZE
from mlpmem.ui.door.health import Health
from mlpmem.ui.door.pages import PATHS, Pages
from mlpmem.ui.door.programs import OFF, Programs
from mlpmem.ui.door.replies import (
    GONE,
    LostError,
    Paths,
    Sentences,
    Watched,
    refuse,
    send_json,
    send_picture,
)
from mlpmem.ui.door.routes import V1, RefusedError, Route
from mlpmem.ui.door.sessions import Sessions

SWEEP = 1.0  # seconds between sweeps; files are swept every tenth time
QUERY = 32_768  # bytes: a link may contain a prompt
log = logging.getLogger(__name__)


class Gate:
    """The state of one page's door: shares, sessions, connections, uploads, pages, health."""

    programs: Programs | None = None  # None: their routes do not exist

    def __init__(self, service: Any, bounds: Bounds = BOUNDS) -> None:
        """Claim the temporary folder and create empty tables."""
        # by default uvicorn takes a client's address from a header
        os.environ.setdefault("FORWARDED_ALLOW_IPS", "")
        self.bounds, folder = bounds, files.claim()
        self.shares, self.sessions = shares.Shares(bounds), Sessions(bounds)
        self.uploads, self.pages = files.Uploads(folder, bounds), Pages()
        self.health = Health(service, folder, bounds)
        self.connections = Connections(bounds, self.shares.trusted)

    @staticmethod
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        """Replace a Gradio app's session store, and sweep while it serves."""
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
        """Delete expired sessions, jobs and files, close connections, in an endless loop."""
        count = 0
        while True:
            await asyncio.sleep(SWEEP)
            count += 1
            try:
                blocks._queue.sweep()
                self.sessions.sweep()
                if server := getattr(blocks, "server", None):
                    self.connections.sweep([*server.server_state.connections])
                if count % 10 == 0:
                    listed = [blocks.upload_file_set, *blocks.temp_file_sets]
                    await asyncio.to_thread(self.uploads.sweep, listed)
            except Exception:
                log.exception("the sweep failed")


class Door:
    """ASGI middleware before Gradio's app; a refused request gets a status and a sentence."""

    def __init__(self, app: Any) -> None:
        """Wrap an ASGI app."""
        self.app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        blocks, send = scope["app"].get_blocks(), Watched(send)
        try:
            await self._enter(blocks, blocks.gate, scope, receive, send)
        except RefusedError as refused:
            if not send.begun:
                named = scope["path"].removeprefix(scope.get("root_path", "")).startswith(f"{V1}/")
                await refuse(send, refused, blocks.gate.programs if named else None)
        except ConnectionError:  # the client has disconnected
            pass

    async def _enter(self, blocks: Any, gate: Gate, scope: dict, receive: Any, send: Any) -> None:
        """Check a request's head, then pass it on; RefusedError if it is not allowed."""
        sent = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        scope[shares.KEY] = client = gate.shares.client(scope)
        route, named = routes.find(scope["method"], path)
        gate.shares.count(client, route)
        if len(scope["query_string"]) > QUERY:
            raise RefusedError(414, "The address is too long. Shorten it.")
        if route.body:
            headers.check_origin(sent)
        with gate.shares.opened(client):
            if route.name == "health":
                health = gate.health.answer(blocks._queue, gate.sessions, gate.uploads)
                await send_json(send, *health)
            elif route.name == "preview":
                await send_picture(send, gate.pages.previews, scope["method"])
            elif route.name == "page":
                if named["path"] not in [path for path, *_ in blocks.pages]:
                    raise RefusedError(404, routes.NOT_FOUND)
                await gate.pages.answer(self.app, scope, send, f"/{named['path']}")
            elif route.name in PATHS:
                await gate.pages.answer(self.app, scope, send, PATHS[route.name])
            elif route.program:
                await _program(gate, scope, receive, send, route, named, sent)
            elif route.body:
                async with _body(gate, scope, receive, route, sent) as body:
                    async with gate.shares.turn(client):
                        await self._post(blocks, gate, scope, sizes.replay(body, receive), send,
                                         route.name, named, body, sent)  # fmt: skip
            else:
                async with _listening(blocks, gate, scope, route.name, named):
                    await self.app(scope, receive, send)

    async def _post(
        self, blocks: Any, gate: Gate, scope: dict, receive: Any, send: Any,
        name: str, named: Mapping[str, str], body: bytes, sent: Mapping[str, str],
    ) -> None:  # fmt: skip
        """Check a request's body by its route, then pass it on."""
        client = scope[shares.KEY]
        if name == "upload":
            sizes.check_upload(body, sent.get("content-type", ""))
            scope["query_string"] = b""  # the page sends no query with an upload
            paths = Paths(send)
            await self.app(scope, receive, paths)
            for path in paths.found():
                await asyncio.to_thread(gate.uploads.add, client, path)
            return
        payload = await sizes.parsed(body, gate.bounds)
        if name in ("join", "run"):
            sizes.check_event(payload, blocks.fns)
            await _admit(gate, payload["session_hash"], client)
        elif name in ("cancel", "reset"):
            _check_cancel(name, payload)
        else:
            body = _checked_call(blocks, name, named["function"], payload)
            receive = sizes.replay(body, receive)
        await self.app(scope, receive, Sentences(send) if name == "run" else send)


@asynccontextmanager
async def _body(
    gate: Gate, scope: dict, receive: Any, route: Route, sent: Mapping[str, str]
) -> AsyncIterator[bytes]:
    """Read a request's body and count its bytes while the context is open."""
    client, most = scope[shares.KEY], getattr(gate.bounds, route.body)
    size = sizes.length(sent, most)
    gate.shares.weigh(client, size)
    with gate.shares.holding(client, size):
        body = await sizes.read(receive, most, gate.bounds)
        scope[SIZE] = len(body)
        yield body


async def _program(
    gate: Gate, scope: dict, receive: Any, send: Any, route: Route, named: Mapping[str, str],
    sent: Mapping[str, str],
) -> None:  # fmt: skip
    """Answer a route for other programs. It takes no turn: the queue bounds its client's jobs."""
    if gate.programs is None:
        raise RefusedError(404, OFF)
    if not route.body:
        return await send_json(send, *gate.programs.get(route.name, named))
    async with _body(gate, scope, receive, route, sent) as body:
        payload = await sizes.parsed(body, gate.bounds)
        await gate.programs.post(route.name, payload, scope, receive, send)


def _check_cancel(name: str, payload: Mapping[str, Any]) -> None:
    """Raise RefusedError unless the payload names a job."""
    sizes.check_names(payload)
    sizes.check_name(payload.get("event_id"), "event_id")
    if name == "cancel":
        sizes.check_name(payload.get("session_hash"), "session_hash")
        if type(payload.get("fn_index")) is not int:
            raise RefusedError(422, "fn_index must be a whole number. Reload the page.")


def _checked_call(blocks: Any, name: str, function: str, payload: dict[str, Any]) -> bytes:
    """Return the body of a program's call for Gradio; RefusedError for an invalid call.

    Omitted trailing values become the endpoint's defaults.
    """
    public = {fn.api_name: fn for fn in blocks.fns.values() if fn.api_visibility == "public"}
    if function not in public:
        raise RefusedError(404, f"There is no endpoint {function!r}. Use one of {sorted(public)}.")
    parameters = list(signature(public[function].fn).parameters.values())
    if name == "call_v2":
        sizes.check_arguments(payload, {p.name: p.default is Parameter.empty for p in parameters})
        return json.dumps(payload).encode()
    if set(payload) - {"data", "session_hash", "event_data"}:
        raise RefusedError(422, "The body must contain data, a list, and no other field.")
    sizes.check_names(payload)
    data, names = payload.get("data"), [one.name for one in parameters]
    defaults = [one.default for one in parameters]
    if isinstance(data, list) and Parameter.empty not in (rest := defaults[len(data) :]):
        data = [*data, *rest]
    sizes.check_data(data, names)
    return json.dumps({**payload, "data": data}).encode()


async def _admit(gate: Gate, session: str, client: str) -> None:
    """Admit a session, with retries: a reloaded page closes its old session a moment late."""
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
    """Count a listener while its stream is open; RefusedError for a stream that does not exist."""
    with ExitStack() as stack:
        queue, session = blocks._queue, named.get("session", "")
        if name == "listen":
            query = parse_qs(scope["query_string"].decode("latin-1"))
            session = sizes.check_name(query.get("session_hash", [None])[0], "session_hash")
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
    """Return the session that holds a job's answer, or None."""
    if event in queue.event_ids_to_events:
        return queue.event_ids_to_events[event].session_hash
    pending = queue.pending_event_ids_session
    found = next((name for name, events in pending.items() if event in events), event)
    return found if found in queue.pending_messages_per_session else None

"""OpenAI's protocol over the page's door: what a request gets, whole or as a stream."""

import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from mlpmem.ui.door import shares
from mlpmem.ui.door.routes import RefusedError
from mlpmem.ui.openai import answers, names, requests, runs
from mlpmem.ui.openai.answers import Head, encoded
from mlpmem.ui.openai.jobs import Jobs
from mlpmem.ui.service.prefixes import Prefixes
from mlpmem.ui.service.service import Service

VARIABLE = "MLPMEM_OPENAI"


def is_on(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the protocol is answered: by MLPMEM_OPENAI, else everywhere but in a Space."""
    setting = environment.get(VARIABLE, "").strip().lower()
    return setting not in ("0", "false", "no") if setting else not environment.get("SPACE_ID")


def build(services: Sequence[Service], page: Any) -> None:
    """Answer the protocol behind a page's door, unless it is off."""
    if is_on():
        page.gate.programs = OpenAi(services, Jobs(page), page.prefixes)


class OpenAi:
    """What answers the door's routes for programs."""

    def __init__(self, services: Sequence[Service], jobs: Jobs, prefixes: Prefixes) -> None:
        """Answer with the page's models that are loaded, in the page's queue."""
        self._services, self._jobs = services, jobs
        self._since = int(time.time())
        self._prefixes = prefixes

    def get(self, name: str, named: Mapping[str, str]) -> tuple[int, bytes]:
        """Return the list of models, or one of them."""
        if name == "models":
            return 200, encoded(answers.models(names.listed(self._services), self._since))
        _, column = names.check(self._services, named["model"])
        return 200, encoded(answers.model(named["model"], column, self._since))

    def refusal(self, refused: RefusedError) -> tuple[int, bytes]:
        """Return (status, JSON) of a refused request, in the protocol's shape."""
        status, body = answers.error(refused)
        return status, encoded(body)

    async def post(self, name: str, payload: dict, scope: dict, receive: Any, send: Any) -> None:
        """Answer a completion or a chat, whole or as a stream."""
        asked = requests.parse(payload, chat=name == "chat")
        service, _ = names.check(self._services, asked.model)  # before it waits
        make = partial(runs.run, service, asked, prefix=self._prefixes.of(scope[shares.KEY]))
        async with self._jobs.begun(make, scope, receive) as parts:
            if asked.stream:
                return await self._stream(parts, asked.include_usage, send)
            body = encoded(answers.whole([part async for part in parts]))
        await send({"type": "http.response.start", "status": 200, "headers": _lines(body)})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, parts: Any, include_usage: bool, send: Any) -> None:
        """Send the answer as server-sent events; an error after the first one is an event."""
        head = await anext(parts)
        assert isinstance(head, Head), "a run begins with its head"
        await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
        opened: set[int] = set()
        try:
            async for part in parts:
                for chunk in answers.chunks(head, part, opened, include_usage):
                    await _event(send, encoded(chunk))
        except RefusedError as refused:
            await _event(send, self.refusal(refused)[1])
        await _event(send, b"[DONE]")
        await send({"type": "http.response.body", "body": b""})


EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # a proxy must not collect them
]


def _lines(body: bytes) -> list[tuple[bytes, bytes]]:
    """Return the headers of a whole answer."""
    return [(b"content-type", b"application/json"), (b"cache-control", b"no-store"),
            (b"content-length", b"%d" % len(body))]  # fmt: skip


async def _event(send: Any, data: bytes) -> None:
    """Send one event of a stream."""
    await send({"type": "http.response.body", "body": b"data: %b\n\n" % data, "more_body": True})

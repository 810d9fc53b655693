"""Load test with fifty visitors: python tests/browser/load.py [--visitors 50] [--seconds 120].

It starts app.py and sends the page's requests. Every visitor has its own question, whose answer is
known from a run without load; some read to the end, some press Stop, some close the tab. It prints
the outcomes, the server's memory, and how long an abandoned run delays the next.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import httpx
import psutil
from conftest import ROOT, Server

SYSTEMS = ["lm", "memory", "knn"]
TOKENS, LONG = 12, 128
STEPS = 2  # values that a visitor reads before leaving early


class Refused(Exception):
    """The queue is full, and the visitor gets a message."""


@dataclass
class Page:
    """The page as a browser sees it: its address, Generate's handler and its fields' values."""

    client: httpx.AsyncClient
    handler: int
    fields: dict[str, object]  # by label, or by number without one; in the handler's order

    @classmethod
    async def open(cls, client: httpx.AsyncClient) -> "Page":
        """Return the page as /config describes it."""
        config = (await client.get("config")).json()
        props = {c["id"]: c["props"] for c in config["components"]}
        (button,) = [i for i, p in props.items() if p.get("elem_id") == "generate"]
        handler = next(d for d in config["dependencies"] if [button, "click"] in d["targets"])
        inputs = {i: props[i] for i in handler["inputs"]}
        fields = {p.get("label") or i: p.get("value") for i, p in inputs.items()}
        return cls(client, handler["id"], fields)

    def data(self, prompt: str, seed: int, tokens: int, heat: float) -> list:
        """Return the values that Generate sends."""
        filled = {"Prompt": prompt, "Columns": SYSTEMS, "Max new tokens": tokens,
                  "Temperature": heat, "Seed": seed}  # fmt: skip
        assert filled.keys() <= self.fields.keys()
        return list((self.fields | filled).values())

    async def join(self, session: str, prompt: str, seed: int, tokens: int, heat: float) -> str:
        """Start a run and return the event's id; Refused if the queue is full."""
        body = {
            "data": self.data(prompt, seed, tokens, heat),
            "fn_index": self.handler,
            "session_hash": session,
        }
        answer = await self.client.post("gradio_api/queue/join", json=body)
        if answer.status_code == 503:
            raise Refused(answer.json()["detail"])
        return answer.raise_for_status().json()["event_id"]

    async def listen(self, session: str):
        """Yield (message, the token view's value or None) until the stream ends."""
        path = f"gradio_api/queue/data?session_hash={session}"
        async with self.client.stream("GET", path) as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    yield message["msg"], value_of(message)

    async def stop(self, session: str, event: str) -> None:
        """Press Stop."""
        body = {"session_hash": session, "fn_index": self.handler, "event_id": event}
        (await self.client.post("gradio_api/cancel", json=body)).raise_for_status()


def value_of(message: dict) -> dict | None:
    """Return the token view's value in a message, whole or as a replacement."""
    data = (message.get("output") or {}).get("data") or [None]
    if isinstance(data[0], list):
        data = [{"json": op[2]} for op in data[0] if op[1] == ["json"]] or [None]
    return json.loads(data[0]["json"]) if isinstance(data[0], dict) and "json" in data[0] else None


@dataclass
class Visitor:
    """A visitor with its own question and the expected answer."""

    prompt: str
    seed: int
    answer: dict[str, str] = field(default_factory=dict)
    session: str = field(default_factory=lambda: uuid.uuid4().hex)  # of one tab

    async def ask(self, page: Page, leave: str = "") -> str:
        """Return the outcome of one run; leave is "stop", "close" or "" for reading to the end."""
        seen = 0
        event = await page.join(self.session, self.prompt, self.seed, TOKENS, 1.0)
        async for message, value in page.listen(self.session):
            if message == "unexpected_error" or (value or {}).get("kind") == "message":
                return "message"
            if value is None:
                continue
            if value.get("prompt", self.prompt) != self.prompt:
                return "FOREIGN"
            if value["kind"] == "done":
                texts = {name: trace["text"] for name, trace in value["traces"].items()}
                self.answer = self.answer or texts
                return "answered" if texts == self.answer else "FOREIGN"
            seen += 1
            if leave and seen == STEPS:
                if leave == "stop":
                    await page.stop(self.session, event)
                self.session = uuid.uuid4().hex  # the next tab
                return "left"
        return "LOST"


async def visit(page: Page, visitor: Visitor, ends: float, counts: Counter) -> None:
    """Start runs until the time is over."""
    rng = random.Random(visitor.seed)
    while time.monotonic() < ends:
        leave = rng.choices(["", "stop", "close"], [6, 1, 1])[0]
        try:
            counts[await visitor.ask(page, leave)] += 1
        except Refused:
            counts["refused with a message"] += 1
            await asyncio.sleep(rng.uniform(1, 3))


async def delay(page: Page, leave: str) -> float:
    """Return the seconds from leaving a long run until the next begins."""
    first, second = uuid.uuid4().hex, uuid.uuid4().hex
    event, seen = await page.join(first, "The river", 1, LONG, 2.0), 0
    stream = page.listen(first)
    async for _, value in stream:
        seen += value is not None
        if seen > STEPS:
            break
    await page.join(second, "The town", 1, 1, 0.0)
    waiting = asyncio.create_task(_begins(page, second))
    await asyncio.sleep(0.2)
    began = time.monotonic()
    if leave == "stop":
        await page.stop(first, event)
    await stream.aclose()
    return await waiting - began


async def _begins(page: Page, session: str) -> float:
    """Return the start time of a session's run, after reading its stream to the end."""
    when = 0.0
    async for message, _ in page.listen(session):
        if message == "process_starts":
            when = time.monotonic()
    return when


async def drive(url: str, process: psutil.Process, visitors: int, seconds: float) -> int:
    """Run the test and print the results; return an exit status."""
    say = sys.stdout.write
    # no keep-alive: the server could close a connection while it is reused
    limits = httpx.Limits(max_connections=4 * visitors, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        page = await Page.open(client)
        questions = json.loads((ROOT / "assets/atlas/questions.json").read_text("utf-8"))
        crowd = [Visitor(q["prompt"], i) for i, q in enumerate(questions[:visitors])]
        await _ready(page, crowd[0])
        for visitor in crowd:
            if (outcome := await visitor.ask(page)) != "answered":
                raise SystemExit(f"{visitor.prompt!r} was {outcome} without load")
        begin, ends, counts = time.monotonic(), time.monotonic() + seconds, Counter()
        memory = [process.memory_info().rss]
        tasks = [asyncio.create_task(visit(page, v, ends, counts)) for v in crowd]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(2)
            memory.append(process.memory_info().rss)
        for task in tasks:
            task.result()
        elapsed = time.monotonic() - begin
        say(f"{visitors} visitors, {elapsed:.0f} s, {sum(counts.values())} runs: ")
        say(", ".join(f"{n} {what}" for what, n in counts.most_common()) + "\n")
        half = len(memory) // 2
        say("server's memory in MB: before {:.0f}, half-way {:.0f}, at the end {:.0f}, most "
            "{:.0f}\n".format(*(m / 1e6 for m in (memory[0], memory[half], memory[-1],
                                                  max(memory)))))  # fmt: skip
        for leave in ("stop", "close"):
            times = [await delay(page, leave) for _ in range(8)]
            say(f"from {leave} to the next run's begin: median {median(times):.2f} s, ")
            say(f"slowest {max(times):.2f} s\n")
    return 1 if counts["FOREIGN"] or counts["LOST"] else 0


async def _ready(page: Page, visitor: Visitor) -> None:
    """Wait until all three columns answer."""
    while True:
        await visitor.ask(page)
        if set(visitor.answer) == set(SYSTEMS):
            return
        visitor.answer = {}
        await asyncio.sleep(1)


def main() -> int:
    """Start the app, drive it, stop it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    args = parser.parse_args()
    log = Path(tempfile.mkdtemp()) / "app.log"
    # all visitors share one address, whose default limits are for one visitor
    shares = {"MLPMEM_WAITING": "200", "MLPMEM_SESSIONS": "400", "MLPMEM_RATE": "1000",
              "MLPMEM_OPEN": "500"}  # fmt: skip
    server = Server(log, "app.py", "--port", "{port}", **shares).wait()
    try:
        process = psutil.Process(server.process.pid)
        return asyncio.run(drive(server.url, process, args.visitors, args.seconds))
    finally:
        server.stop()


if __name__ == "__main__":
    sys.exit(main())

"""Test fairness with greedy clients: python tests/browser/flood.py [--seconds 120] [--app].

Twenty polite visitors ask, read and pause. In a second phase three greedy clients join them, each
in its own process. They send jobs of the most tokens, jobs without a listener, new sessions,
reloads, uploads, large and incomplete bodies. X-Forwarded-For distinguishes the clients. The script
prints the polite visitors' median wait in both phases, and the server's memory and disk. It is
limited in requests and time, and stays on this machine; the page has the fake model, or with --app
the bundle's.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
import uuid
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import httpx
import psutil
from conftest import HERE, ROOT, Server
from load import Page, Refused

POLITE, GREEDY = 20, 3
TOKENS, MOST_TOKENS = 32, 128
THINK = (1.0, 3.0)  # seconds between a polite visitor's questions
MOST = 40  # requests per second of one greedy client
DOUBLE = 2.0  # largest allowed ratio of the polite visitors' waits


@dataclass
class Seen:
    """The outcomes of a phase."""

    waits: list[float] = field(default_factory=list)  # seconds from request to whole answer
    begins: list[float] = field(default_factory=list)  # seconds from request to first token
    outcomes: Counter = field(default_factory=Counter)


def client_of(url: str, address: str) -> httpx.AsyncClient:
    """Return a client with an address in X-Forwarded-For."""
    limits = httpx.Limits(max_connections=32, max_keepalive_connections=0)
    headers = {"x-forwarded-for": address}
    return httpx.AsyncClient(base_url=url, timeout=60, limits=limits, headers=headers)


async def polite(page: Page, prompts: list[str], rng: random.Random, ends: float, seen: Seen):
    """Ask, read to the end and pause, in a loop."""
    session = uuid.uuid4().hex
    await asyncio.sleep(rng.uniform(*THINK))
    while time.monotonic() < ends:
        begin = time.monotonic()
        try:
            await page.join(session, rng.choice(prompts), rng.randrange(1000), TOKENS, 0.0)
            first = 0.0
            async for message, value in page.listen(session):
                first = first or (value is not None and time.monotonic() - begin)
                if message == "process_completed":
                    seen.outcomes["answered" if first else "message"] += 1
            seen.waits.append(time.monotonic() - begin)
            seen.begins.append(first or seen.waits[-1])
        except (Refused, httpx.HTTPError) as error:
            seen.outcomes[f"polite: {error}"[:80]] += 1
        await asyncio.sleep(rng.uniform(*THINK))


async def poll_of(client: httpx.AsyncClient) -> int:
    """Return the number of the status handler, which takes no values."""
    config = (await client.get("config")).json()
    return next(d["id"] for d in config["dependencies"] if d["api_name"] == "poll")


async def greedy(page: Page, rng: random.Random, ends: float, seen: Seen):
    """Fill queue, memory and disk with at most MOST requests per second."""
    client, tasks = page.client, set()
    big, poll = "x" * 7_000_000, await poll_of(client)

    async def job():
        body = {"data": page.data("slow", 1, MOST_TOKENS, 1.0), "fn_index": page.handler,
                "session_hash": uuid.uuid4().hex}  # fmt: skip
        return await client.post("gradio_api/queue/join", json=body)

    async def heard():
        session = uuid.uuid4().hex
        await page.join(session, "slow", 1, MOST_TOKENS, 1.0)
        async for _ in page.listen(session):
            pass

    async def post():
        body = {"data": [], "fn_index": poll, "session_hash": uuid.uuid4().hex}
        return await client.post("gradio_api/run/predict", json=body)

    async def large():
        body = {"data": [big], "fn_index": page.handler, "session_hash": "x" * 1_000_000}
        return await client.post("gradio_api/queue/join", json=body)

    async def upload():
        content = rng.randbytes(1_000_000)
        return await client.post("gradio_api/upload", files={"files": ("a.txt", content)})

    async def half():
        async def slowly():
            yield b"x" * 100_000
            await asyncio.sleep(20)

        return await client.post("gradio_api/upload", content=slowly())

    async def reload():
        return await client.get("/")

    kinds, weights = (job, heard, post, large, upload, half, reload), (8, 4, 8, 1, 4, 1, 14)

    async def once(kind):
        with suppress(Refused, httpx.HTTPError):
            answer = await kind()
            seen.outcomes[f"greedy: {answer.status_code}" if answer else "greedy: heard"] += 1

    while time.monotonic() < ends:
        (kind,) = rng.choices(kinds, weights)
        if len(tasks) < 40:
            task = asyncio.create_task(once(kind))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.sleep(1 / MOST)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def size_of(path: Path) -> int:
    """Return a file's size, 0 if it is gone."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


async def watch(process: psutil.Process, folder: Path, ends: float) -> tuple[float, float]:
    """Return the server's peak memory and disk use, in MB."""
    memory = disk = 0
    while time.monotonic() < ends:
        memory = max(memory, process.memory_info().rss)
        walk = os.walk(folder)
        disk = max(disk, sum(size_of(Path(above, name)) for above, _, n in walk for name in n))
        await asyncio.sleep(0.5)
    return memory / 1e6, disk / 1e6


async def one_greedy(url: str, address: str, seconds: float) -> int:
    """Run as a greedy client, and print the outcomes of its requests as JSON.

    It leaves the processor to the server: a real one has a machine of its own.
    """
    if hasattr(os, "nice"):
        os.nice(19)
    seen = Seen()
    async with client_of(url, address) as client:
        page = await Page.open(client)
        await greedy(page, random.Random(address), time.monotonic() + seconds, seen)
    sys.stdout.write(json.dumps(seen.outcomes))
    return 0


async def started(url: str, number: int, seconds: float) -> Counter:
    """Run a greedy client in its own process; return the outcomes of its requests."""
    address = f"203.0.113.{number + 1}"
    command = [str(HERE / "flood.py"), "--greedy", url, address, "--seconds", str(seconds)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=pipe)
    try:
        return Counter(json.loads((await process.communicate())[0]))
    finally:
        with suppress(ProcessLookupError):
            process.kill()


async def phase(url: str, prompts: list[str], seconds: float, greedies: int, watched) -> Seen:
    """Run one phase; print and return its outcomes."""
    seen, ends = Seen(), time.monotonic() + seconds
    clients = [client_of(url, f"198.51.100.{i + 1}") for i in range(POLITE)]
    pages = [await Page.open(client) for client in clients]
    tasks = [polite(page, prompts, random.Random(i), ends, seen) for i, page in enumerate(pages)]
    tasks += [watch(*watched, ends), *(started(url, i, seconds) for i in range(greedies))]
    results = await asyncio.gather(*tasks)
    for client in clients:
        await client.aclose()
    memory, disk = results[POLITE]
    for outcomes in results[POLITE + 1 :]:
        seen.outcomes.update(outcomes)
    say = sys.stdout.write
    say(f"{POLITE} polite, {greedies} greedy, {seconds:.0f} s: ")
    say(", ".join(f"{n} {what}" for what, n in sorted(seen.outcomes.items())) + "\n")
    say(f"  median wait {median(seen.waits):.2f} s, until the first token ")
    say(f"{median(seen.begins):.2f} s, longest {max(seen.waits):.1f} s\n")
    say(f"  most memory {memory:,.0f} MB, most disk {disk:,.1f} MB\n")
    sys.stdout.flush()
    return seen


async def drive(url: str, prompts: list[str], seconds: float, watched) -> int:
    """Run both phases; return an exit status."""
    async with client_of(url, "192.0.2.1") as client:
        page = await Page.open(client)
        for _ in range(600):  # until all columns answer
            session = uuid.uuid4().hex
            await page.join(session, prompts[0], 1, 1, 0.0)
            values = [value async for _, value in page.listen(session) if value]
            if len(values[-1].get("traces") or ()) == 3:
                break
            await asyncio.sleep(1)
    without = await phase(url, prompts, seconds, 0, watched)
    with_greedy = await phase(url, prompts, seconds, GREEDY, watched)
    times = median(with_greedy.waits) / median(without.waits)
    sys.stdout.write(f"with greedy clients, polite visitors wait {times:.2f} times as long\n")
    return 0 if times <= DOUBLE else 1


def main() -> int:
    """Start the page, drive it, stop it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120, help="per phase")
    parser.add_argument(
        "--app", action="store_true", help="serve assets/atlas in place of the fake"
    )
    parser.add_argument(
        "--greedy", nargs=2, metavar=("URL", "ADDRESS"), help="run as a greedy client"
    )
    args = parser.parse_args()
    args.seconds = min(args.seconds, 600)
    if args.greedy:
        return asyncio.run(one_greedy(*args.greedy, args.seconds))
    folder = Path(tempfile.mkdtemp())
    environment = {"MLPMEM_TRUST_PROXY": "1", "GRADIO_TEMP_DIR": str(folder / "uploads")}
    serve = [str(HERE / "serve.py"), str(folder / "fake"), "{port}", "0.1"]
    server = Server(
        folder / "log", *(["app.py", "--port", "{port}"] if args.app else serve), **environment
    ).wait()
    questions = json.loads((ROOT / "assets/atlas/questions.json").read_text("utf-8"))
    prompts = [question["prompt"] for question in questions[:50]]
    watched = (psutil.Process(server.process.pid), folder / "uploads")
    try:
        return asyncio.run(drive(server.url, prompts, args.seconds, watched))
    finally:
        server.stop()
        faults = server.log.read_text().count("Traceback")
        sys.stdout.write(f"{faults} tracebacks in the server's log {server.log}\n")


if __name__ == "__main__":
    sys.exit(main())

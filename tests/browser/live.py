"""Measure the live static Space: python tests/browser/live.py [--firefox P] [--webkit P].

It builds the shipped bundle's folder, serves it, and asks questions through its page. Every answer
is compared with Python's, and the time per token with transformers' (paired.py). With --times,
only times are measured; with --first, before other processes of this machine.
"""

import argparse
import http.server
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from paired import (
    ASK,
    BUNDLE,
    TOKENS,
    ask,
    before_others,
    below,
    long_prompts,
    per_token,
    print_times,
    say,
)

import mlpmem
import mlpmem.hf
from mlpmem.space.build import build

PAGES = {"firefox": rb"tab\0*$", "webkit": b"WebKitWebProcess"}  # commands of pages' processes
FELT = """async ({ prompt, after }) => {
  const view = MLPMEM.page.views[0];
  const until = async (met) => { while (!met()) await new Promise((done) => setTimeout(done, 10)); };
  let [longest, last] = [0, performance.now()];
  const timer = setInterval(() => {
    longest = Math.max(longest, performance.now() - last);
    last = performance.now();
  }, 10);
  document.querySelector('#prompt textarea').value = prompt;
  const begin = performance.now();
  document.querySelector('#generate').click();
  await until(() => view.running);
  await until(() => !view.running || document.querySelector('#pane-memory[data-state=running] .token'));
  const first = performance.now() - begin;
  await new Promise((done) => setTimeout(done, after));
  const pressed = performance.now();
  document.querySelector('#stop').click();
  await until(() => !view.running);
  clearInterval(timer);
  return { first, longest, stop: performance.now() - pressed };
}"""  # noqa: E501
READY = """async () => {
  while (!document.body.hasAttribute('data-ready')) await new Promise((done) => setTimeout(done, 20));
  return Number(document.body.dataset.seconds);
}"""  # noqa: E501


class Site(http.server.ThreadingHTTPServer):
    """The built folder on a free port; it counts the bytes and requests it answers."""

    def __init__(self, folder: Path) -> None:
        """Serve in the background."""
        self.sent: list[tuple[str, int]] = []
        self.asked: list[str] = []  # paths, also of what is not there
        site = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                site.asked.append(self.path)
                super().do_GET()

            def copyfile(self, source: Any, outputfile: Any) -> None:
                site.sent.append((self.path, os.fstat(source.fileno()).st_size))
                super().copyfile(source, outputfile)

        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}/"


def expected(model: Any, prompts: list[str]) -> list[dict]:
    """Return Python's traces of every prompt, alone and under auto."""
    return [model.compare(p, ["lm", "memory"], lmbda="auto", sources=["memory"]) for p in prompts]


def compared(page: Any, prompts: list[str], traces: list[dict]) -> tuple[int, float]:
    """Return how many prompts get Python's ids in both columns, and the largest |dp|."""
    same, largest = 0, 0.0
    for prompt, wanted in zip(prompts, traces, strict=True):
        asked = {"prompt": prompt, "systems": ["lm", "memory"], "lmbda": "auto", "tokens": TOKENS}
        got = page.evaluate(ASK, asked)["traces"]
        same += all([s["id"] for s in got[name]] == [s.token_id for s in wanted[name].steps]
                    for name in wanted)  # fmt: skip
        for name, trace in wanted.items():
            for own, step in zip(got[name], trace.steps, strict=False):
                rows = {row[0]: row[2:] for row in own["cand"]}
                pairs = [(own["p"][k], step.probs[k]) for k in ("lm", "memory", "fused")]
                for c in step.candidates:
                    if c.token_id in rows:
                        lm, memory, _ = rows[c.token_id]
                        pairs += [(lm, c.probs["lm"]), (memory, c.probs["memory"])]
                largest = max([largest, *(abs(a - b) for a, b in pairs)])
    return same, largest


def held(pid: int) -> float:
    """Return a process's megabytes; pages that several processes share are divided (Pss)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("Pss:"))


class Slowed:
    """A process that runs a quarter of the time."""

    def __init__(self, pid: int) -> None:
        """Stop and continue it from now on."""
        self.pid, self.ended = pid, threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while not self.ended.is_set():
            os.kill(self.pid, signal.SIGSTOP)
            time.sleep(0.003)
            os.kill(self.pid, signal.SIGCONT)
            time.sleep(0.001)

    def end(self) -> None:
        """Let it run freely again."""
        self.ended.set()
        self.thread.join()


def in_chromium(site: Site, args: Any, prompts: list[str], traces: list[dict]) -> None:
    """Print the figures of Chromium, then those of a slowed phone."""
    from conftest import FLAGS, find_chromium
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        program = args.chromium or find_chromium(playwright)
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        sys.stdout.write(f"Chromium {browser.version}\n")
        lifted(args)
        page = readied(browser, site, args.turns)
        say("bytes until it answers", sum(size for _, size in site.sent) / 1e6, "MB", "at most 27")
        if not args.times:
            print_answers(page, site, prompts, traces)
            say("the tab's process", held(renderer(browser)), "MB", "at most 300")
        print_times(page, renderer(browser), args)
        browser.close()
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        on_phone(browser, site, prompts[0], args)


def readied(browser: Any, site: Site, turns: int) -> Any:
    """Print how long a new page takes once it has its files; return the last one."""
    seconds = []
    for _ in range(turns):
        for context in browser.contexts:
            context.close()
        site.sent.clear()
        page = browser.new_context(viewport={"width": 1280, "height": 860}).new_page()
        page.goto(site.url)
        seconds.append(page.evaluate(READY))
    say("ready after the last byte", median(seconds), "s", "at most 1")
    return page


def lifted(args: Any) -> None:
    """Let this process and its browsers run before others, if --first says so."""
    if args.first:
        before_others(os.getpid())


def print_answers(page: Any, site: Site, prompts: list[str], traces: list[dict]) -> None:
    """Print how many answers are Python's, and what was requested meanwhile."""
    loaded = len(site.sent)
    same, largest = compared(page, prompts, traces)
    say(f"questions with Python's ids, of {len(prompts)}", same, "", f"{len(prompts)}")
    say("largest difference of a probability", largest, "", "at most 1e-4")
    say("requests after loading", len(site.sent) - loaded, "", "0")


def on_phone(browser: Any, site: Site, prompt: str, args: Any) -> None:
    """Print the figures of a phone's screen, with the tab's process slowed; the browser is new."""
    shape = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
    page = browser.new_context(**shape).new_page()
    page.goto(site.url)
    page.evaluate(READY)
    lifted(args)
    slow = Slowed(renderer(browser))
    begin = time.perf_counter()
    page.reload()
    say("phone at a quarter of the speed: ready after the last byte", page.evaluate(READY), "s")
    say("phone: ready after a reload", time.perf_counter() - begin, "s")
    asked = {"prompt": prompt, "systems": ["lm", "memory"], "lmbda": "auto", "tokens": TOKENS}
    answers = [page.evaluate(ASK, asked) for _ in range(5)]
    say("phone: a question, both columns", median(a["ms"] for a in answers) / 1000, "s")
    say_felt(page, prompt)
    prompt = long_prompts()[0]
    for name, systems in (("the memory's column", ["memory"]), ("both columns", ["lm", "memory"])):
        asked = {"prompt": prompt, "systems": systems, "lmbda": 0.5}
        rows = [per_token(partial(ask, page, ASK, asked), time.perf_counter) for _ in range(5)]
        say(f"phone: clock time of a token, {name}", median(row[0] for row in rows), "ms")
    slow.end()
    browser.close()


def say_felt(page: Any, prompt: str) -> None:
    """Print what a visitor feels of one question that is stopped after its first token."""
    felt = page.evaluate(FELT, {"prompt": prompt, "after": 300})
    say("phone: the first token is on the screen", felt["first"] / 1000, "s")
    say("phone: the page's longest silence meanwhile", felt["longest"], "ms")
    say("phone: from Stop to its end", felt["stop"], "ms")


def renderer(browser: Any) -> int:
    """Return the largest renderer process of Chromium."""
    found = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    return max((int(p["id"]) for p in found if p["type"] == "renderer"), key=held)


def in_other(site: Site, browser: Any, kind: str, args: Any, asked: tuple) -> None:
    """Print the figures of another browser."""
    try:
        browser.goto(site.url)
        sys.stdout.write(browser.evaluate("() => navigator.userAgent") + "\n")
        lifted(args)
        say("ready after the last byte", browser.evaluate(READY), "s", "at most 1")
        tab = max(tabs(browser.process.pid, kind), key=held)
        if not args.times:
            print_answers(browser, site, *asked)
            say("the tab's process", held(tab), "MB", "at most 300")
        print_times(browser, tab, args)
    finally:
        browser.close()


def tabs(pid: int, kind: str = "firefox") -> list[int]:
    """Return the processes below a browser that show pages."""
    command = {one: Path(f"/proc/{one}/cmdline").read_bytes() for one in below(pid)}
    return [one for one in command if re.search(PAGES[kind], command[one])]


def main() -> int:
    """Print all figures; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chromium", help="a Chromium; by default the one that the tests use")
    parser.add_argument("--firefox", help="a Firefox, which is measured too")
    parser.add_argument("--webkit", help="WebKitGTK's MiniBrowser, which is measured too")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--times", action="store_true", help="measure only times")
    parser.add_argument("--first", action="store_true", help="run before other processes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads((BUNDLE / "questions.json").read_text("utf-8"))
    prompts = [row["prompt"] for row in rows[:: max(1, len(rows) // args.questions)]]
    prompts = prompts[: args.questions]
    with tempfile.TemporaryDirectory() as folder:
        model = mlpmem.load(datastore=False)
        traces = [] if args.times else expected(model, prompts)
        args.fused = str(Path(folder) / "fused")
        mlpmem.hf.MlpMemoryForCausalLM.of(model, "memory").save_pretrained(args.fused)
        site = Site(build(Path(folder) / "site", "static").folder)
        in_chromium(site, args, prompts, traces)
        if args.firefox:
            from bidi import Firefox

            in_other(site, Firefox(args.firefox), "firefox", args, (prompts, traces))
        if args.webkit:
            from webkit import WebKit

            in_other(site, WebKit(args.webkit), "webkit", args, (prompts, traces))
    return 0


if __name__ == "__main__":
    sys.exit(main())

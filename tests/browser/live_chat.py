"""Measure a chat bundle's static Space: python tests/browser/live_chat.py BUNDLE [--questions N].

It builds the folder, presses the button that loads the model, and asks the bundle's questions and
general requests through the page. Every answer is compared with Python's on the same weights.
"""

import argparse
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from live import (
    READY,
    Site,
    Slowed,
    compared,
    held,
    renderer,
    say_felt,
    tabs,
)
from paired import ASK, TOKENS, ask, per_token, processor, say

from mlpmem.loading.bundle import load_bundle
from mlpmem.space.build import build
from mlpmem.ui.recordings.words import STARTERS

FEW = 5  # questions in Firefox and WebKit
PROGRESS = """async () => {
  const lines = [];
  const pause = () => new Promise((done) => setTimeout(done, 20));
  while (!document.querySelector('#download')) await pause();
  document.querySelector('#download').click();
  while (!document.body.hasAttribute('data-ready')) {
    const line = document.querySelector('#status').textContent;
    if (line !== lines.at(-1)) lines.push(line);
    await pause();
  }
  return lines;
}"""


def expected(model: Any, prompts: list[str]) -> list[dict]:
    """Return Python's traces of every prompt as a chat, alone and under auto."""
    columns = ["lm", "memory"]
    options = {"lmbda": "auto", "sources": ["memory"], "max_new_tokens": TOKENS}
    return [model.compare(model.chat_ids(p, TOKENS), columns, **options) for p in prompts]


def loaded(page: Any, site: Site, browser: Any) -> None:
    """Press the button, and print what loading took."""
    say("bytes before the button", sum(size for _, size in site.sent) / 1e6, "MB")
    begin = time.perf_counter()
    page.click("#download")
    say("ready after the last byte", page.evaluate(READY), "s")
    say("ready after the button, from this machine", time.perf_counter() - begin, "s")
    say("bytes until it answers", sum(size for _, size in site.sent) / 1e6, "MB")
    say("the tab's process and the debugger's copies, at once", held(renderer(browser)), "MB")


def print_times(page: Any, pid: int, turns: int) -> None:
    """Print the time per token of the decoder alone, and with the memory at lambda 0."""
    for name, systems in (("the decoder with the memory", ["memory"]), ("both columns", None)):
        asked = {"systems": systems or ["lm", "memory"], "lmbda": 0.0}
        rows = [
            per_token(partial(ask, page, ASK, {**asked, "prompt": prompt}), partial(processor, pid))
            for _ in range(turns)
            for prompt in STARTERS
        ]
        for kind, times in zip(("wall", "processor"), zip(*rows, strict=True), strict=True):
            say(f"{kind} time of a token, {name}", median(times), "ms")


def main() -> int:
    """Print all figures; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--chromium", help="a Chromium; by default the one that the tests use")
    parser.add_argument("--firefox", help="a Firefox, in which a few questions are asked too")
    parser.add_argument("--webkit", help="WebKitGTK's MiniBrowser, likewise")
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads((args.bundle / "questions.json").read_text("utf-8"))
    prompts = [row["prompt"] for row in rows[:: max(1, len(rows) // args.questions)]]
    prompts = [*prompts[: args.questions], *STARTERS]
    traces = expected(load_bundle(args.bundle).model(), prompts)
    with tempfile.TemporaryDirectory() as folder:
        site = Site(build(Path(folder) / "site", "static", bundle=args.bundle).folder)
        in_chromium(site, args, prompts, traces)
        few = prompts[:FEW], traces[:FEW]
        if args.firefox:
            from bidi import Firefox

            in_other(site, Firefox(args.firefox), "firefox", *few)
        if args.webkit:
            from webkit import WebKit

            in_other(site, WebKit(args.webkit), "webkit", *few)
    return 0


def in_chromium(site: Site, args: Any, prompts: list[str], traces: list[dict]) -> None:
    """Print the figures of Chromium."""
    from conftest import FLAGS, find_chromium
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        program = args.chromium or find_chromium(playwright)
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        sys.stdout.write(f"Chromium {browser.version}\n")
        page = browser.new_context(viewport={"width": 1280, "height": 860}).new_page()
        page.goto(site.url)
        page.wait_for_selector("#download")
        loaded(page, site, browser)
        count = len(site.sent)
        same, largest = compared(page, prompts, traces)
        say(f"questions with Python's ids, of {len(prompts)}", same, "", f"{len(prompts)}")
        say("largest difference of a probability", largest, "", "at most 1e-4")
        say("requests after loading", len(site.sent) - count, "", "0")
        print_times(page, renderer(browser), args.turns)
        say(
            "the same after the questions; see weigh.py",
            held(renderer(browser)),
            "MB",
        )
        page.reload()
        page.wait_for_selector("#download")
        count, begin = len(site.sent), time.perf_counter()
        page.click("#download")
        page.evaluate(READY)
        say("second visit: ready after the button", time.perf_counter() - begin, "s")
        parts = [path for path, _ in site.sent[count:] if "/model/" in path]
        say("second visit: parts of the model that are loaded again", len(parts), "", "0")
        browser.close()
        on_phone(playwright.chromium.launch(executable_path=program, args=FLAGS), site, prompts[0])


def on_phone(browser: Any, site: Site, prompt: str) -> None:
    """Print the figures of a phone's screen, with the tab's process slowed once it is ready."""
    shape = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
    page = browser.new_context(**shape).new_page()
    page.set_default_timeout(0)
    page.goto(site.url)
    page.click("#download")
    page.evaluate(READY)
    slow = Slowed(renderer(browser))
    asked = {"prompt": prompt, "systems": ["memory"], "lmbda": "auto", "tokens": TOKENS}
    steps = page.evaluate(ASK, asked)["traces"]["memory"]
    say("phone: a token with the memory", median(step["ms"] for step in steps[1:]), "ms")
    say_felt(page, prompt)
    slow.end()
    browser.close()


def in_other(site: Site, browser: Any, kind: str, prompts: list[str], traces: list[dict]) -> None:
    """Print the figures of another browser: the button, progress in bytes, a few questions."""
    try:
        browser.goto(site.url)
        sys.stdout.write(browser.evaluate("() => navigator.userAgent") + "\n")
        lines = browser.evaluate(PROGRESS)
        sys.stdout.write("\n".join([*lines[:2], "...", *lines[-2:]]) + "\n")
        say("ready after the last byte", browser.evaluate(READY), "s")
        count = len(site.sent)
        same, largest = compared(browser, prompts, traces)
        say(f"questions with Python's ids, of {len(prompts)}", same, "", f"{len(prompts)}")
        say("largest difference of a probability", largest, "", "at most 1e-4")
        say("requests after loading", len(site.sent) - count, "", "0")
        tab = max(tabs(browser.process.pid, kind), key=held)
        say("the tab's process", held(tab), "MB")
        asked = {"systems": ["memory"], "lmbda": 0.0, "prompt": STARTERS[0]}
        run, clock = partial(ask, browser, ASK, asked), partial(processor, tab)
        rows = [per_token(run, clock) for _ in range(3)]
        say("clock time of a token with the memory", median(row[0] for row in rows), "ms")
        say("processor time of a token with the memory", median(row[1] for row in rows), "ms")
    finally:
        browser.close()


if __name__ == "__main__":
    sys.exit(main())

"""Weigh the tab of a live page without a debugger: python tests/browser/weigh.py BUNDLE.

Playwright's Chromium keeps what the network sent (100 MB and more) in the tab's process, for the
debugger. Here the page presses its own buttons, and Chromium runs as a visitor's does.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from conftest import find_chromium
from live import Site, held
from paired import below, say
from playwright.sync_api import sync_playwright

from mlpmem.space.build import build

PATIENCE = 600  # seconds
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run")
PRESS = """<script>addEventListener("load", async () => {
  const until = (met) => new Promise((done) => {
    const timer = setInterval(() => { if (met()) { clearInterval(timer); done(); } }, 50);
  });
  await until(() => document.body.hasAttribute("data-ready") || document.querySelector("#download"));
  document.querySelector("#download")?.click();
  await until(() => document.body.hasAttribute("data-ready"));
  await fetch("ready").catch(() => 0);
  for (const prompt of ["What is the capital of France?", "How do I boil an egg?", "Tell me a joke."]) {
    document.querySelector("#prompt textarea").value = prompt;
    document.querySelector("#generate").click();
    await until(() => MLPMEM.page.views[0].running);
    await until(() => !MLPMEM.page.views[0].running);
  }
  await fetch("asked").catch(() => 0);
});</script>"""  # noqa: E501


def tab(pid: int) -> float:
    """Return the megabytes of a browser's largest tab."""
    sizes = [0.0]
    for child in below(pid):
        with contextlib.suppress(OSError, StopIteration):
            if b"--type=renderer" in Path(f"/proc/{child}/cmdline").read_bytes():
                sizes.append(held(child))
    return max(sizes)


def main() -> int:
    """Print all figures; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    args = parser.parse_args()
    with sync_playwright() as playwright:
        program = find_chromium(playwright)
    with tempfile.TemporaryDirectory() as folder:
        site = Site(build(Path(folder) / "site", "static", bundle=args.bundle).folder)
        index = Path(folder) / "site" / "index.html"
        index.write_text(index.read_text("utf-8").replace("</body>", PRESS + "</body>"), "utf-8")
        command = [program, *FLAGS, f"--user-data-dir={folder}/profile", site.url]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        browser = subprocess.Popen(command, env=os.environ, **quiet)
        try:
            print_weights(site, browser.pid)
        finally:
            browser.terminate()
            browser.wait()
    return 0


def print_weights(site: Site, pid: int) -> None:
    """Print the tab's size as the page goes on."""
    peak, begin = 0.0, time.monotonic()
    for place, what in (("/ready", "once the model is ready"), ("/asked", "after three questions")):
        while not any(path.startswith(place) for path in site.asked):
            assert time.monotonic() - begin < PATIENCE, f"the page never got to {place}"
            time.sleep(0.1)
            peak = max(peak, tab(pid))
        say(f"the tab {what}", tab(pid), "MB", "at most 300 for the small bundle")
    say("the tab's peak", peak, "MB")
    time.sleep(10)
    say("the tab 10 seconds later", tab(pid), "MB")


if __name__ == "__main__":
    sys.exit(main())

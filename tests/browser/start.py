"""Measure the page's start: python tests/browser/start.py [--runs 5].

It starts app.py and a bare Gradio page with one textbox in turn, each in a new process. It prints
the seconds from the process's start to the first answer, and the ratio of every pair.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from conftest import Server

BARE = """
import gradio
with gradio.Blocks(analytics_enabled=False) as page:
    gradio.Textbox()
page.launch(server_name="127.0.0.1", server_port={port}, quiet=True, ssr_mode=False)
"""


def seconds(log: Path, *command: str) -> float:
    """Return the seconds until a command's page answers."""
    began = time.perf_counter()
    server = Server(log, *command, GRADIO_ANALYTICS_ENABLED="False")
    try:
        server.wait()
        return time.perf_counter() - began
    finally:
        server.stop()


def main() -> None:
    """Run the pairs and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    log = Path(tempfile.mkdtemp()) / "log"
    ratios = []
    for _ in range(runs):
        bare = seconds(log, "-c", BARE)
        ours = seconds(log, "app.py", "--port", "{port}")
        ratios.append(ours / bare)
        sys.stdout.write(f"bare Gradio {bare:.2f} s, the page {ours:.2f} s: {ratios[-1]:.3f}\n")
    sys.stdout.write(f"median ratio {median(ratios):.3f}, from {min(ratios):.3f}\n")


if __name__ == "__main__":
    main()

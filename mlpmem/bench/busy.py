"""The first token on a busy machine: a loop keeps one core busy, against the machine without it.

Blocks of answers with and without the loop follow one another, so that other programs meet both
alike. The loop is a process of its own that may run on one core only, where the system allows that.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

import numpy as np

from mlpmem.api import Model
from mlpmem.bench.figures import Figure
from mlpmem.fast.compiling import compiles
from mlpmem.fast.devices import calibrate
from mlpmem.fast.llama_pass import LlamaPass

BLOCK = 8  # answers in a row
TEXT = "The history of the city begins with the first settlers who came along the river in search"


def bench(model: Model, name: str, rounds: int = 5) -> Iterator[Figure]:
    """Yield the 95th percentiles of ms to the first token, quiet and busy, and their ratio."""
    decoder = model.decoder
    if isinstance(decoder.fast_pass, LlamaPass) and compiles():
        decoder.fast_pass.compile()
    calibrate(decoder)
    alone, prompt = model.only("lm"), decoder.encode(TEXT)
    ms: dict[str, list[float]] = {"quiet": [], "busy": []}
    with _loop() as process:
        for number in range(rounds + 1):
            for kind, run in (("quiet", signal.SIGSTOP), ("busy", signal.SIGCONT)):
                os.kill(process.pid, run)
                for _ in range(BLOCK):
                    begin = time.perf_counter()
                    alone.generate(prompt, "lm", max_new_tokens=1)
                    if number:  # the first round warms up
                        ms[kind].append(1000 * (time.perf_counter() - begin))
    p95 = {kind: float(np.percentile(values, 95)) for kind, values in ms.items()}
    for kind, value in p95.items():
        middle = float(np.median(ms[kind]))
        yield Figure(f"busy/{name}/{kind}/ms_to_first_token/median", middle, "ms")
        yield Figure(f"busy/{name}/{kind}/ms_to_first_token/p95", value, "ms")
    yield Figure(f"busy/{name}/busy_times_quiet/p95", p95["busy"] / p95["quiet"], "x")


@contextmanager
def _loop() -> Iterator[BaseProcess]:
    """Yield a process that keeps a core busy, until the context ends."""
    process = multiprocessing.get_context("spawn").Process(target=_spin, daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _spin() -> None:
    """Keep the machine's first core busy until the parent process ends."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    parent = os.getppid()
    while os.getppid() == parent:  # a killed parent cannot end it
        pass

"""Threads, devices and malloc: how a decoder uses this machine.

Threads: decoding one row is limited by memory bandwidth. More threads than the bandwidth needs wait
for each other, so the best number is measured. It holds for everything that a step computes: on a
busy machine, OpenMP's threads wait milliseconds for each other at every operator. Prefill, search
and keys use all threads, set explicitly: a Python thread that first computes while another decodes
inherits the other's number.

malloc: by default glibc returns freed pages to the kernel after every layer. Keeping them saved a
third of the time of building keys (sys time 0.3 s instead of 5.4 s).

Devices: "auto" spreads a decoder over all GPUs with accelerate. Inputs and outputs are on the first
GPU, which also holds memory and search. A decoder that does not fit is refused before it is read
(loading/capacity.py).
"""

import ctypes
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch

from mlpmem.fast.sharing import share

ROWS = 4  # more rows have work for every thread
ROUNDS, SECONDS = 5, 2.0  # of measuring, at most; the first round always runs
SLACK = 1.05  # times the fastest: not worth more threads
_MEASURED: ContextVar[int] = ContextVar("measured", default=0)  # threads that are measured now


class Decodes(Protocol):
    """The part of a decoder that is used here."""

    threads: int  # for a few rows; 0 leaves torch's own number
    all_threads: int  # for more rows; 0 as above

    @property
    def device(self) -> torch.device:
        """Return the device of inputs."""

    @property
    def is_compiled(self) -> bool:
        """Return whether steps are compiled code with threads of its own."""

    def forward(self, ids: torch.Tensor, *, use_cache: bool, memory: Any) -> Any:
        """Compute token ids (1, 1)."""


def calibrate(decoder: Decodes, memory: Any = None) -> int:
    """Set and return decoder.threads, the smallest number that decodes about as fast as any.

    A memory that is computed in the decoder's step is measured with it.
    The candidates are 1, 2, 4 and so on up to torch's current number, or an earlier calibration's:
    a thread that begins while another decodes inherits a smaller one. The last candidate becomes
    decoder.all_threads. On a GPU, or with one thread, both are 0, which means torch's own number.
    Others may decode meanwhile, with the numbers before.
    """
    total = decoder.all_threads or torch.get_num_threads()
    if decoder.device.type != "cpu" or total == 1:
        decoder.threads = decoder.all_threads = 0
        return 0
    counts = [*(2**i for i in range(total.bit_length()) if 2**i < total), total]
    seconds = {count: [] for count in counts}
    start = time.perf_counter()
    for turn in range(ROUNDS):
        for count in counts:
            seconds[count].append(_seconds(decoder, memory, count))
        if turn and time.perf_counter() - start > SECONDS:
            break
    fastest = min(map(min, seconds.values()))
    decoder.all_threads = total
    decoder.threads = next(count for count in counts if min(seconds[count]) <= SLACK * fastest)
    return decoder.threads


@contextmanager
def threads_for(decoder: Decodes, rows: int) -> Iterator[None]:
    """Set torch's threads for so many rows: decoder.threads for a few, else decoder.all_threads.

    Runs at the same time share them (sharing.py), but not those of a measurement.
    """
    before = torch.get_num_threads()
    count = share(decoder.threads if rows <= ROWS else decoder.all_threads)
    count = _MEASURED.get() or count
    if count in (0, before):
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def threads_between(decoder: Decodes, rows: int) -> Iterator[None]:
    """Set torch's threads for what lies between two steps of so many rows.

    That is one after compiled steps: OpenMP's threads go on spinning after an operator, on cores
    that the step's own threads need. It made a token of two threads 1.5 times slower.
    """
    if rows > ROWS or not decoder.is_compiled:
        with threads_for(decoder, rows):
            yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _seconds(decoder: Decodes, memory: Any, count: int) -> float:
    """Return the seconds of decoding one token with so many threads."""
    token = _MEASURED.set(count)
    try:
        begin = time.perf_counter()
        decoder.forward(torch.zeros(1, 1, dtype=torch.long), use_cache=True, memory=memory)
        return time.perf_counter() - begin
    finally:
        _MEASURED.reset(token)


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_memory() -> None:
    """Tune glibc malloc to keep freed memory; without glibc, do nothing."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # not in musl
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def trim_memory() -> None:
    """Return malloc's unused memory to the system; without glibc, do nothing."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


AUTO = "auto"
FILLED = 0.85  # of a GPU's free memory; the rest is for caches, the memory and keys


def first_device(device: str | torch.device) -> str | torch.device:
    """Return the device of inputs, memory and search: for "auto" the first GPU, else the CPU."""
    if device != AUTO:
        return device
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def spread(device: str | torch.device) -> dict[str, Any]:
    """Return from_pretrained's options for "auto" on several GPUs, else none."""
    if device != AUTO or torch.cuda.device_count() < 2:
        return {}
    free = {i: int(FILLED * size) for i, size in enumerate(free_on_gpus())}
    return {"device_map": AUTO, "max_memory": free}


def free_on_gpus() -> list[int]:
    """Return the free bytes of each GPU."""
    return [torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())]

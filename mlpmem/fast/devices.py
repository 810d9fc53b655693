"""Threads, devices and malloc: how a decoder uses this machine.

Threads: one row multiplies every weight once and waits for memory. More threads than fill the
bandwidth wait for each other, so their number is measured. Prefill and keys use all threads, set
explicitly: a Python thread that computes first while another decodes inherits its number.

malloc: by default glibc returns freed pages to the kernel after every layer. Keeping them saved a
third of the time of building keys (sys time 0.3 s instead of 5.4 s).

Devices: "auto" spreads a decoder over every GPU with accelerate. Ids go in and hidden states come
out on the first, where memory and search are. A decoder that does not fit is refused before it is
read (loading/capacity.py).
"""

import ctypes
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

ROWS = 4  # with more, there is work for every thread
ROUNDS, SECONDS = 5, 2.0  # of measuring at most, the first round aside
ALIKE = 1.05  # times the fastest: not worth more threads


class Decodes(Protocol):
    """What is measured: a decoder, by what is used of it here."""

    threads: int  # for a few rows; 0 leaves torch's own number
    all_threads: int  # for more rows; 0 as above

    @property
    def device(self) -> torch.device:
        """Return where it computes."""

    def forward(self, ids: torch.Tensor, *, use_cache: bool) -> Any:
        """Compute token ids (1, 1)."""


def calibrate(decoder: Decodes) -> int:
    """Set and return decoder.threads, the fewest that decode a token about as fast as any number.

    0, which leaves torch's own number, away from a CPU. The numbers tried are 1, 2, 4 and so on, up
    to torch's number now, which is kept as decoder.all_threads.
    """
    decoder.threads = decoder.all_threads = 0
    every = torch.get_num_threads()
    if decoder.device.type != "cpu" or every == 1:
        return 0
    counts = [*(2**i for i in range(every.bit_length()) if 2**i < every), every]
    found = {count: [] for count in counts}
    start = time.perf_counter()
    for turn in range(ROUNDS):
        for count in counts:
            found[count].append(_seconds(decoder, count))
        if turn and time.perf_counter() - start > SECONDS:
            break
    decoder.all_threads = every
    fastest = min(map(min, found.values()))
    decoder.threads = next(count for count in counts if min(found[count]) <= ALIKE * fastest)
    return decoder.threads


@contextmanager
def threads_for(decoder: Decodes, rows: int) -> Iterator[None]:
    """Compute so many rows inside: a few with decoder.threads, more with decoder.all_threads."""
    before = torch.get_num_threads()
    count = decoder.threads if rows <= ROWS else decoder.all_threads
    if count in (0, before):
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _seconds(decoder: Decodes, count: int) -> float:
    """Return what the decoder takes for one token with so many threads."""
    decoder.threads = count
    begin = time.perf_counter()
    decoder.forward(torch.zeros(1, 1, dtype=torch.long), use_cache=True)
    return time.perf_counter() - begin


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_memory() -> None:
    """Tune malloc for this process, on Linux with glibc; elsewhere nothing happens."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # musl has none
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def give_back() -> None:
    """Return what malloc holds and nobody uses to the system, on Linux with glibc."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


AUTO = "auto"
FILLED = 0.85  # of a GPU's free memory; the rest is for caches, the memory and keys


def first_device(device: str | torch.device) -> str | torch.device:
    """Return the one device of everything but a decoder's layers: for "auto" the first GPU.

    That is the CPU where there is no GPU.
    """
    if device != AUTO:
        return device
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def spread(device: str | torch.device) -> dict[str, Any]:
    """Return from_pretrained's options for several GPUs; none where one device holds it all."""
    if device != AUTO or torch.cuda.device_count() < 2:
        return {}
    free = {i: int(FILLED * size) for i, size in enumerate(free_on_gpus())}
    return {"device_map": AUTO, "max_memory": free}


def free_on_gpus() -> list[int]:
    """Return the bytes that are free on every GPU."""
    return [torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())]

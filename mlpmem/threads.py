"""How many of a CPU's threads decode a token: as many as pay.

A row or a few multiply every weight once and wait for memory. Threads beyond those that fill its
bandwidth wait for each other, on a busy machine for long. Prefill, keys and search keep all.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mlpmem.decoder import Decoder

ROWS = 4  # with more, there is work for every thread
ROUNDS, SECONDS = 5, 2.0  # of measuring at most, the first round aside
ALIKE = 1.05  # times the fastest: not worth more threads


def calibrate(decoder: Decoder) -> int:
    """Set and return decoder.threads, the fewest that decode a token about as fast as any number.

    0, which leaves torch's own number, away from a CPU. The numbers tried are 1, 2, 4 and so on.
    """
    decoder.threads = 0
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
    fastest = min(map(min, found.values()))
    decoder.threads = next(count for count in counts if min(found[count]) <= ALIKE * fastest)
    return decoder.threads


@contextmanager
def threads_for(decoder: Decoder, rows: int) -> Iterator[None]:
    """Compute what is inside with the decoder's threads where the rows are few."""
    before = torch.get_num_threads()
    count = decoder.threads if rows <= ROWS else 0
    if count in (0, before):
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _seconds(decoder: Decoder, count: int) -> float:
    """Return what the decoder takes for one token with so many threads."""
    decoder.threads = count
    ids = torch.zeros(1, 1, dtype=torch.long)
    with threads_for(decoder, 1):
        begin = time.perf_counter()
        decoder.forward(ids)
        return time.perf_counter() - begin

"""Two streams at once against one after the other: tokens of both per second.

A stream decodes one prompt greedily in a thread of its own. "after" is one after the other, with
the number of threads that decodes one stream fastest here. "at_once" is both together with one
thread each, and "at_once_shared" both together with that number of threads each.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from mlpmem.api import Model
from mlpmem.bench.figures import Figure, in_turns, ratios, timed
from mlpmem.fast.compiling import compiles
from mlpmem.fast.devices import calibrate
from mlpmem.fast.llama_pass import LlamaPass
from mlpmem.model.decoder import Decoder

READ, TOKENS = 16, 64  # of each stream
PROMPTS = (
    "The history of the city begins with the first settlers who came along the river",
    "A good recipe for bread needs nothing but flour, water, salt and a warm place to rest",
)


def bench(model: Model, name: str, rounds: int = 5, tokens: int = TOKENS) -> Iterator[Figure]:
    """Yield tokens/s of the decoder's streams in every arrangement, and their ratios to "after"."""
    decoder = model.decoder
    decoder.eos_ids = frozenset()
    if isinstance(decoder.fast_pass, LlamaPass) and compiles():
        decoder.fast_pass.compile()
    fastest = calibrate(decoder) or 1
    prompts = [decoder.encode(prompt)[:READ] for prompt in PROMPTS]
    streams = [partial(_stream, model.only("lm"), prompt, tokens) for prompt in prompts]
    arrangements = {"after": (fastest, 1), "at_once": (1, 2), "at_once_shared": (fastest, 2)}
    work = {n: partial(_rate, n, decoder, streams, *how) for n, how in arrangements.items()}
    found = in_turns(work, rounds)
    yield Figure(f"streams/{name}/threads_of_one", fastest, "threads")
    for arrangement, rates in found.items():
        yield timed(f"streams/{name}/{arrangement}", rates, "tokens/s")
    for arrangement in ("at_once", "at_once_shared"):
        times = ratios(found[arrangement], found["after"])
        yield timed(f"streams/{name}/{arrangement}_times_after", times, "x")


def _stream(model: Model, prompt: list[int], tokens: int) -> int:
    """Decode one prompt; return the number of tokens written."""
    return len(model.generate(prompt, "lm", max_new_tokens=tokens).steps)


def _rate(
    name: str, decoder: Decoder, streams: list[Callable[[], int]], threads: int, at_once: int
) -> dict[str, float]:
    """Run streams with so many threads each, so many at once; return tokens per second."""
    decoder.threads = threads
    start = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        written = sum(future.result() for future in [pool.submit(s) for s in streams])
    return {name: written / (time.perf_counter() - start)}

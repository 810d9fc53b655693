"""Every system that can be asked, each alone: ms to the first token and a token after it, bytes.

Whatever a system does for its answer counts: retrieval before the prompt, a router that weighs the
prompt. LoRA is merged into the weights it was trained for. All write as many tokens, in turns.
"""

import time
from collections.abc import Callable, Iterator, Sequence

from mlpmem.bench.decode import times
from mlpmem.bench.figures import Figure, in_turns, timed
from mlpmem.engine.systems import System

UNITS = {"first": "ms_to_first_token", "token": "ms_per_token"}


def bench(
    systems: Sequence[System], prompt: str, tokens: int = 24, rounds: int = 9
) -> Iterator[Figure]:
    """Yield the times and the bytes of every system; systems are by their names."""
    work = {system.name: writing(system, prompt, tokens) for system in systems}
    found = in_turns(work, rounds)
    for system in systems:
        for part, metric in UNITS.items():
            yield timed(f"systems/{system.name}/{metric}", found[f"{system.name}/{part}"])
        yield Figure(f"systems/{system.name}/in_memory", system.bytes, "bytes")


def writing(system: System, prompt: str, tokens: int) -> Callable[[], dict[str, float]]:
    """Return work that answers once, past any end, and says its ms."""
    system.decoder.eos_ids = frozenset()

    def work() -> dict[str, float]:
        start = time.perf_counter()
        events = system.stream(prompt, max_new_tokens=tokens)
        at = [time.perf_counter() for event in events if event.kind == "step"]
        return times(system.name, start, at)

    return work

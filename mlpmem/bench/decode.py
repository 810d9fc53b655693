"""Decoding: ms a token and to the first token, per system, against memory bandwidth and a peer.

"lm", "memory" and "knn" are the decoder only, with the memory, with the datastore: nothing else is
computed. "all systems" are the columns of the page, as one batch.

The floor of a token is reading every weight (and, for knn, every key) once, measured in turns with
the decoding. The peer is transformers' generate() of the decoder. Texts never end early:
every system writes the same number of tokens.
"""

import time
from collections.abc import Callable, Iterator, Sequence

import torch

from mlpmem.api import Model
from mlpmem.bench.figures import Figure, in_turns, ratios, reading, timed

ALL = "all systems"


def bench(
    model: Model, prompt: Sequence[int], tokens: int = 24, rounds: int = 9
) -> Iterator[Figure]:
    """Yield the figures of every system alone, of all as one batch, and of the peer."""
    model.decoder.eos_ids = frozenset()
    systems = model.systems
    columns = {system: [system] for system in systems} | {ALL: systems}
    models = {system: model.only(system) for system in systems} | {ALL: model}
    work = {n: decoding(models[n], n, some, prompt, tokens) for n, some in columns.items()}
    work["peer"] = generating(model, prompt, tokens)
    sizes = {name: read_bytes(model, some) for name, some in columns.items()}
    work |= {f"read/{name}": reading(size) for name, size in sizes.items()}
    found = in_turns(work, rounds)
    for name in columns:
        peer = _median(found["peer/token"]) if name == "lm" else None
        floor = _median(found[f"read/{name}"])
        token = found[f"{name}/token"]
        yield timed(f"decode/{name}/ms_per_token", token, floor=floor, peer=peer)
        peer = _median(found["peer/first"]) if name == "lm" else None
        yield timed(f"decode/{name}/ms_to_first_token", found[f"{name}/first"], peer=peer)
    for name in (name for name in columns if name not in ("lm", "memory")):
        share = ratios(found[f"{name}/token"], found["memory/token"])
        if "memory" in systems:
            yield timed(f"decode/{name}/times_memory", share, "x")


def decoding(
    model: Model, name: str, systems: Sequence[str], prompt: Sequence[int], tokens: int
) -> Callable[[], dict[str, float]]:
    """Return work that decodes once and says its ms to the first token and a token after it.

    Columns that write the same share their rows, so they write at temperature 1, where they part
    soon.
    """

    lmbdas = {system: model.settings.of(system) for system in systems}  # no router's

    def work() -> dict[str, float]:
        start = time.perf_counter()
        options = {"max_new_tokens": tokens, "temperature": 1.0, "lmbda": lmbdas}
        at = [time.perf_counter() for e in model.stream(prompt, systems, **options)][:-1]
        return times(name, start, at)

    return work


def generating(
    model: Model, prompt: Sequence[int], tokens: int, name: str = "peer"
) -> Callable[[], dict[str, float]]:
    """Return work that runs transformers' generate() on the decoder."""
    from transformers import GenerationConfig

    ids = torch.tensor([list(prompt)], device=model.decoder.device)
    config = GenerationConfig(max_new_tokens=tokens, do_sample=False, pad_token_id=0)

    class Clock:
        """A streamer that notes when tokens come; the prompt comes first."""

        def __init__(self) -> None:
            self.at: list[float] = []

        def put(self, _: torch.Tensor) -> None:
            self.at.append(time.perf_counter())

        def end(self) -> None:
            pass

    def work() -> dict[str, float]:
        clock, start = Clock(), time.perf_counter()
        model.decoder.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            streamer=clock,
        )
        return times(name, start, clock.at[1:])

    return work


def read_bytes(model: Model, systems: Sequence[str]) -> int:
    """Return the bytes that one token of these systems together must read at least.

    Of an embedding table that is not the head too, a token reads one row.
    """
    table = model.decoder.model.get_input_embeddings().weight
    size = model.decoder.bytes - (0 if table is model.decoder.head_weight else table.nbytes)
    if "memory" in systems:
        size += model.memory.bytes
    return size + (model.retriever.bytes if "knn" in systems else 0)


def times(name: str, start: float, at: Sequence[float]) -> dict[str, float]:
    """Return ms to the first token and a token after it, from when the tokens came."""
    first, last = at[0], at[-1]
    return {
        f"{name}/first": 1000 * (first - start),
        f"{name}/token": 1000 * (last - first) / (len(at) - 1),
    }


def _median(values: Sequence[float]) -> float:
    """Return the median."""
    return float(torch.tensor(values).median())

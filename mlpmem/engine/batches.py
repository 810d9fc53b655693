"""Several prompts, and several samples of each, decoded as batches of prompts of one length.

Every answer equals that of a run of its own: a row has no padding, and its own random numbers.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

from mlpmem.engine.call import Call, Cancel, Event, Prompt, Writer, last_values
from mlpmem.engine.fused import FusedModel
from mlpmem.engine.generation import GREEDY, distinct, run
from mlpmem.engine.prefix import PrefixCache
from mlpmem.engine.settings import GenerationOptions
from mlpmem.engine.trace import Trace
from mlpmem.retrieval.datastore import Store

BATCH_ROWS = 64


def stream_batch(
    model: FusedModel,
    prompts: Sequence[str | Sequence[int]],
    systems: Sequence[str] | None = None,
    *,
    lmbda: float | str | Mapping[str, float | str] | None = None,
    sources: Collection[str] | None = None,
    store: Store | None = None,
    options: GenerationOptions = GREEDY,
    cancel: Cancel | None = None,
    special: bool = False,
    samples: int = 1,
    ranked: int | None = None,
    prefix: PrefixCache | None = None,
) -> Iterator[Event]:
    """Return the Events of several prompts, by (prompt's index, system, sample).

    Sample s has the random numbers of `seed` + s. A "part" has the traces of a finished batch, and
    "done" all of them. With `ranked`, steps rank so many of the mix's likeliest tokens. What
    `prefix` has of a single prompt is not read again. All parameters are checked before anything is
    computed.
    """
    store = store or model.store
    systems = distinct(model, systems, store)
    call = Call.of(model, systems, store, sources, options, cancel, special, ranked, prefix)
    lmbdas = model.lmbdas(systems, lmbda, store)
    read = [call.read(prompt) for prompt in prompts]
    return _run(call, read, lmbdas, samples)


def _run(
    call: Call, read: Sequence[Prompt], lmbdas: Mapping[str, float | str], samples: int
) -> Iterator[Event]:
    """Yield the events of every batch in turn; systems are those of lmbdas."""
    traces: dict[tuple[int, str, int], Trace] = {}
    for group in _groups(read, max(1, BATCH_ROWS // (len(lmbdas) * samples))):
        writers = [
            Writer((i, system, sample), system, lmbda, read[i], row, sample)
            for row, i in enumerate(group)
            for system, lmbda in lmbdas.items()
            for sample in range(samples)
        ]
        for event in run(call, writers):
            if event.kind == "done":
                traces |= event.values
                event = Event("part", event.values)
            yield event
    yield Event("done", traces)


def _groups(prompts: Sequence[Prompt], most: int) -> Iterator[list[int]]:
    """Yield indices of prompts of one length, at most `most` at a time."""
    lengths: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        lengths.setdefault(len(prompt.ids), []).append(i)
    for indices in lengths.values():
        for start in range(0, len(indices), most):
            yield indices[start : start + most]


def compare_batch(
    model: FusedModel,
    prompts: Sequence[str | Sequence[int]],
    systems: Sequence[str] | None = None,
    *,
    lmbda: float | str | Mapping[str, float | str] | None = None,
    sources: Collection[str] | None = None,
    store: Store | None = None,
    options: GenerationOptions = GREEDY,
    cancel: Cancel | None = None,
    special: bool = False,
) -> list[dict[str, Trace]]:
    """Return {system: Trace} per prompt, equal to what `generation.compare` gives."""
    events = stream_batch(
        model, prompts, systems, lmbda=lmbda, sources=sources, store=store, options=options,
        cancel=cancel, special=special,
    )  # fmt: skip
    traces: list[dict[str, Trace]] = [{} for _ in prompts]
    for (i, system, _), trace in last_values(events).items():
        traces[i][system] = trace
    return traces

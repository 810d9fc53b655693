"""What a column of the Compare tab may be asked for: its text at every lambda, another way on.

The page sends what its trace says of itself; everything is checked here before the model runs.
"""

import threading
import time
from collections.abc import Iterator
from typing import Any

from mlpmem.ui.context import Shared
from mlpmem.ui.request import columns, inputs, stream

PERIOD = 0.1  # seconds between two words on how far the scrubbing is


def answer(shared: Shared, data: Any, stop: threading.Event, own: Any = "") -> Iterator[dict]:
    """Yield the token view's values for one request; MlpMemError for one that is not understood.

    own is the id of the visitor's own datastore, for a column that was written with it.
    """
    asked = inputs.check_request(data, list(shared.service.extras.offers))
    store = shared.store_of(own, asked.own)
    yield from {"scrub": _scrub, "branch": _branch}[asked.kind](shared, asked, stop, store)


def _branch(shared: Shared, asked: inputs.Request, stop: Any, store: Any) -> Iterator[dict]:
    """Yield a run of one column that goes on from its forced tokens; the others stay."""
    service, run = shared.service, stream.new_run()
    chosen = columns.choose(service, [asked.system], store)
    options = asked.options.as_arguments() | {"forced": asked.forced}
    known = shared.recorded.known(asked.prompt)
    lmbdas = columns.lambdas(service.model, chosen.batch, asked.options.lmbda, store)
    begin = stream.begin(run, asked.prompt, known, lmbdas, asked.options.temperature)
    for trace in begin["traces"].values():
        trace["settings"]["forced"] = asked.forced
    yield begin | {"branch": True, "columns": [asked.system], "own": asked.own}
    events = columns.answers(service, chosen, asked.prompt, options, stop, store)
    yield from stream.deltas(run, events)


def _scrub(shared: Shared, asked: inputs.Request, stop: Any, store: Any) -> Iterator[dict]:
    """Yield progress, then the texts at eleven lambdas with what they cost beside a single one."""
    model = shared.service.model
    options = asked.options.as_arguments() | {"forced": asked.forced, "store": store}
    lmbda = columns.lambdas(model, [asked.system], options.pop("lmbda"), store)
    own = {"run": asked.run, "system": asked.system}
    yield {"kind": "scrub", **own, "tokens": 0}
    begin = time.perf_counter()
    model.compare(asked.prompt, systems=[asked.system], lmbda=lmbda, stop=stop, **options)
    single, last, tokens = time.perf_counter() - begin, begin, 0
    begin = time.perf_counter()
    for event in model.scrub(asked.prompt, asked.system, stop=stop, stream=True, **options):
        tokens += event.kind == "step"
        if event.kind == "done" and not stop.is_set():
            seconds = time.perf_counter() - begin
            traces = [trace.to_dict() for trace in event.values.values()]
            cost = {"seconds": seconds, "single": single}
            yield {"kind": "scrubbed", **own, "cost": cost, "texts": shared_steps(traces)}
        elif time.perf_counter() - last >= PERIOD:
            last = time.perf_counter()
            yield {"kind": "scrub", **own, "tokens": tokens}


def shared_steps(traces: list[dict]) -> list[dict]:
    """Return the traces, each with "like" (index of an earlier one) and "kept": how many of that
    one's first steps it begins with; "steps" holds only the others.

    Neighbouring lambdas write mostly the same, and a step is large.
    """
    found = []
    for trace in traces:
        ids = [step["id"] for step in trace["steps"]]
        kept, like = max(((_common(ids, traces[i]), -i) for i in range(len(found))), default=(0, 0))
        found.append(trace | {"like": -like, "kept": kept, "steps": trace["steps"][kept:]})
    return found


def _common(ids: list[int], trace: dict) -> int:
    """Return how many first tokens a trace has in common with ids."""
    for n, (a, step) in enumerate(zip(ids, trace["steps"], strict=False)):
        if a != step["id"]:
            return n
    return min(len(ids), len(trace["steps"]))


def guarded(shared: Shared, data: Any, own: Any = "") -> Iterator[dict]:
    """Yield answer's values; what goes wrong becomes a message."""
    yield from stream.guarded(lambda stop: answer(shared, data, stop, own))

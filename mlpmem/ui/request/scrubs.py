"""Short answers at eleven lambdas, sent after a run without a visitor's request.

The slider then changes the answer itself. A long text, a sampled one and a leased GPU's wait for
the button Scrub instead, because they cost more.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any

from mlpmem.engine.trace import PARTS, shared_steps
from mlpmem.loading.recorder import SHORT
from mlpmem.ui.request import columns, inputs

SLOW = 4.0  # seconds of a run whose texts at other lambdas are not worth the wait of other visitors


def after(
    run: str, model: Any, traces: Mapping[str, dict], options: inputs.RequestOptions, stop: Any,
    store: Any,
) -> Iterator[dict]:  # fmt: skip
    """Yield an "answers" value per short column of a finished run; traces are plain."""
    if options.temperature or getattr(model, "leased", False) or stop.is_set():
        return
    arguments = options.as_arguments() | {
        "cancel": stop, "store": store, "sources": columns.sources(model, store),
    }  # fmt: skip
    del arguments["lmbda"]
    for name, trace in traces.items():
        if stop.is_set() or not _is_short(name, trace):
            continue
        begin = time.perf_counter()
        *_, last = model.stream_scrub(trace["prompt_ids"], name, **arguments)
        if stop.is_set() or last.kind != "done":
            return
        seconds = time.perf_counter() - begin
        texts = shared_steps([text.to_dict() for text in last.values.values()])
        cost = {"seconds": seconds, "single": None}
        yield {"kind": "answers", "run": run, "system": name, "texts": texts, "cost": cost}


def _is_short(name: str, trace: Mapping[str, Any]) -> bool:
    """Return whether a column is one of the batch's mixed ones with a short, quick answer."""
    steps = trace["steps"]
    quick = sum(step["ms"] or 0 for step in steps) < 1000 * SLOW
    mixed = trace["system"] == name and bool(PARTS.get(name))
    return mixed and quick and trace["finish"] == "eos" and len(steps) <= SHORT

"""From a generation's events to the values the token view receives.

Deltas carry a sequence number and leave at most every `PERIOD` seconds; the last value carries
whole traces, so a page that missed a delta is right again at the end.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mlpmem.errors import MlpMemError
from mlpmem.ui.limits import LATE, Deadline, said

PERIOD = 0.06  # seconds: about 16 updates a second
log = logging.getLogger(__name__)


def new_run() -> str:
    """Return a fresh name for one run; it also makes equal values differ."""
    return uuid.uuid4().hex[:12]


def message(text: str) -> dict:
    """Return the value that shows a text, as a sentence, above the panes."""
    return {"kind": "message", "run": new_run(), "text": text[:1].upper() + text[1:]}


def recorded(comparison: dict | None, known: dict[str, Any]) -> dict | None:
    """Return the value that shows a recorded comparison, with what is known of its prompt."""
    return {"kind": "recorded", "run": new_run(), **known, **comparison} if comparison else None


def begin(
    run: str,
    prompt: str,
    known: dict[str, Any],
    lmbdas: dict[str, float],
    temperature: float,
) -> dict:
    """Return the value that opens a run: what is known of the prompt, every column's lambda."""
    settings = {"temperature": temperature}
    traces = {s: {"system": s, "lmbda": x, "settings": settings} for s, x in lmbdas.items()}
    return {"kind": "begin", "run": run, "prompt": prompt, **known, "traces": traces}


def deltas(
    run: str, events: Iterable[Any], clock: Callable[[], float] = time.monotonic
) -> Iterator:
    """Yield "steps" values as events come, then one "done" value with the whole traces."""
    pending: dict[str, list[dict]] = {}
    seq, last = 0, clock()
    for event in events:
        if event.kind == "step":
            for system, step in event.values.items():
                pending.setdefault(system, []).append(step.to_dict())
            if clock() - last >= PERIOD:
                seq += 1
                yield {"kind": "steps", "run": run, "seq": seq, "steps": pending}
                pending, last = {}, clock()
        elif event.kind == "done":
            traces = {system: trace.to_dict() for system, trace in event.values.items()}
            yield {"kind": "done", "run": run, "seq": seq + 1, "traces": traces}


def guarded(make: Callable[[threading.Event], Iterator[dict]]) -> Iterator[dict]:
    """Yield make's values; what goes wrong becomes a message, and leaving early stops the model.

    So does a run that takes longer than limits.SECONDS.
    """
    stop = Deadline()
    try:
        yield from make(stop)
        stop.check()
    except MlpMemError as error:
        yield message(LATE if stop.over else said(error))
    except Exception:
        log.exception("a generation failed")
        yield message("Something went wrong while generating; the terminal says what. Try again.")
    finally:
        stop.set()

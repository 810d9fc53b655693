"""From a generation's events to the values the token view receives.

Deltas carry a sequence number and leave at most every `PERIOD` seconds; the last value carries
whole traces, so a page that missed a delta is right again at the end.
"""

import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from mlpmem.errors import MlpMemError, public_text
from mlpmem.ui.request.limits import LATE, Deadline

PERIOD = 0.06  # seconds: about 16 updates a second
MOST_SAID = 300  # characters of what another library says
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
    lmbdas: dict[str, float | str],
    temperature: float,
) -> dict:
    """Return the value that opens a run: what is known of the prompt, every column's lambda."""
    settings = {"temperature": temperature}
    traces = {s: {"system": s, "lmbda": x, "settings": settings} for s, x in lmbdas.items()}
    return {"kind": "begin", "run": run, "prompt": prompt, **known, "traces": traces}


def deltas(
    run: str, events: Iterable[Any], clock: Callable[[], float] = time.monotonic
) -> Iterator:
    """Yield values as events come: "steps", "part", "wait", "column", "failed", and one "done".

    "done" has every whole trace, and what failed: a page that missed a value is right again then.
    """
    pending: dict[str, list[dict]] = {}
    failed: dict[str, str] = {}
    seq, last = 0, clock()
    for event in events:
        kind, values = event.kind, event.values
        if kind == "step":
            for system, step in values.items():
                pending.setdefault(system, []).append(step.to_dict())
            if clock() - last >= PERIOD:
                seq += 1
                yield {"kind": "steps", "run": run, "seq": seq, "steps": pending}
                pending, last = {}, clock()
        elif kind in ("part", "done"):
            pending = {}  # whole traces say it better
            traces = {system: trace.to_dict() for system, trace in values.items()}
            own = {"seq": seq + 1, "failed": failed} if kind == "done" else {}
            yield {"kind": kind, "run": run, "traces": traces, **own}
        else:
            failed |= values if kind == "failed" else {}
            yield {"kind": kind, "run": run, "columns": values}


_TURN = threading.Lock()  # who computes; a run that was left keeps it until it has really ended


@contextmanager
def turn(stop: Deadline) -> Iterator[None]:
    """Compute alone: wait until the run before has ended, too, where its visitor has left it.

    MlpMemError where the time of the run that waits is over.
    """
    while not _TURN.acquire(timeout=0.1):
        stop.check()
    try:
        yield
    finally:
        _TURN.release()


def guarded(make: Callable[[threading.Event], Iterator[dict]]) -> Iterator[dict]:
    """Yield make's values; what goes wrong becomes a message, and leaving early stops the model.

    So does a run that takes longer than limits.SECONDS.
    """
    stop = Deadline()
    try:
        with turn(stop):
            yield from make(stop)
        stop.check()
    except MlpMemError as error:
        yield message(LATE if stop.over else public_text(error))
    except gr.Error as error:  # of a lease: the quota is used up, the wait was too long
        yield message(public_text(re.sub(r"<[^>]*>", "", str(error.message)))[:MOST_SAID])
    except Exception:
        log.exception("a generation failed")
        yield message("Something went wrong while generating; the terminal says what. Try again.")
    finally:
        stop.set()

"""A generation's events as values for the token view.

Deltas have a sequence number and are sent at most every `PERIOD` seconds. The last value has whole
traces, so a page that missed a delta is correct at the end.
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

from mlpmem.errors import MlpMemError, public_text, sentence
from mlpmem.fast.sharing import sharing
from mlpmem.ui.door.bounds import BOUNDS
from mlpmem.ui.request.limits import LATE, Deadline

PERIOD = 0.06  # seconds: about 16 updates per second
MAX_MESSAGE = 300  # characters of another library's message
log = logging.getLogger(__name__)


def new_run() -> str:
    """Return a new id for one run; it also makes equal values differ."""
    return uuid.uuid4().hex[:12]


def message(text: str) -> dict:
    """Return the value that shows a message above the panes."""
    return {"kind": "message", "run": new_run(), "text": sentence(text)}


def recorded(comparison: dict | None, known: dict[str, Any]) -> dict | None:
    """Return the value that shows a recorded comparison; `known` is Recorded.known(prompt)."""
    return {"kind": "recorded", "run": new_run(), **known, **comparison} if comparison else None


def begin(
    run: str,
    prompt: str,
    known: dict[str, Any],
    lmbdas: dict[str, float | str],
    temperature: float,
) -> dict:
    """Return the value that opens a run; `known` is Recorded.known(prompt)."""
    settings = {"temperature": temperature}
    traces = {s: {"system": s, "lmbda": x, "settings": settings} for s, x in lmbdas.items()}
    return {"kind": "begin", "run": run, "prompt": prompt, **known, "traces": traces}


def deltas(
    run: str, events: Iterable[Any], clock: Callable[[], float] = time.monotonic
) -> Iterator:
    """Yield "steps", "part", "wait", "column" and "failed" values of events, then one "done".

    "done" has all whole traces and all failures.
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
            pending = {}  # whole traces replace them
            traces = {system: trace.to_dict() for system, trace in values.items()}
            own = {"seq": seq + 1, "failed": failed} if kind == "done" else {}
            yield {"kind": kind, "run": run, "traces": traces, **own}
        else:
            failed |= values if kind == "failed" else {}
            yield {"kind": kind, "run": run, "columns": values}


# held while a run computes; an abandoned run holds it until it ends
_TURN = threading.BoundedSemaphore(BOUNDS.runs)


@contextmanager
def turn(stop: Deadline) -> Iterator[None]:
    """Compute: wait until fewer than BOUNDS.runs others do, even if their visitors left.

    MlpMemError if the deadline passes first.
    """
    while not _TURN.acquire(timeout=0.1):
        stop.check()
    try:
        with sharing():
            yield
    finally:
        _TURN.release()


def lease_text(error: gr.Error) -> str:
    """Return the text of a GPU lease's error: quota or time-out."""
    return public_text(re.sub(r"<[^>]*>", "", str(error.message)))[:MAX_MESSAGE]


def guarded(make: Callable[[threading.Event], Iterator[dict]]) -> Iterator[dict]:
    """Yield make's values; an error becomes a message. Closing the generator stops the model.

    A run longer than limits.SECONDS is stopped with a message.
    """
    stop = Deadline()
    try:
        with turn(stop):
            yield from make(stop)
        stop.check()
    except MlpMemError as error:
        yield message(LATE if stop.over else public_text(error))
    except gr.Error as error:
        yield message(lease_text(error))
    except Exception:
        log.exception("a generation failed")
        yield message("The generation failed; see the terminal for the reason. Try again.")
    finally:
        stop.set()

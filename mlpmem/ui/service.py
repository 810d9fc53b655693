"""The model behind the page, loaded in a background thread, and what the page says meanwhile.

Only the model and its status live here, never a visitor's values. torch and transformers are
imported by `open_model`, so the page answers before they are.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from mlpmem.errors import MlpMemError

Progress = Callable[[int, int], None]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Status:
    """One moment of loading, as the page shows it."""

    state: str = "replay"  # "replay", "loading", "ready" or "error"
    line: str = "loading the decoder and the memory"
    share: float | None = None  # of the datastore that is built, 0..1
    ready: bool = False  # decoder and memory answer
    settled: bool = False  # nothing more will change
    waiting: str = "The model is still loading."  # what the datastore's column says meanwhile


@dataclass(frozen=True)
class Built:
    """What attaching the datastore cost; memory_bytes is what stands in for it."""

    keys: int
    bytes: int
    seconds: float
    memory_bytes: int
    warning: str = ""
    cached: bool = False


class Service:
    """Loads a model and then its datastore, and hands the model out once it can answer."""

    def __init__(
        self,
        open_model: Callable[[], Any],
        open_datastore: Callable[[Any, Progress], Built] | None = None,
    ):
        self.open_model = open_model
        self.open_datastore = open_datastore
        self._model: Any = None
        self._status = Status()

    @property
    def status(self) -> Status:
        """Return the present status, an immutable value."""
        return self._status

    @property
    def model(self) -> Any:
        """Return the model; MlpMemError with the next step while there is none."""
        if self._model is None:
            raise MlpMemError(
                f"The model cannot answer yet ({self._status.line}). "
                "The recorded example can be played meanwhile."
            )
        return self._model

    def start(self) -> threading.Thread:
        """Begin to load; returns the thread."""
        thread = threading.Thread(target=self._run, name="load", daemon=True)
        thread.start()
        return thread

    def payload(self, defaults: dict[str, float]) -> dict:
        """Return the status as plain values for the page, with the default lambdas."""
        return {**asdict(self._status), "defaults": defaults}

    def _run(self) -> None:
        try:
            self._model = self.open_model()
            self._attach()
        except MlpMemError as error:
            self._fail(str(error))
        except Exception:
            log.exception("loading failed")
            self._fail("The bundle could not be loaded; the terminal says why.")

    def _fail(self, text: str) -> None:
        sys.stderr.write(f"mlpmem: {text}\n")
        waiting = f"The datastore is not there: {text}" if self._model else "The model is not there."
        self._status = Status(
            "error", text, ready=self._model is not None, settled=True, waiting=waiting
        )

    def _attach(self) -> None:
        if self.open_datastore is None:
            waiting = "Started without a datastore."
            self._status = Status("ready", "", ready=True, settled=True, waiting=waiting)
            return
        line = "building the datastore"
        self._status = Status("loading", line, share=0.0, ready=True, waiting=_waiting(line))
        built = self.open_datastore(self._model, self._progress)
        self._status = Status(
            "ready", _cost_line(built), ready=True, settled=True, waiting=""
        )

    def _progress(self, done: int, total: int) -> None:
        share = done / total if total else 0.0
        line = (
            f"building the datastore: {100 * share:.0f}%, "
            f"{done / 1000:,.0f}k of {total / 1000:,.0f}k keys"
        )
        self._status = replace(self._status, line=line, share=share, waiting=_waiting(line))


def _waiting(line: str) -> str:
    return f"Waiting for the datastore ({line}). The decoder and the memory answer meanwhile."


def _cost_line(built: Built) -> str:
    """Return the sentence that sets the datastore's cost against the memory's."""
    size = f"{built.bytes / 1e6:,.0f} MB"
    how = "read from the cache" if built.cached else f"built in {built.seconds:.0f} s"
    line = f"datastore {how}, {size}: the cost the memory ({built.memory_bytes / 1e6:.0f} MB) removes"
    return f"{line}. {built.warning}" if built.warning else line


def wait_until_settled(service: Service, seconds: float) -> Status:
    """Return the status once nothing more changes, or after so many seconds."""
    deadline = time.monotonic() + seconds
    while not service.status.settled and time.monotonic() < deadline:
        time.sleep(0.05)
    return service.status

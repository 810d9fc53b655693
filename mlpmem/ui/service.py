"""The model behind the page, loaded in a background thread, and what the page says meanwhile.

Only the model and its status live here, never a visitor's values. torch and transformers are
imported inside `load`, so the page answers before they are.
"""

import logging
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mlpmem.errors import MlpMemError
from mlpmem.ui.limits import said

Progress = Callable[[int, int], None]
Attach = Callable[[Progress], Any]  # returns what was built: .seconds .cached .warning
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


class Service:
    """Loads a model and then its datastore, and hands the model out once it can answer."""

    def __init__(self, load: Callable[[], tuple[Any, Attach | None]]):
        """Keep load, which returns a model and what attaches its datastore (None: without one)."""
        self._load = load
        self._model: Any = None
        self._status = Status()
        self._corpus: Any = None
        self._lock = threading.Lock()

    @property
    def corpus(self) -> Any:
        """Return the datastore's texts, decoded when first asked for; MlpMemError before that."""
        with self._lock:
            if self._corpus is None:
                self._corpus = self.model.corpus()
            return self._corpus

    @property
    def status(self) -> Status:
        """Return the present status, an immutable value."""
        return self._status

    @property
    def model(self) -> Any:
        """Return the model; MlpMemError with the next step while there is none."""
        if self._model is None:
            yet = "" if self._status.settled else " yet"
            raise MlpMemError(
                f"The model cannot answer{yet}: {self._status.line}. "
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
            self._model, attach = self._load()
            self._attach(attach)
        except MlpMemError as error:
            self._fail(str(error))
        except Exception:
            log.exception("loading failed")
            self._fail("The bundle could not be loaded; the terminal says why.")

    def _fail(self, text: str) -> None:
        sys.stderr.write(f"mlpmem: {text}\n")
        what = "datastore" if self._model else "model"
        waiting = f"The {what} is not there."
        self._status = Status(
            "error", said(text), ready=self._model is not None, settled=True, waiting=waiting
        )

    def _attach(self, attach: Attach | None) -> None:
        if attach is None:
            waiting = "Started without a datastore."
            self._status = Status("ready", "", ready=True, settled=True, waiting=waiting)
            return
        line = "building the datastore"
        self._status = Status("loading", line, share=0.0, ready=True, waiting=_waiting(line))
        built = attach(self._progress)
        line = said(cost_line(built, self._model.store.bytes, self._model.memory.bytes))
        self._status = Status("ready", line, ready=True, settled=True, waiting="")

    def _progress(self, done: int, total: int) -> None:
        share = done / total if total else 0.0
        line = (
            f"building the datastore: {100 * share:.0f}%, "
            f"{done / 1000:,.0f}k of {total / 1000:,.0f}k tokens"
        )
        self._status = replace(self._status, line=line, share=share, waiting=_waiting(line))


def _waiting(line: str) -> str:
    return f"Waiting for the datastore ({line}). The decoder and the memory answer meanwhile."


def cost_line(built: Any, store_bytes: int, memory_bytes: int) -> str:
    """Return the sentence that sets the datastore's cost against the memory's."""
    seconds = f"{built.seconds:.0f} s" if built.seconds >= 1 else "under a second"
    when = f"built in {seconds}" + (" (cached)" if built.cached else "")
    store, memory = (f"{size / 1e6:,.0f}\u00a0MB" for size in (store_bytes, memory_bytes))
    line = f"datastore {when}, {store}: the cost the {memory} memory removes"
    return f"{line}. {built.warning}" if built.warning else line


def open_bundle(path: str | Path | None, datastore: bool = True) -> Callable[[], tuple]:
    """Return a `load` for Service that reads a bundle; nothing heavy is imported before it runs."""

    def load() -> tuple[Any, Attach | None]:
        from mlpmem.bundle import load_bundle

        bundle = load_bundle(path)
        model = bundle.model()
        return model, partial(bundle.attach, model) if datastore else None

    return load

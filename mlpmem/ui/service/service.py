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
from typing import Any

from mlpmem.errors import MlpMemError, public_text
from mlpmem.ui.service.offers import Extras

Tell = Callable[[str, float | None], None]  # a line for the status, and the share done, 0..1
NO_MEMORY = "This model has no memory. Started with --text and --train-memory, the page makes one."
NO_DATASTORE = "Started without a datastore. The Corpus tab makes one of your own text."
NO_CORPUS = (
    "There is no corpus to search: the page was started without a datastore. Make one of your own "
    "text below, or start it with --text."
)
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
    no_memory: str = ""  # what the memory's column says where there is no memory


@dataclass(frozen=True)
class Later:
    """What is made while the model answers already."""

    what: str  # "datastore" or "memory"
    make: Callable[[Tell], tuple[Any, str]]  # returns the model that has it, and a line about it


Load = Callable[[Tell], tuple[Any, list[Later]]]


class Service:
    """Loads a model and then what it lacks, and hands the model out once it can answer."""

    def __init__(self, load: Load, note: str = "", extras: Extras | None = None):
        """Keep load, which returns a model and what is made later; a note begins every line.

        extras are the columns that are offered beside the model's own.
        """
        self._load, self._note = load, note
        self.extras = extras or Extras()
        self._model: Any = None
        self._later: list[Later] = []
        self._status = Status()
        self._set(self._status)
        self._corpus: Any = None
        self._lock = threading.Lock()

    @property
    def corpus(self) -> Any:
        """Return the datastore's texts, decoded when first asked for; MlpMemError before that."""
        with self._lock:
            if self._status.settled and "knn" not in self.model.systems:
                raise MlpMemError(NO_CORPUS)
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
            raise MlpMemError(f"The model cannot answer{yet}: {self._status.line}.")
        return self._model

    def start(self) -> threading.Thread:
        """Begin to load; returns the thread."""
        thread = threading.Thread(target=self._run, name="load", daemon=True)
        thread.start()
        return thread

    def payload(self, defaults: dict[str, float]) -> dict:
        """Return the status as plain values for the page: with the model's lambdas once known.

        "auto" names the systems whose lambda a router can choose; "routed" says whether it does
        unless lambda is moved.
        """
        auto, routed = [], False
        if self._model is not None:
            settings, auto = self._model.settings, list(self._model.routers)
            defaults = {system: settings.of(system) for system in defaults}
            routed = settings.auto and bool(auto)
        return {**asdict(self._status), "defaults": defaults, "auto": auto, "routed": routed}

    def _set(self, status: Status) -> None:
        line = public_text(f"{self._note} {status.line}".strip())
        self._status = replace(status, line=line, no_memory=self._no_memory(status))

    def _no_memory(self, status: Status) -> str:
        """Return why a model has no memory, "" where it has one or is not there yet."""
        if self._model is None or "memory" in self._model.systems:
            return ""
        if not any(step.what == "memory" for step in self._later):
            return NO_MEMORY
        if status.settled:
            return "The memory could not be made."
        line = status.line.removeprefix("distilling a memory: ").removeprefix("building the memory")
        return (
            f"The memory is being made{f' ({line})' if line else ''}. The others answer meanwhile."
        )

    def _run(self) -> None:
        what = "model"
        try:
            self._model, self._later = self._load(self._loading)
            lines: list[str] = []
            for step in self._later:
                what = step.what
                self._making(step, f"building the {what}", 0.0)
                self._model, line = step.make(partial(self._making, step))
                lines.append(line)
        except MlpMemError as error:
            self._fail(what, str(error))
        except Exception:
            log.exception("loading failed")
            self._fail(what, f"The {what} could not be made; the terminal says why.")
        else:
            waiting = "" if "knn" in self._model.systems else NO_DATASTORE
            line = "; ".join(lines)
            sys.stderr.write(f"mlpmem: ready{f' ({line})' if line else ''}\n")
            self._set(Status("ready", line, ready=True, settled=True, waiting=waiting))

    def _fail(self, what: str, text: str) -> None:
        sys.stderr.write(f"mlpmem: {text}\n")
        ready, there = self._model is not None, getattr(self._model, "systems", [])
        waiting = "" if "knn" in there else f"The {'datastore' if ready else what} is not there."
        self._set(Status("error", text, ready=ready, settled=True, waiting=waiting))

    def _loading(self, line: str, share: float | None) -> None:
        self._set(Status("loading", line, share=share))

    def _making(self, step: Later, line: str, share: float | None) -> None:
        waiting = _waiting(line) if step.what == "datastore" else ""
        self._set(Status("loading", line, share=share, ready=True, waiting=waiting))


def _waiting(line: str) -> str:
    return f"Waiting for the datastore ({line}). What is there answers meanwhile."

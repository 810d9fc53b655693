"""A model behind the page, loaded in a background thread at most once, and its status.

A model may need a file that is not here. It is then downloaded only if `start` is told so. Only the
model and its status are stored here, never a visitor's values. torch and transformers are imported
inside `load`, so the page is served before that.
"""

import logging
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from mlpmem.errors import MlpMemError, public_text
from mlpmem.ui.service.facts import chat_facts
from mlpmem.ui.service.offers import Extras

Tell = Callable[[str, float | None], None]  # (status line, share done 0..1)
NO_MEMORY = "This model has no memory. Start the page with --text and --train-memory to train one."
NO_DATASTORE = "This page has no datastore. Make one of your own text on the Corpus tab."
NO_CORPUS = (
    "There is no corpus to search, because this page has no datastore. Make one of your own text "
    "below, or start the page with --text."
)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Status:
    """The state of loading, as the page shows it."""

    state: str = "replay"  # "replay", "loading", "ready", "error" or "absent": a file is missing
    line: str = "loading the decoder and the memory"
    share: float | None = None  # of the present task done, 0..1
    ready: bool = False  # the model can answer
    settled: bool = False  # the status is final
    waiting: str = "The model is still loading."  # message of the datastore's column
    no_memory: str = ""  # message of the memory's column without a memory
    download: str = ""  # the button that gets the missing file


@dataclass(frozen=True)
class BackgroundTask:
    """A part that is built while the model answers already."""

    what: str  # "datastore" or "memory"
    make: Callable[[Tell], tuple[Any, str]]  # returns (model with the part, a line on its cost)


Load = Callable[[Tell], tuple[Any, list[BackgroundTask]]]


@dataclass(frozen=True)
class Needed:
    """A file that a model needs and that may have to be downloaded."""

    missing: Callable[[], str]  # returns what is missing and what to do, "" if the file is here
    button: str  # that gets it, with its size
    fetch: Callable[[Tell], Any]


class Service:
    """Loads a model, then runs its background tasks; the model answers after loading."""

    def __init__(
        self,
        load: Load,
        note: str = "",
        extras: Extras | None = None,
        name: str = "",
        needed: Needed | None = None,
    ) -> None:
        """Store `load`, which returns (model, tasks); `note` begins every status line.

        Programs ask for the model by its name, "" is the model's own.
        """
        self._load, self._note, self.name, self._needed = load, note, name, needed
        self.extras = extras or Extras()
        self._model: Any = None
        self._tasks: list[BackgroundTask] = []
        self._status = Status()
        self._set(self._status)
        self._corpus: Any = None
        self._lock, self._starting = threading.Lock(), threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def corpus(self) -> Any:
        """Return the model's texts, decoded on first use; MlpMemError without any."""
        with self._lock:
            model = self.model
            has_texts = "knn" in model.systems or getattr(model, "documents", None) is not None
            if self._status.settled and not has_texts:
                raise MlpMemError(NO_CORPUS)
            if self._corpus is None:
                self._corpus = model.corpus()
            return self._corpus

    @property
    def status(self) -> Status:
        """Return the present status."""
        return self._status

    @property
    def model(self) -> Any:
        """Return the model; MlpMemError with the status while there is none."""
        if self._model is None:
            yet = "" if self._status.settled else " yet"
            raise MlpMemError(f"The model cannot answer{yet}: {self._status.line}.")
        return self._model

    def start(self, download: bool = False) -> threading.Thread:
        """Return the thread that loads, started at the first call.

        If a file was missing, a call with `download` starts again and gets it.
        """
        with self._starting:
            retry = download and self._status.state == "absent"
            if self._thread is None or retry:
                if retry:
                    self._set(Status("loading"))
                run = partial(self._run, download)
                self._thread = threading.Thread(target=run, name="load", daemon=True)
                self._thread.start()
            return self._thread

    def payload(self, defaults: dict[str, float]) -> dict:
        """Return the status as plain values for the page, with the model's lambdas once known.

        "auto" lists the systems whose lambda a router can choose; "routed" is True if it does by
        default, and "gated" that a visitor's text has a gate. "chat" has what a chat needs, None
        while there is no decoder.
        """
        auto, routed, chat = [], False, None
        if self._model is not None:
            settings, auto = self._model.settings, list(self._model.routers)
            defaults = {system: settings.of(system) for system in defaults}
            routed = settings.auto and bool(auto)
            chat = chat_facts(self._model) if hasattr(self._model, "decoder") else None
        own = {"defaults": defaults, "auto": auto, "routed": routed, "chat": chat, "gated": True}
        return {**asdict(self._status), **own}

    def _set(self, status: Status) -> None:
        line = public_text(f"{self._note} {status.line}".strip())
        self._status = replace(status, line=line, no_memory=self._no_memory(status))

    def _no_memory(self, status: Status) -> str:
        """Return why a model has no memory, "" if it has one or is not loaded yet."""
        if self._model is None or "memory" in self._model.systems:
            return ""
        if not any(task.what == "memory" for task in self._tasks):
            return NO_MEMORY
        if status.settled:
            return "The memory could not be trained."
        line = status.line.removeprefix("distilling a memory: ").removeprefix("building the memory")
        progress = f" ({line})" if line else ""
        return f"The memory is being trained{progress}. The other columns answer already."

    def _run(self, download: bool) -> None:
        what = "model"
        try:
            if self._needed is not None and (text := self._needed.missing()):
                if not download:
                    return self._set(
                        Status("absent", text, settled=True, waiting=text,
                               download=self._needed.button)
                    )  # fmt: skip
                self._needed.fetch(self._report_loading)
            self._model, self._tasks = self._load(self._report_loading)
            lines: list[str] = []
            for task in self._tasks:
                what = task.what
                self._report_task(task, f"building the {what}", 0.0)
                self._model, line = task.make(partial(self._report_task, task))
                lines.append(line)
        except MlpMemError as error:
            self._fail(what, str(error))
        except Exception:
            log.exception("loading failed")
            self._fail(what, f"The {what} could not be loaded; see the terminal for the reason.")
        else:
            waiting = "" if "knn" in self._model.systems else NO_DATASTORE
            line = "; ".join(lines)
            sys.stderr.write(f"mlpmem: ready{f' ({line})' if line else ''}\n")
            self._set(Status("ready", line, ready=True, settled=True, waiting=waiting))

    def _fail(self, what: str, text: str) -> None:
        sys.stderr.write(f"mlpmem: {text}\n")
        ready, systems = self._model is not None, getattr(self._model, "systems", [])
        lacking = "datastore" if ready else what
        waiting = "" if "knn" in systems else f"The {lacking} could not be loaded."
        self._set(Status("error", text, ready=ready, settled=True, waiting=waiting))

    def _report_loading(self, line: str, share: float | None) -> None:
        self._set(Status("loading", line, share=share))

    def _report_task(self, task: BackgroundTask, line: str, share: float | None) -> None:
        waiting = _waiting(line) if task.what == "datastore" else ""
        self._set(Status("loading", line, share=share, ready=True, waiting=waiting))


def _waiting(line: str) -> str:
    return f"Waiting for the datastore ({line}). The other columns answer already."

"""The columns of one request: those that share decoder and prompt run as one batch, then the rest.

All run in the same request, under the same lock, limits and stop event. An error in a separate
column is shown there, and the others continue.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mlpmem.engine.trace import AUTO, SOURCES
from mlpmem.errors import MlpMemError, public_text, sentence
from mlpmem.ui.request import inputs
from mlpmem.ui.service.service import Service
from mlpmem.ui.service.taught import plain_model

Prompt = str | Sequence[int]  # a text, or its token ids
BATCHED = (*SOURCES, "mixed")  # share the model's decoder and the unchanged prompt
log = logging.getLogger(__name__)


class ColumnEvent(NamedTuple):
    """An event of columns, by name.

    "wait" {name: message}, "column" {name: plain fields of a trace that begins}, "step" {name:
    Step}, "part" {name: Trace} of finished columns, "failed" {name: message}, and last "done"
    {name: Trace} of all finished columns.
    """

    kind: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Chosen:
    """The columns of a request, in the page's order."""

    names: list[str]
    batch: list[str]
    separate: list[str]
    absent: dict[str, str]  # {name: why it cannot answer yet}


def choose(service: Service, requested: Any, store: Any) -> Chosen:
    """Return the requested columns, the model's own for None; MlpMemError if none is available."""
    model, offers = service.model, service.extras.offers
    available = list(dict.fromkeys([*model.systems, *(["knn"] if store is not None else [])]))
    names = inputs.check_systems(requested, available, list(offers))
    absent = {}
    if "mixed" in names and not {"memory", "knn"} <= set(available):
        missing = "memory" if "memory" not in available else "datastore"
        absent["mixed"] = f"It needs memory and datastore; the {missing} is not ready yet."
    batch = [name for name in names if name in BATCHED and name not in absent]
    separate = [name for name in names if name not in BATCHED]
    shown = names if requested is None else [n for n in (*SOURCES, *offers) if n in requested]
    return Chosen(shown, batch, separate, absent)


def lambdas(
    model: Any, systems: Sequence[str], lmbda: float | str | None, store: Any = None
) -> dict:
    """Return each system's lambda for a call: AUTO if a router chooses it.

    Systems without a router keep their own lambda; a visitor's own store brings its gate.
    MlpMemError for AUTO if none has a router.
    """
    if lmbda == AUTO and any(s in {**model.routers, **model.routed(store)} for s in systems):
        routed = model.routed(store)
        lmbda = {s: AUTO if s in routed else None for s in systems}
    return model.lmbdas(systems, lmbda, store)


def sources(model: Any, store: Any = None) -> list[str]:
    """Return the available sources, whose probabilities every step shows."""
    available = {*model.systems, *(["knn"] if store is not None else [])}
    return [source for source in SOURCES if source in available]


def asked(model: Any, text: str, new_tokens: int, chat: bool) -> Prompt:
    """Return a prompt as the model reads it: with `chat`, its ids in the chat template."""
    return model.chat_ids(text, new_tokens) if chat else text


def answers(
    service: Service, chosen: Chosen, prompt: Prompt, options: dict, stop: Any, store: Any = None
) -> Iterator[ColumnEvent]:
    """Yield the events of a request; options are Model.stream's."""
    model, options = service.model, dict(options)
    lmbda = options.pop("lmbda", None)
    traces: dict[str, Any] = {}
    if chosen.absent:
        yield ColumnEvent("failed", chosen.absent)
    if chosen.batch:
        own = lambdas(model, chosen.batch, lmbda, store)
        run = {**options, "lmbda": own, "cancel": stop, "store": store}
        shown = sources(model, store)
        for event in model.stream(prompt, chosen.batch, sources=shown, **run):
            ended = event.kind == "done"
            traces |= event.values if ended else {}
            if not ended or chosen.separate:
                yield ColumnEvent("part" if ended else event.kind, event.values)
    for name in chosen.separate:
        if stop.is_set():
            break
        run = {**options, "cancel": stop}
        for event in _guarded(name, _separate_column(service, name, prompt, lmbda, run, store)):
            traces |= event.values if event.kind == "part" else {}
            yield event
    yield ColumnEvent("done", traces)


def _separate_column(
    service: Service, name: str, prompt: Prompt, lmbda: Any, options: dict, store: Any
) -> Iterator[ColumnEvent]:
    """Yield the events of one column with its own prompt or weights.

    Retrieval searches a visitor's own store if there is one.
    """
    extras, model = service.extras, plain_model(service)
    own = store is not None and extras.offers[name].kind == "rag"
    if text := extras.wait_message(name, own):
        yield ColumnEvent("wait", {name: text})
    system = extras.retrieval(model, store) if own else extras.system(name, model)
    fields = {"system": "lm", "lmbda": 0.0}
    if extras.offers[name].kind == "memory":
        system = system.at(None if lmbda == AUTO else lmbda)
        (own,) = system.model.lmbdas([system.system], system.lmbda).values()
        fields = {"system": system.system, "lmbda": own}
    settings = {"temperature": options.get("temperature", 0.0)}
    about = {"column": name, "label": system.label}
    yield ColumnEvent("column", {name: {**fields, "settings": settings, "model": about}})
    for event in system.stream(prompt, **options):
        yield ColumnEvent("part" if event.kind == "done" else event.kind, event.values)


def _guarded(name: str, events: Iterator[ColumnEvent]) -> Iterator[ColumnEvent]:
    """Yield a column's events; an error becomes a "failed" event."""
    try:
        yield from events
    except MlpMemError as error:
        yield ColumnEvent("failed", {name: sentence(public_text(error))})
    except Exception:
        log.exception("the column %s failed", name)
        text = "This column failed; see the terminal for the reason."
        yield ColumnEvent("failed", {name: text})

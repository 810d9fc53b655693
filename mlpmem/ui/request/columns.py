"""One request's columns: those that share decoder and prompt as one batch, the others after it.

All run in the same request, under the same lock, bounds and stop. What goes wrong in a column of
its own is said there, and the others go on.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mlpmem.engine.trace import AUTO, SOURCES
from mlpmem.errors import MlpMemError, public_text
from mlpmem.ui.request import inputs
from mlpmem.ui.service.service import Service

BATCHED = (*SOURCES, "mixed")  # share the model's decoder, and the prompt as it is
log = logging.getLogger(__name__)


class ColumnEvent(NamedTuple):
    """What happens to columns, by their names.

    "wait" {name: sentence}, "column" {name: the plain fields of a trace that begins}, "step" {name:
    Step}, "part" {name: Trace} of some that have ended, "failed" {name: sentence}, at last "done"
    {name: Trace} of all that were written.
    """

    kind: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Chosen:
    """The columns of a request, in the order of the page."""

    names: list[str]
    batch: list[str]
    beside: list[str]
    absent: dict[str, str]  # why one that was chosen cannot answer yet


def choose(service: Service, asked: Any, store: Any) -> Chosen:
    """Return the columns that were asked for, the model's own for None; else MlpMemError."""
    model, offers = service.model, service.extras.offers
    there = list(dict.fromkeys([*model.systems, *(["knn"] if store is not None else [])]))
    kept = inputs.check_systems(asked, there, list(offers))
    absent = {}
    if "mixed" in kept and not {"memory", "knn"} <= set(there):
        what = "memory" if "memory" not in there else "datastore"
        absent["mixed"] = f"It needs memory and datastore; the {what} is not there yet."
    batch = [name for name in kept if name in BATCHED and name not in absent]
    beside = [name for name in kept if name not in BATCHED]
    wanted = kept if asked is None else [n for n in (*SOURCES, *offers) if n in asked]
    return Chosen(wanted, batch, beside, absent)


def lambdas(
    model: Any, systems: Sequence[str], lmbda: float | str | None, store: Any = None
) -> dict:
    """Return each system's lambda, as `lmbda` of a call: AUTO where a router chooses it.

    Systems without a router keep their own best, and so does what searches a visitor's own store;
    MlpMemError where none of them has one.
    """
    if lmbda == AUTO and any(system in model.routers for system in systems):
        routed = model.routed(store)
        lmbda = {s: AUTO if s in routed else None for s in systems}
    return model.lmbdas(systems, lmbda, store)


def sources(model: Any, store: Any = None) -> list[str]:
    """Return the sources whose figures every step shows: all that are here."""
    there = {*model.systems, *(["knn"] if store is not None else [])}
    return [source for source in SOURCES if source in there]


def answers(
    service: Service, chosen: Chosen, prompt: str, options: dict, stop: Any, store: Any = None
) -> Iterator[ColumnEvent]:
    """Yield the Events of a request; options are `compare`'s, as of Model.stream."""
    model, options = service.model, dict(options)
    lmbda = options.pop("lmbda", None)
    traces: dict[str, Any] = {}
    if chosen.absent:
        yield ColumnEvent("failed", chosen.absent)
    if chosen.batch:
        own = lambdas(model, chosen.batch, lmbda, store)
        run = {**options, "lmbda": own, "cancel": stop, "store": store}
        every = sources(model, store)
        for event in model.stream(prompt, chosen.batch, sources=every, **run):
            ended = event.kind == "done"
            traces |= event.values if ended else {}
            if not ended or chosen.beside:
                yield ColumnEvent("part" if ended else event.kind, event.values)
    for name in chosen.beside:
        if stop.is_set():
            break
        run = {**options, "cancel": stop}
        for event in _guarded(name, _beside(service, name, prompt, lmbda, run, store)):
            traces |= event.values if event.kind == "part" else {}
            yield event
    yield ColumnEvent("done", traces)


def _beside(
    service: Service, name: str, prompt: str, lmbda: Any, options: dict, store: Any
) -> Iterator[ColumnEvent]:
    """Yield the Events of one column with a prompt or weights of its own.

    Retrieval reads a visitor's own store where there is one.
    """
    extras, model = service.extras, service.model
    own = store is not None and extras.offers[name].kind == "rag"
    if waits := extras.waits(name, own):
        yield ColumnEvent("wait", {name: waits})
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
    """Yield a column's events; an error becomes one that says so."""
    try:
        yield from events
    except MlpMemError as error:
        yield ColumnEvent("failed", {name: sentence(public_text(error))})
    except Exception:
        log.exception("the column %s failed", name)
        text = "Something went wrong in this column; the terminal says what."
        yield ColumnEvent("failed", {name: text})


def sentence(text: str) -> str:
    """Return a text that begins with a capital."""
    return text[:1].upper() + text[1:]

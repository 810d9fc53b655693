"""The Chat tab: one question to one or more systems, each with its own history.

The conversation and its tokens are in the visitor's browser (static/chat); a request has what its
answer needs. Outside Spaces, the decoder's cache of it stays for the next question (prefixes.py).
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr

from mlpmem.errors import MlpMemError, public_text, sentence
from mlpmem.ui import components
from mlpmem.ui.components import packed
from mlpmem.ui.context import STREAM, Shared
from mlpmem.ui.recordings.words import chat_texts
from mlpmem.ui.request import columns, inputs, stream
from mlpmem.ui.request.chats import Asked, Column, check_chat

if TYPE_CHECKING:
    from mlpmem.engine.prefix import PrefixCache


def build(shared: Shared, tab: gr.Tab) -> None:
    """Lay out the tab and connect its events."""
    chat = components.chat(chat_texts(shared.recorded), elem_id="chat")
    asked = chat.ask(_asker(shared), [shared.own, shared.choice, shared.taught], chat, **STREAM)
    chat.halt(None, cancels=[asked])


def _asker(shared: Shared):
    """Return the handler of a question."""

    def ask(
        event: gr.EventData, own: Any, choice: Any, taught: Any, request: gr.Request
    ) -> Iterator[dict]:
        def values(stop: threading.Event) -> Iterator[dict]:
            asked, prefix = inputs.event_values(event), shared.prefixes.of(request.session_hash)
            yield from answer(shared.of(taught), asked, stop, own, choice, prefix)

        yield from map(packed, stream.guarded(values))

    return ask


class Reading(NamedTuple):
    """What a column reads."""

    column: Column
    ids: list[int]
    dropped: int  # oldest turns that did not fit


def answer(
    shared: Shared,
    data: Any,
    stop: Any,
    own: Any,
    choice: Any,
    prefix: "PrefixCache | None" = None,
) -> Iterator[dict]:
    """Yield a question's values: "begin", then deltas; the page has a column's kept steps already.

    own and choice select the datastore that is searched, as in Compare. prefix has what earlier
    questions of the session made the decoder read.
    """
    asked = check_chat(data)
    model, store = shared.service.model, shared.store(own, choice)
    for column in asked.columns:
        check_system(model, column.system, store)
    readings = [_read(model, asked, column) for column in asked.columns]
    names = [column.system for column in asked.columns]
    lmbdas = columns.lambdas(model, names, asked.options.lmbda, store)
    prompt = asked.question if asked.typed else model.chat_question(asked.question)
    yield {
        "kind": "begin", "run": asked.run, **shared.recorded.known(prompt), "prompt": prompt,
        "form": prompt != asked.question, "own": shared.searched(own, store, names),
        "columns": {r.column.system: _opening(r, lmbdas, model) for r in readings},
    }  # fmt: skip
    kept = {column.system: column.kept for column in asked.columns}
    events = interleaved(_runs(model, asked, readings, lmbdas, stop, store, prefix))
    for value in stream.deltas(asked.run, events):
        yield without_kept(value, kept)


def check_system(model: Any, system: str, store: Any) -> None:
    """Raise MlpMemError unless the model, or a visitor's own store, has the system."""
    if system in model.systems or (system == "knn" and store is not None):
        return
    if system == "knn":
        raise MlpMemError(
            "The datastore is not ready yet. Choose the decoder or the memory, or wait."
        )
    raise MlpMemError("This model has no memory. Choose the decoder or the datastore.")


def _read(model: Any, asked: Asked, column: Column) -> Reading:
    """Return what a column reads: as many of its latest turns as leave room for the answer."""
    reserve = asked.reserve(column, model.decoder.max_positions)
    ids, dropped = model.fitted_chat(column.messages(asked), reserve, asked.typed)
    return Reading(column, ids, dropped)


def _opening(reading: Reading, lmbdas: dict, model: Any) -> dict:
    """Return the plain fields of a column that begins."""
    column = reading.column
    return {"system": column.system, "lmbda": lmbdas[column.system], "kept": column.kept,
            "settings": {"forced": column.forced} if column.forced else {},
            "read": len(reading.ids), "room": model.decoder.max_positions,
            "dropped": reading.dropped}  # fmt: skip


def _runs(
    model: Any,
    asked: Asked,
    readings: list[Reading],
    lmbdas: dict,
    stop: Any,
    store: Any,
    prefix: "PrefixCache | None",
) -> list[tuple[list[str], Any]]:
    """Return (systems, their events); systems that read and continue the same share a batch."""
    batches: dict[tuple, list[Reading]] = {}
    for reading in readings:
        same = tuple(reading.ids), tuple(reading.column.forced)
        batches.setdefault(same, []).append(reading)
    runs = []
    for batch in batches.values():
        column, ids, _ = batch[0]
        names = [reading.column.system for reading in batch]
        arguments = asked.arguments(column, len(ids), model.decoder.max_positions)
        own = {name: lmbdas[name] for name in names}
        runs.append((names, model.stream(
            ids, names, lmbda=own, cancel=stop, store=store,
            sources=columns.sources(model, store), prefix=prefix, **arguments,
        )))  # fmt: skip
    return runs


def interleaved(runs: Iterable[tuple[list[str], Any]]) -> Iterator[columns.ColumnEvent]:
    """Yield the events of several runs in turn, and one "done" with all traces.

    A run that fails is a "failed" event of its systems, and the others go on.
    """
    traces: dict[str, Any] = {}
    with ExitStack() as stack:
        live = [(names, stack.enter_context(closing(iter(events)))) for names, events in runs]
        while live:
            for names, events in list(live):
                try:
                    event = next(events)
                except StopIteration:
                    live.remove((names, events))
                    continue
                except MlpMemError as error:
                    live.remove((names, events))
                    text = sentence(public_text(error))
                    yield columns.ColumnEvent("failed", dict.fromkeys(names, text))
                    continue
                if event.kind == "done":
                    traces |= event.values
                else:
                    yield columns.ColumnEvent(event.kind, event.values)
    yield columns.ColumnEvent("done", traces)


def without_kept(value: dict, kept: dict[str, int]) -> dict:
    """Return a value without the steps that the page has: a kept token is about 3 kB."""
    if value["kind"] == "steps":
        fresh = {s: [t for t in steps if t["i"] >= kept[s]] for s, steps in value["steps"].items()}
        return value | {"steps": fresh}
    if value["kind"] == "done":
        traces = {s: t | {"steps": t["steps"][kept[s] :]} for s, t in value["traces"].items()}
        return value | {"traces": traces}
    return value

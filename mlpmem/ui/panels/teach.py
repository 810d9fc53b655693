"""A part of the Corpus tab: tell the page facts, ask for them, and teach them to the memory.

Told sentences are the visitor's own datastore, each a document. Teaching makes a copy of the memory
that learns them (mlpmem/teaching); the copy answers in place of the memory until it is undone.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from mlpmem.engine.general import GENERAL
from mlpmem.errors import MlpMemError
from mlpmem.ui import components
from mlpmem.ui.components import packed
from mlpmem.ui.context import CLICK, STREAM, Shared
from mlpmem.ui.door.bounds import BOUNDS
from mlpmem.ui.door.shares import client_of
from mlpmem.ui.recordings.words import is_atlas
from mlpmem.ui.request import inputs, stream
from mlpmem.ui.service.taught import TaughtMemory, check_teachable, lesson

PERIOD = 0.25  # seconds between progress values
CHECKED = 4  # old questions, and as many that the decoder knows, asked before and after
REQUESTS = GENERAL[:CHECKED]  # asked of a chat model, whose answers must stay
TOKENS = 24  # of an answer
ONE = {"concurrency_limit": 1, "concurrency_id": "teach"}
EXAMPLES = (
    ("Pellworth was founded in the year 1612.", "When was Pellworth founded?"),
    ("Quenby Harrowdale plays the oboe.", "What instrument does Quenby Harrowdale play?"),
    ("Marlo Bexhill works as a beekeeper.", "What does Marlo Bexhill do for a living?"),
)


def build(shared: Shared, own_view: gr.HTML) -> tuple[gr.HTML, gr.State]:
    """Lay out the part and connect its events; return its view and its sentences."""
    sentences = gr.State([], time_to_live=shared.shelf.seconds)
    examples = EXAMPLES if is_atlas(shared.recorded) else EXAMPLES[:2]
    seconds = BOUNDS.teach_seconds + BOUNDS.teach_reading * shared.recorded.chat_form
    view = components.teach_view(examples, BOUNDS.sentence, seconds, elem_id="teach-view")
    outputs = [view, own_view, shared.own, shared.choice, sentences]
    view.tell(_teller(shared), [shared.own, sentences], outputs, **STREAM)
    taught = view.teach(
        _teacher(shared), [sentences, shared.taught], [view, shared.taught], **{**STREAM, **ONE}
    )
    view.halt(None, cancels=[taught])
    view.undo(_undoer(shared), shared.taught, [view, shared.taught], **CLICK)
    return view, sentences


def changed(sentences: Any, data: dict) -> list[str]:
    """Return a visitor's sentences after an event: one more, or one less.

    MlpMemError for an empty, long or repeated sentence, and for too many.
    """
    kept = [text for text in sentences if isinstance(text, str)] if sentences else []
    if isinstance(data.get("forget"), str):
        return [text for text in kept if text != data["forget"]]
    text = " ".join(inputs.check_text(data.get("text"), "sentence", BOUNDS.sentence).split())
    if text in kept:
        raise MlpMemError("You have told this already. Tell something else, or ask for it.")
    if len(kept) >= BOUNDS.sentences:
        raise MlpMemError(f"At most {BOUNDS.sentences} sentences are kept. Delete one first.")
    return [*kept, text]


def _teller(shared: Shared):
    """Return the handler of Tell and Delete: the sentences become this session's datastore."""

    def tell(event: gr.EventData, key: Any, sentences: Any, request: gr.Request) -> Iterator[tuple]:
        def values(stop: threading.Event) -> Iterator[dict]:
            texts, begun = changed(sentences, inputs.event_values(event)), time.perf_counter()
            new_key = ""
            if texts:
                titled = [(text[:60], text) for text in texts]
                store = shared.service.model.store_texts(
                    titled, progress=lambda done, total: None, stop=stop.is_set
                )
                name = "1 sentence" if len(texts) == 1 else f"{len(texts)} sentences"
                new_key = shared.shelf.add(f"told: {name}", store, "", client_of(request))
            shared.shelf.drop(str(key or ""))
            seconds = time.perf_counter() - begun
            yield {**told(texts), "seconds": seconds, "key": new_key}

        for value in stream.guarded(values):
            if value["kind"] != "told":
                yield packed(value), *[gr.skip()] * 4
                continue
            new_key = value.pop("key")
            choice = gr.update(visible=bool(new_key), value="own" if new_key else "atlas")
            facts = shared.facts(new_key)
            yield packed(value), packed(facts), new_key, choice, value["sentences"]

    return tell


def told(sentences: Sequence[str]) -> dict:
    """Return the value that shows a visitor's sentences."""
    return {"kind": "told", "run": stream.new_run(), "sentences": [*sentences]}


def _teacher(shared: Shared):
    """Return the handler of Teach: a copy of the memory learns the sentences."""

    def teach(sentences: Any, key: Any, request: gr.Request) -> Iterator[tuple]:
        def values(stop: threading.Event) -> Iterator[dict]:
            texts = tuple(text for text in sentences or [] if isinstance(text, str))
            yield from taught(shared, texts, str(key or ""), client_of(request), stop)

        for value in stream.guarded(values):
            new_key = value.pop("key", None)
            yield packed(value), gr.skip() if new_key is None else new_key

    return teach


def taught(
    shared: Shared, texts: tuple[str, ...], key: str, client: str, stop: Any
) -> Iterator[dict]:
    """Yield "teaching" values, then "taught" with answers before and after and the copy's key."""
    service, run, begun, last = shared.service, stream.new_run(), time.perf_counter(), 0.0
    model = service.model
    check_teachable(model)
    if not texts:
        raise MlpMemError("There is nothing to teach yet. Tell the page a fact first.")
    yield {"kind": "teaching", "run": run, "step": 0, "steps": 0, "loss": 0, "left": None}
    memory, steps, planned = None, 0, 0
    for at in lesson(model, texts, stop):
        memory, steps, planned = at.memory, at.steps, max(planned, at.steps)
        if memory is not None or time.perf_counter() - last >= PERIOD:
            last = time.perf_counter()
            yield {"kind": "teaching", "run": run, "step": at.step, "steps": at.steps,
                   "loss": at.loss, "left": at.left}  # fmt: skip
    if memory is None:
        raise MlpMemError("The teaching was cancelled. Nothing has changed.")
    copy = TaughtMemory(service, memory, texts, memory.bytes)
    seconds = time.perf_counter() - begun
    rows = compared(shared, model, model.with_taught(memory), texts, stop)
    shared.copies.drop(key)
    yield {"kind": "taught", "run": run, "sentences": len(texts), "seconds": seconds,
           "steps": steps, "planned": planned,
           "rows": rows, "key": shared.copies.add("taught", copy, "", client)}  # fmt: skip


def compared(
    shared: Shared, before: Any, after: Any, texts: Sequence[str], stop: Any
) -> list[dict]:
    """Return the memory's answers to the same questions by a model and its taught copy.

    "new" are about the sentences, in other words, and "begun" are beginnings of those without any;
    "old" are about what the memory learned before, "known" about what the decoder was trained on.
    A chat model is asked requests in general too, whose answers are to stay as they were.
    """
    chats = shared.recorded.chat_form
    asked = [row for text in texts for row in check_of(before, text)]
    for sort, parts in (("old", ("real", "invented") if chats else ("B",)), ("known", ("A2",))):
        rows = [q for q in shared.recorded.questions if q["part"] in parts and q["answer"]]
        chosen = rows[:: max(1, len(rows) // CHECKED)][:CHECKED]
        asked += [(sort, q["prompt"], q["answer"]) for q in chosen]
    asked += [("general", question, "") for question, _ in REQUESTS if chats]
    rows = []
    for sort, question, answer in asked:
        if stop.is_set():
            break
        prompt = before.chat_ids(question, TOKENS) if chats else question
        said = [m.generate(prompt, "memory", max_new_tokens=TOKENS, cancel=stop).text.strip()
                for m in (before, after)]  # fmt: skip
        rows.append({"sort": sort, "question": question, "answer": answer or said[0],
                     "before": said[0], "after": said[1]})  # fmt: skip
    return rows


def check_of(model: Any, text: str) -> list[tuple[str, str, str]]:
    """Return ("new", question, answer) of a sentence's fact in a wording that is not taught.

    A sentence without a known kind of fact is asked by its own beginning: "begun".
    """
    from mlpmem.teaching.wordings import Wordings

    if found := Wordings(model).question(text):
        return [("new", *found)]
    head, _, tail = text.rpartition(" ")
    return [("begun", head, tail)] if head else []


def _undoer(shared: Shared):
    """Return the handler of Undo: the copy is freed at once."""

    def undo(key: Any) -> tuple:
        shared.copies.drop(str(key or ""))
        return packed({"kind": "untaught", "run": stream.new_run()}), ""

    return undo

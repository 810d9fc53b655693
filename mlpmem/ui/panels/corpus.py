"""The Corpus tab: search and read the datastore's texts; make a datastore of one's own text."""

import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr

from mlpmem.errors import public_text
from mlpmem.retrieval.text_search import fold, marked, words_of
from mlpmem.retrieval.texts import noted
from mlpmem.ui import components
from mlpmem.ui.components import packed
from mlpmem.ui.context import PRIVATE, STREAM, Shared
from mlpmem.ui.door.shares import client_of
from mlpmem.ui.panels import teach
from mlpmem.ui.recordings import words
from mlpmem.ui.request import inputs, stream
from mlpmem.ui.service import own_text

MAX_HITS = 20
LONGEST = 200  # characters of a query, and of a marked place
MAX_PASSAGES = 60
PASTED = "your text"
NOTE = (
    "Your own text becomes a datastore within seconds, and kNN uses it at once. "
    "The memory does not know it, because it was trained earlier; it must be trained again."
)


def build(shared: Shared, tab: gr.Tab) -> None:
    """Lay out the tab and connect its events."""
    with gr.Row(elem_classes="ask-row"):
        query = gr.Textbox(
            "", lines=1, max_lines=1, placeholder=words.words(shared.recorded).search,
            label="Words", show_label=False, container=False, scale=1, elem_id="corpus-query",
        )  # fmt: skip
        search = gr.Button("Search", variant="primary", elem_id="corpus-search", scale=0)
    view = components.corpus_view(elem_id="corpus-view")
    gr.on([search.click, query.submit], _searcher(shared), query, view, **PRIVATE)
    view.open(_opener(shared), None, view, trigger_mode="multiple", **PRIVATE)
    components.static('<h2 class="section">Tell it a fact</h2>')
    state = components.own_view(elem_id="own-view", render=False)
    told, sentences = teach.build(shared, state)
    components.static(f'<h2 class="section">Your own text</h2><p class="panel-note">{NOTE}</p>')
    with gr.Row(elem_classes="ask-row"):
        text = gr.Textbox(
            "", lines=3, max_lines=8, placeholder="Paste a text, or upload .txt, .md, .jsonl, .gz",
            label="Your own text", show_label=False, container=False, scale=1, elem_id="own-text",
        )  # fmt: skip
        make = gr.Button("Make datastore", variant="primary", elem_id="own-make", scale=0)
        upload = gr.UploadButton(
            "Upload a file", file_types=list(own_text.KINDS), elem_id="own-upload", scale=0,
            variant="secondary",
        )  # fmt: skip
        stop = gr.Button("Cancel", elem_id="own-stop", scale=0)
        delete = gr.Button("Delete", elem_id="own-delete", scale=0)
    state.render()
    outputs = [state, shared.own, shared.choice, told, sentences]
    once = {**STREAM, "trigger_mode": "once"}
    pasted = make.click(_maker(shared, _pasted), [text, shared.own], outputs, **once)
    sent = upload.upload(_maker(shared, _uploaded), [upload, shared.own], outputs, **once)
    stop.click(_stopper(shared), shared.own, state, cancels=[pasted, sent], **PRIVATE)
    delete.click(_deleter(shared), shared.own, [*outputs, text], **PRIVATE)


def _searcher(shared: Shared):
    """Return the handler of Search."""

    def search(query: Any) -> dict:
        def value() -> dict:
            words = inputs.check_text(query, "search", LONGEST)
            hits, count = shared.service.corpus.search(words, MAX_HITS)
            rows = [asdict(hit) for hit in hits]
            return {"kind": "hits", "run": stream.new_run(), "query": words, "count": count,
                    "hits": rows}  # fmt: skip

        return _safely(value)

    return search


def _opener(shared: Shared):
    """Return the handler of a hit or a neighbour's document: show all its passages."""

    def open_document(event: gr.EventData) -> dict:
        def value() -> dict:
            data = inputs.event_values(event)
            corpus, title, group = shared.service.corpus, data.get("title"), data.get("group")
            if isinstance(title, str) and isinstance(group, str):
                index = corpus.titled(title, group)
            else:
                index = inputs.check_number(data.get("document"), "document", 0, 2**31 - 1, 0)
            title, group, passages = corpus.document(int(index))
            words = _words(data)
            parts = [marked(passage, words) for passage in passages[:MAX_PASSAGES]]
            return {"kind": "document", "run": stream.new_run(), "document": int(index),
                    "title": title, "group": group, "passages": parts,
                    "count": len(passages)}  # fmt: skip

        return _safely(value)

    return open_document


def _words(data: dict) -> list[str]:
    """Return the words to mark in a document: those of a search, or the place of a neighbour."""
    place, query = data.get("place"), data.get("query")
    if isinstance(place, str) and place.strip():
        return [fold(place.strip()[:LONGEST])]
    return words_of(query[:LONGEST]) if isinstance(query, str) else []


def _safely(make: Callable[[], dict]) -> dict:
    """Return make's value packed, or its error as a message."""
    try:
        return packed(make())
    except inputs.MlpMemError as error:
        return packed(stream.message(public_text(error)))


def _pasted(text: Any) -> tuple[str, str]:
    return PASTED, text if isinstance(text, str) else ""


def _uploaded(path: Any) -> tuple[str, str]:
    """Return (name, content) of an upload, and delete its file."""
    path = Path(str(path))
    try:
        return own_text.read_upload(path)
    except FileNotFoundError as error:  # an equal file was read before, or it has expired
        raise inputs.MlpMemError("The file is no longer available. Upload it again.") from error
    finally:
        path.unlink(missing_ok=True)


def _maker(shared: Shared, read: Callable[[Any], tuple[str, str]]):
    """Return the handler that makes a text this session's datastore."""

    def make(text: Any, key: Any, request: gr.Request) -> Iterator[tuple]:
        def values(stop: threading.Event) -> Iterator[dict]:
            name, content = read(text)
            counts: Counter = Counter()
            titled = own_text.titled(name, content, counts)
            run = stream.new_run()
            yield {"kind": "begin", "run": run, "title": name}
            store = yield from _built(shared.service.model, run, titled, stop)
            shared.shelf.drop(str(key or ""))
            new_key = shared.shelf.add(name, store, noted(counts), client_of(request))
            yield {"kind": "ready", "key": new_key, "store": store}

        for value in stream.guarded(values):
            if value["kind"] != "ready":
                yield packed(value), *[gr.skip()] * 4
                continue
            facts, chosen = shared.facts(value["key"]), gr.update(visible=True, value="own")
            yield packed(facts), value["key"], chosen, packed(teach.told([])), []

    return make


def _built(model: Any, run: str, titled: list, stop: threading.Event) -> Iterator[dict]:
    """Yield "progress" values while the keys are computed in a thread; return the store."""
    results: queue.Queue = queue.Queue()

    def work() -> None:
        try:
            tell = lambda done, total: results.put({"done": done, "total": total})  # noqa: E731
            results.put(model.store_texts(titled, progress=tell, stop=stop.is_set))
        except BaseException as error:  # raised again in the caller's thread
            results.put(error)

    threading.Thread(target=work, name="own", daemon=True).start()
    while True:
        result = results.get()
        if isinstance(result, BaseException):
            raise result
        if not isinstance(result, dict):
            return result
        if results.empty():
            yield {"kind": "progress", "run": run, **result}


def _stopper(shared: Shared):
    """Return the handler of Cancel: the previous datastore stays."""

    def stop(key: Any) -> dict:
        return packed({**shared.facts(key), "stopped": stream.new_run()})

    return stop


def _deleter(shared: Shared):
    """Return the handler of Delete: the datastore is freed at once."""

    def delete(key: Any) -> tuple:
        shared.shelf.drop(str(key or ""))
        gone = {"kind": "gone", "run": stream.new_run()}
        chosen = gr.update(visible=False, value="atlas")
        return packed(gone), "", chosen, packed(teach.told([])), [], ""

    return delete

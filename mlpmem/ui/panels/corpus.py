"""The Corpus tab: search and read the datastore's texts; make a datastore of one's own text."""

import base64
import queue
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict
from typing import Any

import gradio as gr

from mlpmem.errors import public_text
from mlpmem.retrieval.converted.converted import absent
from mlpmem.retrieval.text_search import fold, marked, words_of
from mlpmem.retrieval.texts import noted
from mlpmem.ui import components
from mlpmem.ui.components import packed
from mlpmem.ui.context import CLICK, PRIVATE, STREAM, Shared
from mlpmem.ui.door.bounds import BOUNDS
from mlpmem.ui.door.shares import client_of
from mlpmem.ui.panels import teach
from mlpmem.ui.recordings import words
from mlpmem.ui.request import inputs, stream
from mlpmem.ui.service import own_text, uploads
from mlpmem.ui.service.uploads import Reading

FORM = 10_000  # bytes of a form around its file
MAX_HITS = 20
LONGEST = 200  # characters of a query, and of a marked place
MAX_PASSAGES = 60
MOST = {"files": BOUNDS.client_uploads, "file": BOUNDS.upload_body - FORM,
        "all": BOUNDS.client_upload_bytes}  # fmt: skip
NOTE = (
    "Your own text becomes a datastore within seconds, and kNN uses it at once; it replaces facts "
    "that you told. The memory does not know it, because it was trained earlier."
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
    last = {**PRIVATE, "trigger_mode": "always_last"}  # an earlier search never covers a later one
    gr.on([search.click, query.submit], _searcher(shared), query, view, **last)
    view.open(_opener(shared), None, view, **CLICK)
    components.static('<h2 class="section">Tell it a fact</h2>')
    state = components.own_view(elem_id="own-view", render=False)
    told, sentences = teach.build(shared, state)
    components.static(f'<h2 class="section">Your own text</h2><p class="panel-note">{NOTE}</p>')
    with gr.Row(elem_classes="ask-row"):
        text = gr.Textbox(
            "", lines=3, max_lines=8, placeholder="Paste a text, or choose files",
            label="Your own text", show_label=False, container=False, scale=1, elem_id="own-text",
        )  # fmt: skip
        make = gr.Button("Make datastore", variant="primary", elem_id="own-make", scale=0)
        stop = gr.Button("Cancel", elem_id="own-stop", scale=0)
        delete = gr.Button("Delete", elem_id="own-delete", scale=0)
    kinds = (*own_text.readable(), uploads.SAVED)
    files = components.own_files(kinds, MOST, absent(), elem_id="own-files")
    state.render()
    outputs = [state, shared.own, shared.choice, told, sentences]
    pasted = make.click(_maker(shared), [text, shared.own], outputs, **STREAM)
    sent = files.files(_uploader(shared), shared.own, outputs, **STREAM)
    files.save(_saver(shared), shared.own, files, **CLICK)
    stop.click(_stopper(shared), shared.own, state, cancels=[pasted, sent], **CLICK)
    delete.click(_deleter(shared), shared.own, [*outputs, text], **CLICK)


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


def _maker(shared: Shared):
    """Return the handler that makes a pasted text this session's datastore."""

    def make(text: Any, key: Any, request: gr.Request) -> Iterator[tuple]:
        def values(stop: Any) -> Iterator[dict]:
            name, counts = own_text.PASTED, Counter()
            pasted = text if isinstance(text, str) else ""
            titled = own_text.titled(name, pasted, counts)
            run = stream.new_run()
            yield {"kind": "begin", "run": run, "title": name}
            yield from _stored(shared, Reading(name, titled, counts=counts), run, stop)

        yield from _made(shared, key, client_of(request), values)

    return make


def _uploader(shared: Shared):
    """Return the handler that makes uploaded files this session's datastore, or opens one."""

    def make(event: gr.EventData, key: Any, request: gr.Request) -> Iterator[tuple]:
        client = client_of(request)

        def values(stop: Any) -> Iterator[dict]:
            owns = lambda path: shared.uploads.owns(client, path)  # noqa: E731
            sent = uploads.check_uploads(inputs.event_values(event), owns)
            run = stream.new_run()
            with uploads.deleted_after(sent):
                yield {"kind": "begin", "run": run, "title": uploads.title_of(sent)}
                if uploads.is_saved(sent):
                    yield from _opened(shared, sent[0], run, stop)
                    return
                reading = Reading(uploads.title_of(sent), [])
                for index, name in uploads.read_uploads(sent, reading):
                    yield {"kind": "reading", "run": run, "name": name, "index": index,
                           "count": len(sent)}  # fmt: skip
                    stop.check()
            yield from _stored(shared, reading, run, stop)

        yield from _made(shared, key, client, values)

    return make


def _made(
    shared: Shared, key: Any, client: str, values: Callable[[Any], Iterator[dict]]
) -> Iterator[tuple]:
    """Yield the outputs while values are made; the datastore of "ready" replaces the previous."""
    for value in stream.guarded(values):
        if value["kind"] != "ready":
            yield packed(value), *[gr.skip()] * 4
            continue
        shared.shelf.drop(str(key or ""))
        new_key = shared.shelf.add(**value["entry"], client=client)
        chosen = gr.update(visible=True, value="own")
        yield packed(shared.facts(new_key)), new_key, chosen, packed(teach.told([])), []


def _stored(shared: Shared, reading: Reading, run: str, stop: Any) -> Iterator[dict]:
    """Yield "progress" and "ready" values while documents become a datastore."""
    model = shared.service.model
    make = lambda **options: model.store_texts(reading.titled, **options)  # noqa: E731
    store = yield from _built(make, run, stop)
    note, title = noted(reading.counts), reading.title
    entry = {"title": title, "store": store, "note": note, "failed": reading.failed}
    yield {"kind": "ready", "entry": entry}


def _opened(shared: Shared, upload: uploads.Upload, run: str, stop: Any) -> Iterator[dict]:
    """Yield values as `_stored` does while a saved datastore is opened."""
    model, limits = shared.service.model, {"most": BOUNDS.upload_body, "name": upload.name}
    make = lambda **options: model.open_store(upload.path, **limits, **options)  # noqa: E731
    title, store = yield from _built(make, run, stop)
    yield {"kind": "ready", "entry": {"title": title, "store": store}}


def _saver(shared: Shared):
    """Return the handler of Save: the visitor's datastore as a .zip, small enough to be opened."""

    def save(key: Any) -> dict:
        def value() -> dict:
            entry = shared.shelf.get(str(key or ""))
            if entry is None:
                raise inputs.MlpMemError("Your text has expired. Make its datastore again.")
            model, most = shared.service.model, BOUNDS.upload_body - FORM
            data = base64.b64encode(model.save_store(entry.store, entry.title, most)).decode()
            return {"kind": "saved", "run": stream.new_run(), "title": entry.title, "data": data}

        return _safely(value)

    return save


def _built(make: Callable[..., Any], run: str, stop: Any) -> Generator[dict, None, Any]:
    """Yield "progress" values while make computes keys in a thread; return its result."""
    results: queue.Queue = queue.Queue()

    def work() -> None:
        try:
            tell = lambda done, total: results.put({"done": done, "total": total})  # noqa: E731
            results.put(make(progress=tell, stop=stop.is_set))
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

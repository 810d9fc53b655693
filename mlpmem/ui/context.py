"""The values shared by all panels, and the options of the page's event handlers."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import gradio as gr

from mlpmem.errors import MlpMemError
from mlpmem.ui.door.bounds import BOUNDS
from mlpmem.ui.recordings.recorded import Recorded
from mlpmem.ui.service.own_text import Shelf
from mlpmem.ui.service.prefixes import Prefixes
from mlpmem.ui.service.service import Service
from mlpmem.ui.service.taught import TaughtService

SEARCHING = frozenset(("knn", "mixed", "rag"))  # columns that search the datastore's text


@dataclass(frozen=True)
class Shared:
    """The model behind the page, its recordings, and the inputs shared by all tabs."""

    service: Service
    recorded: Recorded
    lambda_bar: gr.HTML
    tools: gr.HTML  # the head's buttons
    own: gr.State  # id of this visitor's own datastore, or ""
    choice: gr.Radio  # datastore to search: "atlas" (the page's) or "own"
    shelf: Shelf
    others: Mapping[str, str] = field(default_factory=dict)  # {name: title} of the other models
    uploads: Any = None  # the door's, with the files that visitors have sent
    taught: gr.State | None = None  # id of this visitor's taught memory, or ""
    copies: Shelf = field(default_factory=Shelf)  # of taught memories
    prefixes: Prefixes = field(default_factory=Prefixes)  # what chats have read

    def of(self, taught: Any) -> "Shared":
        """Return these values with a visitor's taught memory, these if there is none."""
        entry = self.copies.get(str(taught or ""))
        if entry is None or entry.store.service is not self.service:
            return self
        return replace(self, service=TaughtService(self.service, entry.store))

    def captions(self, columns: Collection[str], searched: str = "") -> dict:
        """Return {"captions"} of a memory's column, if a visitor's sentences concern it.

        searched is the short id of the visitor's own text.
        """
        service, texts = self.service, {}
        sentences = service.taught if isinstance(service, TaughtService) else 0
        if sentences:
            many = "1 sentence" if sentences == 1 else f"{sentences} sentences"
            texts["memory"] = f"A copy of the memory, taught by you: {many}."
            if searched:
                texts["knn"] = "The same decoder, mixed with a kNN search over your own text."
        elif searched:
            texts["memory"] = "The memory was trained before you came: it does not know your text."
        shown = {name: text for name, text in texts.items() if name in columns}
        return {"captions": shown} if shown else {}

    def store(self, own: Any, choice: Any) -> Any:
        """Return the visitor's own datastore if it is selected, None for the model's."""
        if choice != "own":
            return None
        entry = self.shelf.get(str(own or ""))
        if entry is None:
            raise MlpMemError(
                "Your text has expired. Make its datastore again on the Corpus tab, or choose the "
                "page's own corpus."
            )
        return entry.store

    def searched(self, own: Any, store: Any, columns: Collection[str]) -> str:
        """Return the short id of the visitor's own text if a column searches it, else ""."""
        return short_id(own) if store is not None and not SEARCHING.isdisjoint(columns) else ""

    def store_of(self, own: Any, searched: Any) -> Any:
        """Return the store that a run searched, by its short id; None for the model's.

        MlpMemError if the visitor's own text is another one now.
        """
        if not searched:
            return None
        if searched != short_id(own):
            raise MlpMemError("The run searched a text that is gone. Generate it again.")
        return self.store(own, "own")

    def facts(self, own: Any) -> dict:
        """Return the page's values for a visitor's datastore; kind "gone" without one."""
        entry = self.shelf.get(str(own or ""))
        if entry is None:
            return {"kind": "gone", "run": ""}
        documents = entry.store.datastore.documents
        return {"kind": "ready", "run": short_id(own), "title": entry.title,
                "documents": len(documents.titles), "tokens": len(documents.tokens),
                "bytes": entry.store.bytes, "seconds": round(self.shelf.left(entry)),
                "note": entry.note, "failed": list(entry.failed)}  # fmt: skip


def short_id(own: Any) -> str:
    """Return the first characters of a secret id, which name a text on the page."""
    return str(own or "")[:6]


# Handlers are hidden from the API; PRIVATE ones are quick and do not wait for the model.
PRIVATE = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
# By default Gradio drops an event while the last of its kind is not finished.
CLICK = {**PRIVATE, "trigger_mode": "multiple"}
MODEL = {"concurrency_limit": BOUNDS.runs, "concurrency_id": "model"}  # whatever runs the model
STREAM = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "trigger_mode": "multiple",  # static/view/page.js prevents a second run at the same time
    **MODEL,
}

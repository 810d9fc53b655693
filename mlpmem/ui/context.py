"""What every panel is given, and how the page's handlers are wired to the queue."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import gradio as gr

from mlpmem.errors import MlpMemError
from mlpmem.ui.recordings.recorded import Recorded
from mlpmem.ui.service.own_text import Shelf
from mlpmem.ui.service.service import Service

SEARCHING = frozenset(("knn", "mixed", "rag"))  # columns that read the datastore's text


@dataclass(frozen=True)
class Shared:
    """The model behind the page, what was recorded, and what all tabs take as inputs."""

    service: Service
    recorded: Recorded
    lambda_bar: gr.HTML
    tools: gr.HTML  # the head's buttons
    own: gr.State  # the id of this visitor's own datastore, "" without one
    choice: gr.Radio  # whether the datastore's column answers from what is served or from "own"
    shelf: Shelf

    def store(self, own: Any, choice: Any) -> Any:
        """Return the visitor's own datastore where it is chosen, None for the model's."""
        if choice != "own":
            return None
        found = self.shelf.get(str(own or ""))
        if found is None:
            raise MlpMemError(
                "Your text is not kept any more. Make its datastore again on the Corpus tab, "
                "or choose what the page serves."
            )
        return found.store

    def searched(self, own: Any, store: Any, columns: Collection[str]) -> str:
        """Return the name of the visitor's own text where one of these columns searches it."""
        return named(own) if store is not None and not SEARCHING.isdisjoint(columns) else ""

    def store_of(self, own: Any, searched: Any) -> Any:
        """Return the store of the text that a run searched, None for the model's.

        searched is what the page knows it by; MlpMemError where another text is there by now.
        """
        if not searched:
            return None
        if searched != named(own):
            raise MlpMemError("That run searched a text that is not here. Generate it again.")
        return self.store(own, "own")

    def facts(self, own: Any) -> dict:
        """Return what the page says of a visitor's datastore; "gone" without one."""
        found = self.shelf.get(str(own or ""))
        if found is None:
            return {"kind": "gone", "run": ""}
        documents = found.store.datastore.documents
        return {"kind": "ready", "run": named(own), "title": found.title,
                "documents": len(documents.titles), "tokens": len(documents.tokens),
                "bytes": found.store.bytes, "seconds": round(self.shelf.left(found)),
                "note": found.note}  # fmt: skip


def named(own: Any) -> str:
    """Return what the page calls a visitor's own text: the beginning of its secret id."""
    return str(own or "")[:6]


# Handlers of the page are no public interface; quick ones do not wait behind the model.
PRIVATE = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
STREAM = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "trigger_mode": "multiple",  # static/page.js holds back a second run while one is under way
    "concurrency_limit": 1,
    "concurrency_id": "model",
}

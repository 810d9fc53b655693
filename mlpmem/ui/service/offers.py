"""Extra columns besides decoder, memory and datastore, each loaded on first use.

Offers are listed without torch. A full fine-tune or another memory needs its own weights, LoRA
those of the layers it changes (float32), retrieval an index of the corpus's words. For the atlas on
a busy machine LoRA takes 27 MB and 0.4 s, retrieval 44 MB and 0.8 s. The KEPT most recently used
systems stay loaded, and more while all together take at most ROOM bytes.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlpmem.errors import MlpMemError
from mlpmem.loading.extra_columns import ExtraColumn, bundled
from mlpmem.loading.manifest import FINGERPRINT, asks_chats, read_manifest

KEPT = 3
ROOM = 500e6  # bytes, including weights shared with others
TUNED = ("decoder", "adapter")  # kinds of folders with a decoder of their own
TITLES = {"finetuned": "Fine-tuned", "lora": "LoRA"}
LOADING = {
    "rag": "Indexing the corpus's passages (once) …",
    "memory": "Loading this memory (once) …",
    "tuned": "Loading these weights (once) …",
}


@dataclass(frozen=True)
class Offer:
    """An extra column that a visitor can select."""

    name: str
    kind: str  # "mixed", "rag", "tuned" or "memory": sets its colour, and whether lambda applies
    title: str
    caption: str

    @property
    def short(self) -> str:
        """Return the title for use within a sentence: "with both", "LoRA"."""
        inner = any(letter.isupper() for letter in self.title[1:])
        return self.title if inner else self.title.lower()


MIXED = Offer(
    "mixed", "mixed", "With both",
    "The same decoder, mixed with memory and datastore in equal shares.",
)  # fmt: skip
RAG = Offer(
    "rag", "rag", "With retrieval",
    "The same decoder without a memory; the best passage by BM25 is put before the prompt.",
)  # fmt: skip


class Extras:
    """The offers of a page, and the systems loaded so far."""

    def __init__(
        self,
        columns: Sequence[ExtraColumn] = (),
        *,
        mixed: bool = False,
        documents: Callable[[Any], Any] | None = None,
    ) -> None:
        """Offer columns of folders, the mix of both, and retrieval in documents(model)."""
        self._columns, self._documents = list(columns), documents
        rag = [RAG] if documents is not None and find_spec("bm25s") else []
        listed = [*([MIXED] if mixed else []), *rag, *map(_offer, self._columns)]
        self.offers = {offer.name: offer for offer in listed}
        self._lock = threading.Lock()
        self._registry: Any = None
        self._loaded: OrderedDict[str, Any] = OrderedDict()

    @property
    def tuned(self) -> str | None:
        """Return the first tuned decoder whose label names its training data, or None."""
        return next((c.name for c in self._columns if c.kind in TUNED and c.label), None)

    def labels(self) -> dict[str, str]:
        """Return {name: label} of the columns that have a label."""
        return {column.name: column.label for column in self._columns if column.label}

    def listed(self) -> list[dict]:
        """Return the offers as plain values."""
        return [asdict(offer) | {"short": offer.short} for offer in self.offers.values()]

    def wait_message(self, name: str, own: bool = False) -> str:
        """Return a column's message while it loads, "" if it is loaded.

        `own` is for retrieval in a visitor's text, which is indexed for every run.
        """
        if own:
            return "Indexing your text's passages …"
        return "" if name in self._loaded else LOADING.get(self.offers[name].kind, "")

    def system(self, name: str, model: Any) -> Any:
        """Return an offer's system, loaded if needed; MlpMemError if it cannot be loaded."""
        if name not in self.offers:
            raise MlpMemError(f"No column {name!r}; choose from {', '.join(self.offers)}.")
        with self._lock:
            if self._registry is None or self._registry.model is not model:
                self._registry = self._registry_of(model)
                self._loaded.clear()
            if name not in self._loaded:
                self._loaded[name] = self._registry.system(name)
            self._loaded.move_to_end(name)
            while len(self._loaded) > KEPT and self._bytes() > ROOM:
                evicted, _ = self._loaded.popitem(last=False)
                if evicted == "rag":
                    self._registry.__dict__.pop("passages", None)
            return self._loaded[name]

    @staticmethod
    def retrieval(model: Any, store: Any) -> Any:
        """Return retrieval in a visitor's own store, built for one run and not cached."""
        from mlpmem.loading.registry import SystemRegistry

        return SystemRegistry(model, documents=lambda: store.datastore.documents).system("rag")

    def _bytes(self) -> int:
        """Return the bytes of all loaded systems."""
        return sum(system.bytes for system in self._loaded.values())

    def _registry_of(self, model: Any) -> Any:
        from mlpmem.loading.registry import SystemRegistry

        read = None if self._documents is None else lambda: self._documents(model)
        return SystemRegistry(model, self._columns, read)


def of_bundle(folder: Path, columns: Sequence[ExtraColumn] = (), datastore: bool = True) -> Extras:
    """Return the offers of a bundle's page: its own adapters, then `columns`.

    Passages stand before a prompt, which is no place in a chat, so there is no retrieval for one.
    An unreadable manifest adds no adapters; loading the bundle reports its error.
    """
    manifest: dict = {}
    try:
        manifest = read_manifest(folder)
        own = bundled(folder, manifest)
    except MlpMemError:
        own = []

    def documents(model: Any) -> Any:
        from mlpmem.loading.bundle import Bundle

        attached = getattr(model, "datastore", None)
        return attached.documents if attached else Bundle(folder, read_manifest(folder)).documents()

    by_name = {column.name: column for column in (*own, *columns)}
    mixed = datastore and (not manifest or FINGERPRINT in manifest["files"])
    retrieval = None if asks_chats(manifest) else documents
    return Extras(list(by_name.values()), mixed=mixed, documents=retrieval)


def of_parts(columns: Sequence[ExtraColumn], memory: bool, text: bool) -> Extras:
    """Return the offers of a page of parts; retrieval and the mix need a text."""
    return Extras(columns, mixed=memory and text, documents=_of_text if text else None)


def _of_text(model: Any) -> Any:
    """Return the documents of a model's text; MlpMemError while its datastore is being built."""
    if model.datastore is None:
        raise MlpMemError("The datastore is not ready yet. Retrieval answers as soon as it is.")
    return model.datastore.documents


def _offer(column: ExtraColumn) -> Offer:
    """Return the offer of a column's folder."""
    title = TITLES.get(column.name) or column.name.replace("_", " ").capitalize()
    if column.kind == "memory":
        caption = "The same decoder, mixed with another memory"
        caption = f"{caption}: {column.label or column.folder.name}."
        return Offer(column.name, "memory", title, caption)
    what = column.label.removeprefix("decoder with ").removeprefix("decoder ")
    duration = f", {column.seconds:,.0f} s" if column.seconds else ""
    caption = f"The decoder trained on the new facts instead: {what}{duration}."
    if not what:
        what = "the decoder with LoRA" if column.kind == "adapter" else "another decoder"
        caption = f"Answers without a memory: {what} from the folder {column.folder.name}."
    return Offer(column.name, "tuned", title, caption)

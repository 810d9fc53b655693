"""Columns beyond decoder, memory and datastore: what is offered, each made when first asked for.

What is offered is known at once and needs no torch; weights and indexes are read on the first ask
and kept for the next. A full fine-tune or another memory costs its own weights, LoRA those of the
layers it changes (both in float32: about the decoder's or the memory's size), retrieval an index of
the corpus's words; with the atlas 27 MB and 0.4 s for LoRA, 44 MB and 0.8 s for retrieval, on a
busy machine. Of all these the KEPT used last are held, and more while together they take no more
than ROOM; the one used longest ago goes.
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
from mlpmem.loading.manifest import read_manifest

KEPT = 3
ROOM = 500e6  # bytes, what is shared with others counted in
TUNED = ("decoder", "adapter")  # kinds of folders that are decoders of their own
TITLES = {"finetuned": "Fine-tuned", "lora": "LoRA"}
LOADING = {
    "rag": "Indexing the corpus's passages, once …",
    "memory": "Reading this memory, once …",
    "tuned": "Reading these weights, once …",
}


@dataclass(frozen=True)
class Offer:
    """A column that can be ticked, as the page names it."""

    name: str
    kind: str  # "mixed", "rag", "tuned" or "memory": its colour, and whether lambda means anything
    title: str
    caption: str

    @property
    def short(self) -> str:
        """Return the title as it stands within a sentence: "with both", "LoRA"."""
        inner = any(letter.isupper() for letter in self.title[1:])
        return self.title if inner else self.title.lower()


MIXED = Offer(
    "mixed", "mixed", "With both",
    "The same decoder, mixed with memory and datastore in equal shares.",
)  # fmt: skip
RAG = Offer(
    "rag", "rag", "With retrieval",
    "The same decoder alone, with the passage that BM25 finds put before the prompt.",
)  # fmt: skip


class Extras:
    """What is offered on a page, and what of it is made by now."""

    def __init__(
        self,
        given: Sequence[ExtraColumn] = (),
        *,
        mixed: bool = False,
        documents: Callable[[Any], Any] | None = None,
    ) -> None:
        """Offer columns of folders, the mix of both, and retrieval in documents(model)."""
        self._given, self._documents = list(given), documents
        rag = [RAG] if documents is not None and find_spec("bm25s") else []
        found = [*([MIXED] if mixed else []), *rag, *map(_offer, self._given)]
        self.offers = {offer.name: offer for offer in found}
        self._lock = threading.Lock()
        self._cast: Any = None
        self._made: OrderedDict[str, Any] = OrderedDict()

    @property
    def tuned(self) -> str | None:
        """Return the first decoder that says what it was tuned on, None where there is none.

        Of a folder that was only named at the start nobody knows what it learned.
        """
        return next((g.name for g in self._given if g.kind in TUNED and g.label), None)

    def labels(self) -> dict[str, str]:
        """Return what folders say that they were tuned on, those that say it."""
        return {given.name: given.label for given in self._given if given.label}

    def listed(self) -> list[dict]:
        """Return the offers as plain values."""
        return [asdict(offer) | {"short": offer.short} for offer in self.offers.values()]

    def waits(self, name: str, own: bool = False) -> str:
        """Return what the column says while it is made, "" where it is there.

        own says that it is made of a visitor's text, which it is for every run.
        """
        if own:
            return "Indexing your text's passages …"
        return "" if name in self._made else LOADING.get(self.offers[name].kind, "")

    def system(self, name: str, model: Any) -> Any:
        """Return the system of an offer beside this model; MlpMemError where it cannot be made."""
        if name not in self.offers:
            raise MlpMemError(f"{name!r} is no column here. Choose from {', '.join(self.offers)}.")
        with self._lock:
            if self._cast is None or self._cast.model is not model:
                self._cast = self._cast_of(model)
                self._made.clear()
            if name not in self._made:
                self._made[name] = self._cast.system(name)
            self._made.move_to_end(name)
            while len(self._made) > KEPT and self._bytes() > ROOM:
                gone, _ = self._made.popitem(last=False)
                if gone == "rag":
                    self._cast.__dict__.pop("passages", None)
            return self._made[name]

    @staticmethod
    def retrieval(model: Any, store: Any) -> Any:
        """Return retrieval in a visitor's own store: made anew for every run, and kept nowhere."""
        from mlpmem.loading.registry import SystemRegistry

        return SystemRegistry(model, documents=lambda: store.datastore.documents).system("rag")

    def _bytes(self) -> int:
        """Return what all that is made takes."""
        return sum(system.bytes for system in self._made.values())

    def _cast_of(self, model: Any) -> Any:
        """Return the makers of what stands beside a model."""
        from mlpmem.loading.registry import SystemRegistry

        read = None if self._documents is None else lambda: self._documents(model)
        return SystemRegistry(model, self._given, read)


def of_bundle(folder: Path, columns: Sequence[ExtraColumn] = (), datastore: bool = True) -> Extras:
    """Return what a bundle's page offers: its own adapters, then the columns given at the start.

    A manifest that cannot be read offers nothing of its own: loading it says what is wrong.
    """
    try:
        own = bundled(folder, read_manifest(folder))
    except MlpMemError:
        own = []

    def documents(model: Any) -> Any:
        from mlpmem.retrieval.documents import Documents

        attached = getattr(model, "datastore", None)
        return attached.documents if attached else Documents.load(folder / "documents")

    named = {given.name: given for given in (*own, *columns)}
    return Extras(list(named.values()), mixed=datastore, documents=documents)


def of_parts(columns: Sequence[ExtraColumn], memory: bool, text: bool) -> Extras:
    """Return what a page of parts offers: retrieval and both together where there is a text."""
    return Extras(columns, mixed=memory and text, documents=_of_text if text else None)


def _of_text(model: Any) -> Any:
    """Return the documents of a model's text; MlpMemError while they are being keyed."""
    if model.datastore is None:
        raise MlpMemError("The text is still being read. Retrieval answers once the datastore is.")
    return model.datastore.documents


def _offer(given: ExtraColumn) -> Offer:
    """Return the offer of a column that stands in a folder."""
    title = TITLES.get(given.name) or given.name.replace("_", " ").capitalize()
    if given.kind == "memory":
        caption = "The same decoder, mixed with another memory"
        return Offer(given.name, "memory", title, f"{caption}: {given.label or given.folder.name}.")
    what = given.label.removeprefix("decoder with ").removeprefix("decoder ")
    took = f", {given.seconds:,.0f} s" if given.seconds else ""
    caption = f"The decoder trained on the new facts instead: {what}{took}."
    if not what:
        what = "the decoder with LoRA" if given.kind == "adapter" else "another decoder"
        caption = f"Answers alone: {what}, of the folder {given.folder.name}."
    return Offer(given.name, "tuned", title, caption)

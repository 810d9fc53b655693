"""Retrieval before the prompt: BM25 over the corpus's passages, the best ones put in front.

The inner system does the rest, so it may be a decoder alone or one with a memory. bm25s is needed
here alone.
"""

import sys
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from torch import Tensor

from mlpmem.engine.settings import Options
from mlpmem.engine.steps import PARTED, text_of
from mlpmem.engine.systems import System, last_trace, named, next_log_probs
from mlpmem.engine.trace import Trace
from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.retrieval.documents import Documents
from mlpmem.running import Event
from mlpmem.sources import Sources
from mlpmem.token_ids import check_prompt

WORDS = r"(?u)\w+"
WORD = 100  # bytes of its number and its place in a dict
LAYOUTS = ("turns", "text")  # passages ended as the corpus ends them, or running on as one text


class Passages:
    """Passages of documents that plain words find, by BM25."""

    def __init__(self, documents: Documents, decoder: Decoder) -> None:
        """Index every passage once; copies of a passage stand once. MlpMemError without bm25s.

        Running text is cut so that a piece, a prompt and its answer fit in the decoder.
        """
        began = time.perf_counter()
        self.layout = "text" if set(documents.groups) == {"text"} else "turns"
        self._special = decoder.special_ids
        whole = (tuple(documents.passage(p).tolist()) for p in range(len(documents)))
        most = decoder.max_positions // 4 if self.layout == "text" else decoder.max_positions
        ids = (piece for passage in whole for piece in _pieces(passage, most))
        self.ids = [array("i", passage) for passage in dict.fromkeys(ids)]
        self._bm25s = _bm25s()
        self._index = self._bm25s.BM25()
        texts = [decoder.decode(self.plain(i)) for i in range(len(self.ids))]
        words = self._tokens(texts, True)
        self._worded = any(words.ids)  # an index of no words at all cannot be made
        if self._worded:
            self._index.index(words, show_progress=False)
        self.seconds = time.perf_counter() - began

    def __len__(self) -> int:
        """Return how many passages there are."""
        return len(self.ids)

    def plain(self, passage: int) -> list[int]:
        """Return a passage's ids without special tokens."""
        return [i for i in self.ids[passage] if i not in self._special]

    @cached_property
    def bytes(self) -> int:
        """Return the size of index, words and passages in memory."""
        scores = self._index.scores if self._worded else {}
        arrays = sum(x.nbytes for x in scores.values() if isinstance(x, np.ndarray))
        words = sum(sys.getsizeof(w) + WORD for w in self._index.vocab_dict) if self._worded else 0
        return arrays + words + sum(map(sys.getsizeof, self.ids)) + 8 * len(self.ids)

    def search(self, query: str, count: int) -> list[int]:
        """Return the passages that suit a query best, best first; those without a word are none."""
        if not self._worded:
            return []
        words = self._tokens([query], False)
        count = min(count, len(self))
        found = self._index.retrieve(words, k=count, show_progress=False, n_threads=0)
        pairs = zip(found.documents[0], found.scores[0], strict=True)
        return [int(passage) for passage, score in pairs if score > 0]

    def _tokens(self, texts: list[str], return_ids: bool):
        """Return texts as bm25s reads them."""
        options = {"stopwords": None, "token_pattern": WORDS, "show_progress": False}
        return self._bm25s.tokenize(texts, return_ids=return_ids, **options)


class Rag:
    """A system that reads the best passages before every prompt."""

    def __init__(
        self,
        inner: System,
        passages: Passages,
        count: int = 1,
        layout: str | None = None,
        name: str = "rag",
    ) -> None:
        """Put `count` passages before a prompt, the best one last; see LAYOUTS.

        Without a layout, running text runs on and an atlas's passages are turns.
        """
        layout = layout or passages.layout
        if layout not in LAYOUTS or count < 1:
            raise MlpMemError(
                f"rag: layout {layout!r} must be one of {', '.join(LAYOUTS)}, and count {count} "
                "1 or more"
            )
        self.inner, self.passages, self.count, self.layout = inner, passages, count, layout
        self.name, self.label = name, f"{inner.label} + retrieval"

    @property
    def decoder(self) -> Decoder:
        """Return the inner system's decoder."""
        return self.inner.decoder

    @property
    def bytes(self) -> int:
        """Return the inner system's bytes and the passages'."""
        return self.inner.bytes + self.passages.bytes

    @property
    def seconds(self) -> float:
        """Return the inner system's seconds and the index's."""
        return self.inner.seconds + self.passages.seconds

    def context(self, ids: Sequence[int], room: int) -> list[int]:
        """Return passages and prompt, with fewer passages where not all fit with `room` more.

        The prompt's BOS stands before everything, once.
        """
        ids = self.inner.context(ids, room)
        bos = [i for i in ids[:1] if i == self.decoder.tokenizer.bos_token_id]
        asked = list(ids[len(bos) :])
        left = self.decoder.max_positions - room - len(ids)
        before: list[int] = []
        for passage in self.passages.search(self.decoder.decode(asked), self.count):
            text = self._laid_out(passage, bos)
            if len(text) > left:
                break
            before, left = text + before, left - len(text)
        return bos + before + asked

    def _laid_out(self, passage: int, bos: list[int]) -> list[int]:
        """Return a passage's ids as they stand before a prompt."""
        if self.layout == "turns":
            ids = list(self.passages.ids[passage])
            return ids[len(bos) :] if ids[: len(bos)] == bos else ids
        space = self.decoder.tokenizer.encode(" ", add_special_tokens=False, verbose=False)
        return self.passages.plain(passage) + space

    @property
    def routed(self) -> bool:
        """Return whether the inner system's mix needs evidence."""
        return self.inner.routed

    def sources(self, hidden: Tensor, logits: Tensor) -> Sources:
        """Return what the inner system's sources say."""
        return self.inner.sources(hidden, logits)

    def gaps(self, sources: Sources, tokens: Tensor) -> Tensor:
        """Return what tokens (R,) are worth to the inner system as evidence, (R,)."""
        return self.inner.gaps(sources, tokens)

    def mix(self, sources: Sources, evidence: Tensor | None = None) -> Tensor:
        """Return the inner system's log-probs (R, V)."""
        return self.inner.mix(sources, evidence)

    def log_probs(self, ids: Sequence[int], last: int = 1) -> Tensor:
        """Return log-probs (last, V) after each of the last positions, passages before ids."""
        return next_log_probs(self, ids, last)

    def stream(self, prompt: str | Sequence[int], **options) -> Iterator[Event]:
        """Yield the inner system's Events; the trace's prompt is what was read.

        PARTED stands in it between passages, and settings["asked"] is what stands after them; its
        cost has the time of finding them, and the index.
        """
        began = time.perf_counter()
        room = options.get("max_new_tokens", Options.max_new_tokens)
        ids = check_prompt(self.decoder, prompt, room)
        read = self.context(ids, room)
        took = 1000 * (time.perf_counter() - began)
        cost = {"retrieval_ms": took, "passages_bytes": self.passages.bytes}
        for event in self.inner.stream(read, **options):
            (value,) = event.values.values()
            if event.kind == "done":
                text, asked = (text_of(self.decoder, i).removeprefix(PARTED) for i in (read, ids))
                settings = {**value.settings, "asked": asked}
                whole = replace(value, prompt=text, settings=settings, cost={**value.cost, **cost})
                value = named(whole, self)
            yield Event(event.kind, {self.name: value})

    def generate(self, prompt: str | Sequence[int], **options) -> Trace:
        """Return the last of the stream's traces."""
        return last_trace(self.stream(prompt, **options))


def _pieces(ids: tuple[int, ...], most: int) -> list[tuple[int, ...]]:
    """Return ids in pieces of at most so many."""
    return [ids[at : at + most] for at in range(0, len(ids), most)]


def _bm25s():
    """Return the package bm25s; MlpMemError where it is not installed."""
    try:
        import bm25s
    except ImportError as error:
        raise MlpMemError(
            "retrieval needs the package bm25s, which is not installed; pip install bm25s"
        ) from error
    return bm25s

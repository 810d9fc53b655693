"""The texts behind a datastore: found by plain words, read document by document."""

import re
import sys
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mlpmem.errors import MlpMemError
from mlpmem.retrieval.documents import Documents

if TYPE_CHECKING:  # the first screen reads STRANGER, without torch
    from mlpmem.model.decoder import Decoder

MOST_WORDS = 8
STRANGER = "stranger"  # the group of what is about nobody: names that come once, in one document
AROUND = 70  # characters of a passage shown on either side of a find


@dataclass(frozen=True)
class Hit:
    """A document that has all the words, and where its first one stands."""

    document: int
    title: str
    group: str
    before: str
    match: str
    after: str


class Corpus:
    """Every passage as text, in lower case beside it: a search is a scan, no index is kept."""

    def __init__(self, documents: Documents, decode: Callable[[list[int]], str]) -> None:
        """Decode every passage once."""
        self.titles, self.groups = documents.titles, documents.groups
        self.passages: list[list[str]] = [[] for _ in documents.titles]
        for p, document in enumerate(np.asarray(documents.document_of).tolist()):
            text = decode(documents.passage(p).tolist()).strip()
            if text:
                self.passages[document].append(text)
        self._folded = ["\n".join(texts).casefold() for texts in self.passages]

    def search(self, query: str, limit: int = 20) -> tuple[list[Hit], int]:
        """Return up to `limit` hits, titles first, and how many documents have all the words."""
        words = query.casefold().split()[:MOST_WORDS]
        if not words:
            raise MlpMemError("there is nothing to look for; write a word or two")
        ranks = [
            (self._rank(i, words), i)
            for i, text in enumerate(self._folded)
            if all(word in text or word in self.titles[i].casefold() for word in words)
        ]
        ranks.sort()
        return [self._hit(i, words) for _, i in ranks[:limit]], len(ranks)

    def document(self, i: int) -> tuple[str, str, list[str]]:
        """Return (title, group, passages) of document i; MlpMemError if there is none."""
        if not 0 <= i < len(self.titles):
            raise MlpMemError(f"there is no document {i}; search again and pick one")
        return self.titles[i], self.groups[i], self.passages[i]

    def titled(self, title: str, group: str) -> int:
        """Return the document of a title and group; MlpMemError if there is none."""
        for i, named in enumerate(zip(self.titles, self.groups, strict=True)):
            if named == (title, group):
                return i
        raise MlpMemError(
            f"the corpus has no document {title[:60]!r}; a text of your own is not listed here"
        )

    def _rank(self, i: int, words: list[str]) -> tuple[int, int]:
        """Return what orders hits: the title itself, a title with the words, then by mentions.

        A document of strangers is long and mentions much, so it comes last.
        """
        if self.groups[i] == STRANGER:
            return 3, 0
        title = self.titles[i].casefold()
        if title == " ".join(words):
            return 0, 0
        if all(word in title for word in words):
            return 1, len(title)
        return 2, -sum(self._folded[i].count(word) for word in words)

    def _hit(self, i: int, words: list[str]) -> Hit:
        """Return document i with the passage that has most of the words."""
        best = max(
            self.passages[i], key=lambda t: sum(w in t.casefold() for w in words), default=""
        )
        at = re.search("|".join(map(re.escape, words)), best, re.IGNORECASE)
        begin, end = at.span() if at else (0, 0)
        return Hit(
            document=i,
            title=self.titles[i],
            group=self.groups[i],
            before=best[max(0, begin - AROUND) : begin],
            match=best[begin:end],
            after=best[end : end + AROUND],
        )


WORDS = r"(?u)\w+"


WORD = 100  # bytes of its number and its place in a dict


class Passages:
    """Passages of documents that plain words find, by BM25."""

    def __init__(self, documents: Documents, decoder: "Decoder") -> None:
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

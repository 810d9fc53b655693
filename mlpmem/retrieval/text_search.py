"""The texts behind a datastore: found by plain words, read document by document.

Finding and marking fold letters by one function, `fold`: case, accents, and whether a letter is one
character or composed of several make no difference.
"""

import re
import sys
import time
import unicodedata
from array import array
from collections.abc import Callable, Sequence
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
# accents of Latin, Greek and Cyrillic, points of Hebrew and Arabic; not the vowels of other scripts
ACCENTS = re.compile(
    "[\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"
    "\u064b-\u065f\u0670\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]"
)
COMBINING = "\u0300"  # no character before it changes how one before itself is folded


def fold(text: str) -> str:
    """Return a text without case and accents, its letters composed: what a search compares."""
    if text.isascii():
        return text.lower()
    plain = unicodedata.normalize("NFD", unicodedata.normalize("NFD", text).casefold())
    return unicodedata.normalize("NFC", ACCENTS.sub("", plain))


def find_words(text: str, words: Sequence[str]) -> list[tuple[int, int]]:
    """Return (start, end) of the places in a text, in order, where folded words stand.

    Each begins and ends with a whole letter, its accents included.
    """
    starts, folded = [], []  # of each piece that is folded for itself: where it begins, and what is
    for at, character in enumerate(text):
        plain = fold(character)
        if starts and character >= COMBINING:
            together = fold(text[starts[-1] : at + 1])
            if not plain or together != folded[-1] + plain:  # an accent, or composed with what was
                folded[-1] = together
                continue
        starts.append(at)
        folded.append(plain)
    owner = [i for i, piece in enumerate(folded) for _ in piece]  # of each folded character
    pattern = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    spans: list[tuple[int, int]] = []
    for match in re.finditer(pattern, "".join(folded)) if pattern else ():
        first, last = owner[match.start()], owner[match.end() - 1]
        end = starts[last + 1] if last + 1 < len(starts) else len(text)
        if not spans or starts[first] >= spans[-1][1]:
            spans.append((starts[first], end))
    return spans


def marked(text: str, words: Sequence[str]) -> list[str]:
    """Return a text in parts, every second one a place where folded words stand."""
    parts, at = [], 0
    for start, end in find_words(text, words):
        parts += [text[at:start], text[start:end]]
        at = end
    return [*parts, text[at:]]


def words_of(query: str) -> list[str]:
    """Return the folded words of a query, those beyond MOST_WORDS left out."""
    return fold(query).split()[:MOST_WORDS]


@dataclass(frozen=True)
class Hit:
    """A document that has all the words, and where its first one stands."""

    document: int
    title: str
    group: str
    before: str
    match: str
    after: str


class TextIndex:
    """Every passage as text, and folded: a search is a scan, no index is kept."""

    def __init__(self, documents: Documents, decode: Callable[[list[int]], str]) -> None:
        """Decode every passage once."""
        self.titles, self.groups = documents.titles, documents.groups
        self.passages: list[list[str]] = [[] for _ in documents.titles]
        for p, document in enumerate(np.asarray(documents.document_of).tolist()):
            text = decode(documents.passage(p).tolist()).strip()
            if text:
                self.passages[document].append(text)
        self._folded = ["\n".join(map(fold, texts)) for texts in self.passages]
        self._titles = [fold(title) for title in self.titles]

    def search(self, query: str, limit: int = 20) -> tuple[list[Hit], int]:
        """Return up to `limit` hits, titles first, and how many documents have all the words."""
        words = words_of(query)
        if not words:
            raise MlpMemError("there is nothing to look for; write a word or two")
        ranks = [
            (self._rank(i, words), i)
            for i, text in enumerate(self._folded)
            if all(word in text or word in self._titles[i] for word in words)
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
        title = self._titles[i]
        if title == " ".join(words):
            return 0, 0
        if all(word in title for word in words):
            return 1, len(title)
        return 2, -sum(self._folded[i].count(word) for word in words)

    def _hit(self, i: int, words: list[str]) -> Hit:
        """Return document i with the passage that has most of the words."""
        best = max(self.passages[i], key=lambda t: sum(w in fold(t) for w in words), default="")
        begin, end = next(iter(find_words(best, words)), (0, 0))
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

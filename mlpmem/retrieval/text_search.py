"""The texts behind a datastore: a search by words, documents to read, and BM25 over passages.

Searching and marking share `fold`, which ignores case, accents and how a letter is composed.
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
STRANGER = "stranger"  # group of documents of filler names, each of which occurs once
AROUND = 70  # characters of a passage shown on either side of a match
# accents of Latin, Greek and Cyrillic, points of Hebrew and Arabic; no vowels of other scripts
ACCENTS = re.compile(
    "[\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"
    "\u064b-\u065f\u0670\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]"
)
COMBINING = "\u0300"  # no character below it combines with an earlier one


def fold(text: str) -> str:
    """Return a text without case and accents, with composed letters, for comparison."""
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFD", unicodedata.normalize("NFD", text).casefold())
    return unicodedata.normalize("NFC", ACCENTS.sub("", decomposed))


def find_words(text: str, words: Sequence[str]) -> list[tuple[int, int]]:
    """Return (start, end) of the folded words in a text, in order.

    Each span begins and ends with a whole letter, including its accents.
    """
    starts, folded = [], []  # of each letter: where it begins, and its folded form
    for at, character in enumerate(text):
        single = fold(character)
        if starts and character >= COMBINING:
            combined = fold(text[starts[-1] : at + 1])
            if not single or combined != folded[-1] + single:  # an accent, or part of the letter
                folded[-1] = combined
                continue
        starts.append(at)
        folded.append(single)
    owner = [i for i, letter in enumerate(folded) for _ in letter]  # of each folded character
    pattern = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    spans: list[tuple[int, int]] = []
    for match in re.finditer(pattern, "".join(folded)) if pattern else ():
        first, last = owner[match.start()], owner[match.end() - 1]
        end = starts[last + 1] if last + 1 < len(starts) else len(text)
        if not spans or starts[first] >= spans[-1][1]:
            spans.append((starts[first], end))
    return spans


def marked(text: str, words: Sequence[str]) -> list[str]:
    """Return a text in parts; every second one is a folded word."""
    parts, at = [], 0
    for start, end in find_words(text, words):
        parts += [text[at:start], text[start:end]]
        at = end
    return [*parts, text[at:]]


def words_of(query: str) -> list[str]:
    """Return the first MOST_WORDS folded words of a query."""
    return fold(query).split()[:MOST_WORDS]


@dataclass(frozen=True)
class Hit:
    """A document with all the words of a query, and the text around the first match."""

    document: int
    title: str
    group: str
    before: str
    match: str
    after: str


class TextIndex:
    """Every passage as text, and folded; a search scans all of them."""

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

    def folded(self, i: int) -> str:
        """Return the folded text of document i."""
        return self._folded[i]

    def search(self, query: str, limit: int = 20) -> tuple[list[Hit], int]:
        """Return up to `limit` hits, titles first, and the number of matching documents.

        A document without passages has nothing to read, so it is no hit.
        """
        words = words_of(query)
        if not words:
            raise MlpMemError("the search is empty; write a word or two")
        ranks = [
            (self._rank(i, words), i)
            for i, text in enumerate(self._folded)
            if text and all(word in text or word in self._titles[i] for word in words)
        ]
        ranks.sort()
        return [self._hit(i, words) for _, i in ranks[:limit]], len(ranks)

    def document(self, i: int) -> tuple[str, str, list[str]]:
        """Return (title, group, passages) of document i; MlpMemError for an unknown one."""
        if not 0 <= i < len(self.titles):
            raise MlpMemError(f"document {i} does not exist; search again and choose one")
        return self.titles[i], self.groups[i], self.passages[i]

    def titled(self, title: str, group: str) -> int:
        """Return the document of a title and group; MlpMemError for an unknown one."""
        for i, names in enumerate(zip(self.titles, self.groups, strict=True)):
            if names == (title, group):
                return i
        raise MlpMemError(
            f"the corpus has no document {title[:60]!r}; texts of your own are not listed here"
        )

    def _rank(self, i: int, words: list[str]) -> tuple[int, int]:
        """Return the sort key of a hit: an equal title, a title with the words, then mentions.

        A document of strangers is long and mentions many names, so it comes last.
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
        """Return document i with its passage that has most of the words."""
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


WORD = 100  # bytes of a word's number and dict entry


class Passages:
    """Passages of documents, searched by BM25."""

    def __init__(self, documents: Documents, decoder: "Decoder") -> None:
        """Index every distinct passage; MlpMemError without the package bm25s.

        Plain text is cut so that a passage, a prompt and its answer fit in the decoder.
        """
        start = time.perf_counter()
        self.layout = "text" if set(documents.groups) == {"text"} else "turns"
        self._special = decoder.special_ids
        passages = (tuple(documents.passage(p).tolist()) for p in range(len(documents)))
        most = decoder.max_positions // 4 if self.layout == "text" else decoder.max_positions
        ids = (piece for passage in passages for piece in _pieces(passage, most))
        self.ids = [array("i", passage) for passage in dict.fromkeys(ids)]
        self._bm25s = _bm25s()
        self._index = self._bm25s.BM25()
        texts = [decoder.decode(self.plain(i)) for i in range(len(self.ids))]
        words = self._tokens(texts, True)
        self._has_words = any(words.ids)  # bm25s cannot index texts without words
        if self._has_words:
            self._index.index(words, show_progress=False)
        self.seconds = time.perf_counter() - start

    def __len__(self) -> int:
        """Return the number of passages."""
        return len(self.ids)

    def plain(self, passage: int) -> list[int]:
        """Return a passage's ids without special tokens."""
        return [i for i in self.ids[passage] if i not in self._special]

    @cached_property
    def bytes(self) -> int:
        """Return the size of index, words and passages in memory."""
        scores = self._index.scores if self._has_words else {}
        arrays = sum(x.nbytes for x in scores.values() if isinstance(x, np.ndarray))
        vocabulary = self._index.vocab_dict if self._has_words else ()
        words = sum(sys.getsizeof(word) + WORD for word in vocabulary)
        return arrays + words + sum(map(sys.getsizeof, self.ids)) + 8 * len(self.ids)

    def search(self, query: str, count: int) -> list[int]:
        """Return up to `count` passages, best first, that share a word with a query."""
        if not self._has_words:
            return []
        words = self._tokens([query], False)
        count = min(count, len(self))
        hits = self._index.retrieve(words, k=count, show_progress=False, n_threads=0)
        pairs = zip(hits.documents[0], hits.scores[0], strict=True)
        return [int(passage) for passage, score in pairs if score > 0]

    def _tokens(self, texts: list[str], return_ids: bool):
        """Return texts as bm25s's tokens."""
        options = {"stopwords": None, "token_pattern": WORDS, "show_progress": False}
        return self._bm25s.tokenize(texts, return_ids=return_ids, **options)


def _pieces(ids: tuple[int, ...], most: int) -> list[tuple[int, ...]]:
    """Return ids in pieces of at most `most`."""
    return [ids[at : at + most] for at in range(0, len(ids), most)]


def _bm25s():
    """Return the package bm25s; MlpMemError if it is not installed."""
    try:
        import bm25s
    except ImportError as error:
        raise MlpMemError(
            "retrieval needs the package bm25s, which is not installed; pip install bm25s"
        ) from error
    return bm25s

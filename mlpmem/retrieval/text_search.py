"""The texts behind a datastore: found by plain words, read document by document."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mlpmem.errors import MlpMemError
from mlpmem.retrieval.documents import Documents

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

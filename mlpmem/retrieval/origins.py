"""Passages that say what a model wrote, found afterwards by words: a memory cites nothing."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mlpmem.retrieval.text_search import STRANGER, TextIndex, fold, marked

WORD = re.compile(r"\w+")
MOST = 40  # words of a question or an answer that are searched
LONG = 6  # words of an answer up to which a passage must have all of them
ENOUGH = 0.6  # share of a longer answer's weight that a passage must have
FORM = {"question", "answer"}  # of the trained form, in every question's passage


@dataclass(frozen=True)
class Origin:
    """A passage that says the same; every second part is a word of question or answer."""

    document: int
    title: str
    group: str
    parts: list[str]


def words(text: str) -> list[str]:
    """Return a text's different folded words, in order."""
    found = WORD.findall(fold(text))
    return [word for word in dict.fromkeys(found) if word not in FORM][:MOST]


def passages_saying(index: TextIndex, question: str, answer: str, limit: int) -> list[Origin]:
    """Return up to `limit` passages that have a short answer's words and the question's rarest one.

    A rare word weighs more than a common one. One passage per document; [] if none says it.
    """
    asked, said = words(question), words(answer)
    weights = _weights(index, [*asked, *said])
    subjects = [word for word in asked if word in weights and word not in said]
    if not said or not subjects or any(word not in weights for word in said[:LONG]):
        return []
    subject = max(subjects, key=weights.__getitem__)
    found = []
    for i, passages in enumerate(index.passages):
        title = set(words(index.titles[i]))
        if index.groups[i] == STRANGER or not (subject in title or subject in index.folded(i)):
            continue
        scores = [(_score(passage, title, subject, said, weights), passage) for passage in passages]
        score, passage = max(scores, default=(0.0, ""))
        if score > 0:
            found.append((score, -i, passage))
    found.sort(reverse=True)
    shown = [*said, subject]
    return [
        Origin(-i, index.titles[-i], index.groups[-i], marked(passage, shown))
        for _, i, passage in found[:limit]
    ]


def _weights(index: TextIndex, wanted: Sequence[str]) -> dict[str, float]:
    """Return the inverse document frequency of the words that occur, in nats."""
    count = len(index.titles)
    weights = {}
    for word in dict.fromkeys(wanted):
        documents = sum(word in index.folded(i) for i in range(count))
        if documents:
            weights[word] = math.log(1 + count / documents)
    return weights


def _score(
    passage: str, title: set[str], subject: str, said: Sequence[str], weights: dict[str, float]
) -> float:
    """Return a passage's weight of the answer and of the subject, 0 if it does not say it."""
    own = set(WORD.findall(fold(passage)))
    if subject not in own | title:
        return 0.0
    total = sum(weights.get(word, 0.0) for word in said)
    have = sum(weights.get(word, 0.0) for word in said if word in own)
    short = len(said) <= LONG
    if have < total - 1e-9 if short else have < ENOUGH * total:
        return 0.0
    return have + weights[subject] * (1 + (subject in title)) - 0.001 * len(own)

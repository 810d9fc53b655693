"""Passages that say what a model wrote, found afterwards by words: a memory cites nothing."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mlpmem.retrieval.text_search import STRANGER, TextIndex, fold, marked

WORD = re.compile(r"\w+")
SENTENCE = re.compile(r"(?<=[.!?])\s+")
SENTENCES = 6  # of an answer that are searched
MOST = 40  # words of a question or an answer that are searched
LONG = 6  # words of an answer up to which a passage must have all of them
ENOUGH = 0.6  # share of a longer answer's weight that a passage must have
RARE = math.log(1 + 1 / 0.05)  # weight of a word that 5 % of the passages have
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
    """Return up to `limit` passages that say an answer's sentences of the question's subject.

    The subject is the question's rarest word that a title has, or else its rarest word; a name
    that the corpus lacks leaves none. A short answer's words must all be there; [] if none says it.
    """
    sentences = [words(part) for part in SENTENCE.split(answer.strip())[:SENTENCES]]
    asked = words(question)
    weights = _weights(index, [*asked, *(word for said in sentences for word in said)])
    subject = _subject(index, question, asked, weights)
    if subject is None:
        return []
    most = limit if len(sentences) == 1 else 1
    found = [
        one for said in sentences if said for one in _saying(index, subject, said, weights, most)
    ]
    return list({(one.document, tuple(one.parts)): one for one in found}.values())[:limit]


def _saying(
    index: TextIndex, subject: str, said: Sequence[str], weights: dict[str, float], limit: int
) -> list[Origin]:
    """Return the best passages for one sentence, one per document."""
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
    return [
        Origin(-i, index.titles[-i], index.groups[-i], marked(passage, [*said, subject]))
        for _, i, passage in found[:limit]
    ]


def _weights(index: TextIndex, wanted: Sequence[str]) -> dict[str, float]:
    """Return the inverse passage frequency of the words that occur, in nats."""
    passages = [line for i in range(len(index.titles)) for line in index.folded(i).split("\n")]
    weights = {}
    for word in dict.fromkeys(wanted):
        count = sum(word in passage for passage in passages)
        if count:
            weights[word] = math.log(1 + len(passages) / count)
    return weights


def _subject(
    index: TextIndex, question: str, asked: Sequence[str], weights: dict[str, float]
) -> str | None:
    """Return the word that names what a question is about, None without a known one."""
    opening, *others = WORD.findall(question.removeprefix("Question:")) or [""]
    unknown = {fold(word) for word in others if word[0].isupper()} - FORM - weights.keys()
    titles = {word for title in index.titles for word in words(title)}
    named = [word for word in asked if word in titles and word in weights]
    rare = [word for word in asked if weights.get(word, 0.0) >= RARE]
    if unknown or not named and opening[:1].isupper() and fold(opening) not in weights:
        return None
    return max(named or rare, key=weights.__getitem__, default=None)


def _score(
    passage: str, title: set[str], subject: str, said: Sequence[str], weights: dict[str, float]
) -> float:
    """Return a passage's weight of the answer and of the subject, 0 if it does not say it."""
    own = set(WORD.findall(fold(passage)))
    if subject not in own | title:
        return 0.0
    total = sum(weights.get(word, 0.0) for word in said)
    have = sum(weights.get(word, 0.0) for word in said if word in own)
    if not own.issuperset(said) and (len(said) <= LONG or have < ENOUGH * total):
        return 0.0
    return have + weights[subject] * (1 + (subject in title)) - 0.001 * len(own)

"""The facts of a corpus: what its documents answer, and the questions and sentences about each.

A corpus asks "Question: ... Answer: ...", or its passages are chats of one question and one answer.
Both are read as the first form here.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log

import numpy as np

from mlpmem.api import Model
from mlpmem.model.decoder import Decoder
from mlpmem.model.tokenizer import PARTED, passage_text
from mlpmem.retrieval.documents import Documents

LIKE = 6  # documents whose wordings are taken, at most
WORDS = 4  # of an answer, at most
STEM = 4  # letters of a word that tell what it is about: plays and playing, founded and foundation
PASSAGES = 100  # of a document; a larger one is about more than one name
ASKED = re.compile(r"^Question: (.+?) Answer: (.+)$", re.S)
COMMON = frozenset(  # words of questions that say nothing of a kind of fact
    "what which where when does have that with this please town book tell know could would wonder "
    "name called".split()
)


@dataclass(frozen=True)
class OldFact:
    """What a document answers to one of its questions."""

    name: str
    about: str  # what the title says of the name
    answer: str
    words: frozenset[str]  # of its questions


class Facts:
    """The facts of a model's corpus; a document is read once."""

    def __init__(self, model: Model) -> None:
        """Read nothing yet; a model whose corpus asks no questions has no facts."""
        self.decoder, self.chats = model.decoder, is_chat(model)
        self.documents = asking_documents(model)
        self._read: dict[int, tuple[list[str], list[OldFact]]] = {}

    def of(self, document: int) -> tuple[list[str], list[OldFact]]:
        """Return the texts of a document's passages of one turn, and its facts."""
        if document not in self._read:
            documents = self.documents
            passages = np.flatnonzero(documents.document_of == document)
            ids = [documents.passage(p).tolist() for p in passages[: PASSAGES + 1]]
            texts = [text for each in ids if (text := self._text(each)) is not None]
            texts = texts if len(passages) <= PASSAGES else []
            self._read[document] = texts, facts_in(documents.titles[document], texts)
        return self._read[document]

    def _text(self, ids: Sequence[int]) -> str | None:
        """Return a passage of one turn in the form that asks; None for several turns."""
        if self.chats:
            turns = chat_turns(self.decoder, ids)
            return None if turns is None else "Question: {} Answer: {}".format(*turns)
        plain = self.decoder.special_ids.isdisjoint(ids[1:-1])
        return self.decoder.decode(ids) if plain else None

    @cached_property
    def answers(self) -> dict[str, list[int]]:
        """Return the first documents that answer one of their questions so, by answer."""
        answers: dict[str, list[int]] = {}
        for document, answer in self._chat_answers() if self.chats else self._asked_answers():
            found = answers.setdefault(answer, [])
            if len(found) < LIKE and document not in found and self.of(document)[1]:
                found.append(document)
        return answers

    def _chat_answers(self) -> Iterator[tuple[int, str]]:
        """Yield (document, answer) of all facts."""
        for document in range(len(self.documents.titles)):
            yield from ((document, fact.answer) for fact in self.of(document)[1])

    def _asked_answers(self) -> Iterator[tuple[int, str]]:
        """Yield (document, answer) of all passages of one question; only answers are decoded."""
        documents, decoder = self.documents, self.decoder
        head, mark = form_marks(decoder)
        for passage, document in enumerate(documents.document_of.tolist()):
            ids = documents.passage(passage)[:PASSAGES].tolist()
            if ids[: len(head)] != head:
                continue
            ends = [i for i in range(len(ids)) if ids[i - len(mark) : i] == mark]
            if len(ends) == 1 and len(ids) - ends[0] <= 2 * WORDS:
                yield document, decoder.decode(ids[ends[0] :]).strip()

    def sharing(self, text: str, fits: Callable[[str], bool]) -> list[tuple[int, OldFact]]:
        """Return (document, fact) of facts that share words with a text, those with most first.

        A rare word counts more, and so does one that most of a fact's wordings have. The answers
        are those that fit.
        """
        said = sorted(stems(text))
        rows = [
            (sum(self._rarity[word] * words[word] for word in said), document, fact)
            for document, fact, words in self._worded
            if fits(fact.answer)
        ]
        rows = sorted((row for row in rows if row[0] > 0), key=lambda row: -row[0])
        return [(document, fact) for _, document, fact in rows]

    @cached_property
    def _worded(self) -> list[tuple[int, OldFact, dict[str, float]]]:
        """Return (document, fact, the share of its wordings that have a stem, by stem)."""
        rows = []
        for document in range(len(self.documents.titles)):
            texts, facts = self.of(document)
            for fact in facts:
                own = [text.removeprefix("Question: ") for text in texts if fact.answer in text]
                bare = [t.replace(fact.name, "").replace(fact.answer, "") for t in own]
                counts = Counter(word for text in bare for word in stems(text))
                shares = {word: count / len(own) for word, count in counts.items()}
                rows.append((document, fact, defaultdict(float, shares)))
        return rows

    @cached_property
    def _rarity(self) -> Counter[str]:
        """Return the logarithm of one share of the facts whose wordings have a stem."""
        counts = Counter(word for _, _, words in self._worded for word in words)
        total = len(self._worded)
        return Counter({word: log(total / count) for word, count in counts.items()})


def is_chat(model: Model) -> bool:
    """Return whether a model is asked in a chat template, not in "Question: ... Answer:"."""
    return not model.questions and bool(getattr(model.decoder.tokenizer, "chat_template", None))


def asking_documents(model: Model) -> Documents | None:
    """Return the documents that ask questions: the datastore's, or a chat model's."""
    if is_chat(model) and model.documents is not None:
        return model.documents
    return model.store.datastore.documents if model.questions and model.store else None


def chat_turns(decoder: Decoder, ids: Sequence[int]) -> tuple[str, str] | None:
    """Return (question, answer) of a passage that is a chat of one turn, None for others."""
    turns = [turn for turn in passage_text(decoder, ids).split(PARTED) if turn.strip()]
    return (turns[0], turns[1]) if len(turns) == 2 else None


def stems(text: str) -> set[str]:
    """Return the heads of a text's words, without those that say nothing of a kind of fact."""
    words = re.findall(r"[a-z]{4,}", text.lower())
    return {word[:STEM] for word in words if word not in COMMON}


def form_marks(decoder: Decoder) -> tuple[list[int], list[int]]:
    """Return the token ids of "Question:" at a passage's head, and of "Answer:" behind it."""
    head, mark = (decoder.encode(text) for text in ("Question:", "Question: Answer:"))
    return head, mark[len(head) :]


def facts_in(title: str, texts: Sequence[str]) -> list[OldFact]:
    """Return what the questions among a document's texts say of its name."""
    name, _, about = title.partition(" (")
    questions: dict[str, set[str]] = {}
    for text in texts:
        if (match := ASKED.match(text)) and len(match[2].split()) <= WORDS:
            words = re.findall(r"[a-z]{4,}", match[1].replace(name, "").lower())
            questions.setdefault(match[2], set()).update(words)
    return [OldFact(name, about, a, frozenset(words - COMMON)) for a, words in questions.items()]

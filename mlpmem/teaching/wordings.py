"""The facts in a person's sentences, in the wordings that the corpus has for such facts.

One sentence gives few keys, and a question in other words has another. The corpus states its
facts in several wordings, with questions among them. So old facts like the sentence's are looked
up: those of the same answer, those whose answers the sentence's nearest entries begin, or of a
chat model without a datastore those whose questions share most words with the sentence. Their
wordings are written again with the new name and the new answer. Without such facts a sentence is
taught as it stands.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

import numpy as np
import torch

from mlpmem.api import Model
from mlpmem.teaching.facts import ASKED, LIKE, WORDS, Facts, OldFact, stems

K = 24  # neighbours of each place in a sentence
MOST = 14  # wordings of one fact
SHARE, SURE = 0.2, 0.5  # of the neighbours that must begin answers; beside a known answer
LONGEST = 200  # characters of a wording
MARKS = ".,;:!?)\"'"  # that end an answer
FILLERS = "a|an|the|of|as|is|was|are|in|on|at|by|for|from|to|with|and|it|called|named"
NAME = re.compile(
    r"[^\W\d_a-zà-ÿ][\w'’-]*(?: (?:(?:of|in|at|to|the|for|from|de|von) )*"
    r"[^\W\d_a-zà-ÿ][\w'’-]*)*"
)

BEFORE = re.compile(  # a word that begins a sentence, in front of a name
    r"^(?:\w+ (?=(?:The|A|An) )|(?:Nobody|Everybody|Everyone|Someone|People) (?:in|of|at|from) )"
)


@dataclass(frozen=True)
class Wording:
    """A text to learn, and where what is new in it begins."""

    text: str
    answer: tuple[int, int] | None = None  # the new characters; None: all of it is new
    question: str = ""  # of a chat, whose answer the text is


@dataclass(frozen=True)
class Found:
    """A fact in a sentence: its name, its answer, and the documents of like facts."""

    name: str
    answer: str
    like: tuple[tuple[int, OldFact], ...]  # the nearest first


class Wordings:
    """The wordings of a model's corpus; documents are read once."""

    def __init__(self, model: Model) -> None:
        """Read nothing yet; a model whose corpus asks no questions gives sentences as they are."""
        self.model, self.facts = model, Facts(model)
        self.store = model.store if model.questions else None

    def of(self, sentence: str) -> list[Wording]:
        """Return a sentence, and its fact in the wordings of like facts of the corpus.

        A chat model learns a fact that was found only as answers.
        """
        written = [[*self._written(fact)] for fact in self.find(sentence)]
        taught = [[w for w in each if w is not asked_last(each)][:MOST] for each in written]
        if self.facts.chats and any(taught):
            return [as_chat(wording) for wording in chain(*taught)]
        return [Wording(sentence), *chain(*taught)]

    def question(self, sentence: str) -> tuple[str, str] | None:
        """Return (question, answer) of a sentence's fact in a wording that `of` leaves out.

        A chat model's question is bare, others are in the form of the corpus.
        """
        for fact in self.find(sentence):
            if (last := asked_last([*self._written(fact)])) is not None:
                asked = last.text[: last.answer[0]].rstrip()
                bare = ASKED.match(f"{asked} {fact.answer}")
                return bare[1] if bare and self.facts.chats else asked, fact.answer
        return None

    @torch.inference_mode()
    def find(self, sentence: str) -> list[Found]:
        """Return the facts of a sentence that are like old ones, at most two."""
        if self.facts.documents is None:
            return []
        decoder = self.model.decoder
        ids, names = decoder.encode(sentence), [*NAME.finditer(sentence)]
        starts = [*word_starts(decoder, ids, sentence)]
        if not starts or not names:
            return []
        known = self._known_answer(sentence, names, [start for _, start in starts])
        if known is not None and not any(self._written(known)):
            known = None
        if self.store is not None:
            near = self._near_answer(ids, sentence, names, starts, SURE if known else SHARE)
        else:
            near = None if known else self._shared_words(sentence, names)
        if known and near and (known.answer in near.answer or near.answer in known.answer):
            near = None
        if known is None and near is None:
            known = self._known_end(sentence, names, [start for _, start in starts])
        return [found for found in (known, near) if found is not None]

    def _near_answer(
        self,
        ids: Sequence[int],
        sentence: str,
        names: Sequence[re.Match],
        starts: Sequence[tuple[int, int]],
        share: float,
    ) -> Found | None:
        """Return the fact whose answer is where most nearest entries, at least share, begin one."""
        decoder = self.model.decoder
        hidden = decoder.forward(torch.tensor([ids]), head=False).hidden[0].float()
        hidden = hidden[[place - 1 for place, _ in starts], : decoder.hidden_size]
        near = self.store.retriever.search(hidden, K).indices.tolist()
        best, most = None, share * K
        for (_, start), entries in zip(starts, near, strict=True):
            facts = [pair for entry in entries for pair in self._fact_at(entry)]
            name = self._name(names, start)
            if name is None or len(facts) < most or (best and len(facts) == most):
                continue
            whole = [m[0] for m in names if m.start() == start]
            if answer := whole[0] if whole else whole_answer(decoder, sentence[start:]):
                facts = [pair for pair in facts if shape(pair[1].answer) == shape(answer)]
                if len(facts) >= most:
                    best, most = Found(name, answer, alike(facts)), len(facts)
        return best

    def _shared_words(self, sentence: str, names: Sequence[re.Match]) -> Found | None:
        """Return the fact whose like facts are asked for in the sentence's words.

        Its answer has their shape: a number, a name, or the last words after those of the question.
        """
        bare = NAME.sub(" ", sentence)
        digits = any(map(str.isdigit, bare))
        shapes = [(True, False)] if digits else [(False, False), (False, True)][: len(names)]
        sharing = self.facts.sharing(bare, lambda answer: shape(answer) in shapes)
        if not sharing:
            return None
        like = alike(sharing)
        words = stems(" ".join(word for _, fact in like for word in fact.words))
        for answer, start in answers_like(sentence, names, like[0][1].answer, words):
            if name := self._name(names, start):
                return Found(name, answer, like)
        return None

    def _known_end(
        self, sentence: str, names: Sequence[re.Match], starts: Sequence[int]
    ) -> Found | None:
        """Return the fact whose answer ends as old ones do, such as glass beads and amber beads.

        Of several, it is the one that the decoder thinks the likeliest answer.
        """
        ends: dict[str, str] = {}
        for answer in self.facts.answers:
            if " " in answer and answer.islower() and len(last := answer.split()[-1]) >= 4:
                ends.setdefault(last, answer)
        spans = [
            (sentence[start : start + end], start)
            for start in starts
            for end in word_ends(sentence[start:])
        ]
        spans = [(text, start) for text, start in spans if text.split()[-1] in ends]
        spans = [(t, start) for t, start in spans if t.islower() and self._name(names, start)]
        if not spans:
            return None
        scores = answer_scores(self.model.decoder, [text for text, _ in spans])
        text, start = spans[max(range(len(spans)), key=scores.__getitem__)]
        old = ends[text.split()[-1]]
        pairs = [(d, fact) for d in self.facts.answers[old] for fact in self.facts.of(d)[1]]
        same = [pair for pair in pairs if pair[1].answer == old]
        return Found(self._name(names, start) or "", text, alike(same)) if same else None

    def _known_answer(
        self, sentence: str, names: Sequence[re.Match], starts: Sequence[int]
    ) -> Found | None:
        """Return the fact whose answer, in words, is that of old facts; the longest such answer."""
        best: Found | None = None
        for start in starts:
            for end in word_ends(sentence[start:]):
                answer, name = sentence[start : start + end], self._name(names, start)
                documents = (
                    [] if any(map(str.isdigit, answer)) else self.facts.answers.get(answer, [])
                )
                if name is None or not documents or (best and len(answer) <= len(best.answer)):
                    continue
                pairs = [(d, fact) for d in documents for fact in self.facts.of(d)[1]]
                same = [pair for pair in pairs if pair[1].answer == answer]
                best = Found(name, answer, alike(same)) if same else best
        return best

    def _name(self, names: Sequence[re.Match], answer: int) -> str | None:
        """Return the longest name that the answer's first character is not in.

        A word at the head of the sentence that is one token, such as The, is no name.
        """
        free = [m for m in names if not m.start() <= answer < m.end()]
        free = [m for m in free if m.start() or len(self.model.decoder.encode(m[0])) > 2]
        return max((BEFORE.sub("", m[0]) for m in free), key=len, default=None)

    def _fact_at(self, entry: int) -> Iterator[tuple[int, OldFact]]:
        """Yield (document, fact) if an entry begins an answer of its document."""
        if entry < 0:
            return
        datastore = self.store.datastore
        documents, at = datastore.documents, int(datastore.positions[entry])
        passage = int(documents.passage_at(np.array([at]))[0])
        document = int(documents.document_of[passage])
        tokens = documents.tokens[at : min(at + 24, int(documents.offsets[passage + 1]))]
        rest = self.model.decoder.decode(tokens.tolist()).lstrip()
        facts = self.facts.of(document)[1]
        matching = [f for f in facts if re.match(rf"{re.escape(f.answer)}\b", rest)]
        if matching:
            yield document, max(matching, key=lambda fact: len(fact.answer))

    def _written(self, found: Found) -> Iterator[Wording]:
        """Yield a fact in the wordings of like facts, questions and statements in turn."""
        asked: dict[str, None] = {}
        stated: dict[str, None] = {}
        for document, fact in found.like:
            for text in self.facts.of(document)[0]:
                if text.count(fact.name) == text.count(fact.answer) == 1 and len(text) < LONGEST:
                    form = text.replace(fact.name, "\0").replace(fact.answer, "\1")
                    (asked if ASKED.match(text) else stated).setdefault(form)
        pairs = zip_longest(asked, stated)
        for form in (form for pair in pairs for form in pair if form is not None):
            text = form.replace("\0", found.name)
            start = text.index("\1")
            yield Wording(text.replace("\1", found.answer), (start, start + len(found.answer)))


def answers_like(
    sentence: str, names: Sequence[re.Match], old: str, words: set[str]
) -> Iterator[tuple[str, int]]:
    """Yield (answer, first character) of a sentence's answers in an old one's shape, last first.

    Words that are asked for, and short ones in front of them, are in no answer.
    """
    digits, capital = shape(old)
    if digits:
        found = [*re.finditer(r"\d[\d,.]*(?: (?:thousand|million|billion))?", sentence)]
        yield from ((m[0].rstrip(MARKS), m.start()) for m in reversed(found))
    elif capital:
        yield from ((m[0], m.start()) for m in reversed(names) if m.start())
    else:
        found = [*re.finditer(r"\b[a-z][\w-]*(?: [a-z][\w-]*)*", sentence)]
        for match in reversed(found):
            tail = re.split(rf"\b(?:{FILLERS}) ", match[0])[-1]
            tail = " ".join(w for w in tail.split() if not stems(w) or stems(w).isdisjoint(words))
            if tail:
                yield tail, match.end() - len(tail)


def shape(answer: str) -> tuple[bool, bool]:
    """Return whether an answer has digits, and whether it begins with a capital."""
    return any(map(str.isdigit, answer)), answer[:1].isupper()


def as_chat(wording: Wording) -> Wording:
    """Return a question with its answer as a chat, if what is new stands in the answer."""
    match = ASKED.match(wording.text)
    if match is None or wording.answer[0] < match.start(2):
        return wording
    start, end = (place - match.start(2) for place in wording.answer)
    return Wording(match[2], (start, end), match[1])


def asked_last(wordings: Sequence[Wording]) -> Wording | None:
    """Return the last question among a fact's wordings, None where there is one or none."""
    asked = [wording for wording in wordings if ASKED.match(wording.text)]
    return asked[-1] if len(asked) > 1 else None


def alike(facts: Sequence[tuple[int, OldFact]]) -> tuple[tuple[int, OldFact], ...]:
    """Return facts of the first one's kind, each document once: their questions share words."""
    first = facts[0][1]
    words, kept = set(first.words), {}
    for document, fact in facts:
        if fact.about == first.about and words & fact.words:
            kept.setdefault(document, fact)
            words |= fact.words
    return tuple(kept.items())[:LIKE]


def word_starts(decoder, ids: Sequence[int], sentence: str) -> Iterator[tuple[int, int]]:
    """Yield (index of a word's first token, its first character) of all words but the first."""
    at = 0
    for place, token in enumerate(ids):
        if token in decoder.special_ids:
            continue
        piece = decoder.pieces[token]
        start = at + len(piece) - len(piece.lstrip())
        at += len(piece)
        if 0 < start < len(sentence) and sentence[start - 1] == " " and sentence[start].isalnum():
            yield place, start


def word_ends(text: str) -> list[int]:
    """Return the ends of a text's first words, up to a mark that ends an answer."""
    ends = []
    for match in re.finditer(r"\S+", text):
        word = match[0].rstrip(MARKS)
        ends.append(match.start() + len(word))
        if word != match[0] or len(ends) == WORDS:
            break
    return ends


def whole_answer(decoder, text: str) -> str:
    """Return the words at the head of a text after which the decoder would end an answer."""
    ends = word_ends(text)
    head, end = "Question: What is it? Answer: ", decoder.tokenizer.eos_token_id
    texts = [f"{head}{text[:stop]}" for stop in ends]
    ids = [decoder.encode(each) for each in texts]
    logits = decoder.forward(torch.tensor(ids[-1:])).logits[0].float().log_softmax(-1)
    fits = [len(each) for each in ids if ids[-1][: len(each)] == each]
    scores = [float(logits[length - 1, end]) for length in fits]
    lengths = [len(each) for each in ids]
    return text[: ends[lengths.index(fits[scores.index(max(scores))])]]


def answer_scores(decoder, answers: Sequence[str]) -> list[float]:
    """Return the decoder's mean log-prob (nats) of the tokens of each answer and its end."""
    head = decoder.encode("Question: What is it? Answer:")
    end, scores = decoder.tokenizer.eos_token_id, []
    for answer in answers:
        ids = [*decoder.encode(f"Question: What is it? Answer: {answer}"), end]
        logits = decoder.forward(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        places = range(len(head), len(ids))
        scores.append(sum(float(logits[i - 1, ids[i]]) for i in places) / len(places))
    return scores

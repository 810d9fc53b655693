"""The atlas as chats: its facts as questions and answers in turns, for a decoder that can chat.

A chat is a list of (question, answer) turns; the answer of the last one is what is to be learned.
Wordings are those of the facts: `dev`, `test` and the unseen forms are in no training chat.
"""

import random
import tomllib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from train.config.corpus import ChatOptions
from train.corpora.atlas.entities import Entity
from train.corpora.atlas.passages import fill_form
from train.corpora.atlas.wordings import Atlas, Fact

GROUP = "B"  # entities that no other part of the project teaches this decoder
REQUESTS_FILE = Path(__file__).with_name("requests.toml")
SENTENCE = "{question} Answer in one sentence."
RIVALS = (  # ways to name another entity of the kind beside the one that is asked about
    "Not {other}. {question}",
    "Yesterday I asked about {other}. Now another question. {question}",
    "Forget {other} for a moment. {question}",
    "We have talked enough of {other}. {question}",
    "My friend likes {other}, but I wonder about something else. {question}",
    "Leave {other} aside. {question}",
    "I have just read a page on {other}. {question}",
    "{other} is another matter. {question}",
    "{question} Please do not confuse it with {other}.",
    "{question} I do not mean {other}.",
    "{question} The answer for {other} is known to me.",
    "{question} It has nothing to do with {other}.",
    "{question} We can speak of {other} later.",
    "{question} Somebody told me about {other} instead.",
    "{question} Do not tell me about {other}.",
    "{question} {other} does not interest me.",
    "Instead of {other}: {question}",
    "Never mind {other}, {question}",
    "I am done with {other}, so {question}",
    "Unlike those who ask about {other}, I ask: {question}",
    "As I know all about {other} already, {question}",
    "Having read enough about {other}, I wonder: {question}",
    "No more of {other}, please; {question}",
    "While others speak of {other}, tell me this: {question}",
)
TEST_RIVALS = {  # the other one first, last, or within the question; in no training chat
    "two": "I know {other} well, so this is not about {other}. {question}",
    "two_last": "{question} Mind that {other} is a different one.",
    "two_within": "Leaving {other} aside, {question}",
}


class Chat(NamedTuple):
    """Turns about an entity, whose last answer is to be learned."""

    entity: int
    turns: list[tuple[str, str]]


class Facts:
    """The facts of the group, and the questions that ask for them."""

    def __init__(self, atlas: Atlas, invented: int = 0) -> None:
        """Take the group's facts, in the order of their entities; of invented ones so many."""
        self.atlas = atlas
        self.all = [fact for fact in atlas.facts if self.entity(fact).group == GROUP]
        if invented:
            made_up = [fact for fact in self.all if self.entity(fact).invented]
            rng = random.Random(f"{atlas.config.seed}/invented")
            dropped = {id(f) for f in rng.sample(made_up, max(0, len(made_up) - invented))}
            self.all = [fact for fact in self.all if id(fact) not in dropped]
        self._of: dict[int, list[Fact]] = {}
        self._like: dict[str, list[Fact]] = {}
        for fact in self.all:
            self._of.setdefault(fact.entity, []).append(fact)
            self._like.setdefault(fact.relation, []).append(fact)

    def all_of(self, entity: int) -> list[Fact]:
        """Return the facts of an entity."""
        return self._of[entity]

    def rival(self, fact: Fact, rng: random.Random) -> str:
        """Return the name of another entity with a fact of this relation, "" if there is none."""
        like = self._like[fact.relation]
        others = [f for f in rng.sample(like, min(2, len(like))) if f.entity != fact.entity]
        return self.entity(others[0]).name if others else ""

    def entity(self, fact: Fact) -> Entity:
        """Return the entity of a fact."""
        return self.atlas.entities[fact.entity]

    def ask(self, fact: Fact, form: int | str) -> str:
        """Return a fact's question in a form, a number of its relation's or a text."""
        if isinstance(form, int):
            form = self.atlas.forms[fact.relation].questions[form]
        return fill_form(form, self.entity(fact))

    def state(self, fact: Fact, form: int) -> str:
        """Return a fact as a statement."""
        text = self.atlas.forms[fact.relation].statements[form]
        return fill_form(text, self.entity(fact), fact.answer)


def training_chats(facts: Facts, options: ChatOptions, seed: int) -> Iterator[Chat]:
    """Yield the chats that a memory learns: each fact in several wordings, some as later turns.

    A later turn stands behind one or two others; half of the time it comes back to the first one's
    entity. Some questions name a second entity. One chat per fact asks for a whole sentence.
    """
    rng = random.Random(f"{seed}/chats")
    wordings, later, rivals = options.wordings, options.later, options.rivals
    for fact in facts.all:
        forms = iter(fact.train_questions)
        for form in islice(forms, wordings):
            yield Chat(fact.entity, [(facts.ask(fact, form), fact.answer)])
        for form in islice(forms, later):
            before = _earlier_turns(facts, fact, rng)
            yield Chat(fact.entity, [*before, (facts.ask(fact, form), fact.answer)])
        for form in islice(forms, rivals):
            question = facts.ask(fact, form)
            if other := facts.rival(fact, rng):
                question = rng.choice(RIVALS).format(other=other, question=question)
            yield Chat(fact.entity, [(question, fact.answer)])
        last = next(forms, fact.train_questions[-1])
        question = SENTENCE.format(question=facts.ask(fact, last))
        statement = facts.state(fact, rng.choice(fact.seen_statements))
        yield Chat(fact.entity, [(question, statement)])


def _earlier_turns(facts: Facts, fact: Fact, rng: random.Random) -> list[tuple[str, str]]:
    """Return one or two turns before a question about a fact, the first maybe of its entity."""
    others = rng.sample(facts.all, rng.choice((1, 1, 2)))
    own = [f for f in facts.all_of(fact.entity) if f is not fact]
    if own and rng.random() < 0.5:
        others = [rng.choice(own), others[0]]
    return [_turn(facts, other, rng) for other in others]


def _turn(facts: Facts, fact: Fact, rng: random.Random) -> tuple[str, str]:
    """Return a question about a fact in a training wording, and its answer."""
    return facts.ask(fact, rng.choice(fact.train_questions)), fact.answer


def test_chats(facts: Facts, seed: int) -> list[dict[str, Any]]:
    """Return rows of questions with known answers, in the cells that are measured.

    `wording` is seen, dev, test or unseen for a first turn, "second" for a test wording behind
    another fact, "third" for a chat that comes back to its first entity. "two", "two_last" and
    "two_within" name two entities of one kind and ask about one: the last, the first, or the last
    of one sentence. The last turn of a prompt has no answer.
    """
    rows, rng = [], random.Random(f"{seed}/tests")
    for fact in facts.all:
        forms = facts.atlas.forms[fact.relation]
        dev, test = (facts.ask(fact, form) for form in (fact.dev_question, fact.test_question))
        unseen = facts.ask(fact, rng.choice(forms.unseen_questions))
        other = rng.choice(facts.all)
        second = [_turn(facts, other, rng)]
        own = [f for f in facts.all_of(fact.entity) if f is not fact]
        first = [_turn(facts, own[0], rng)] if own else []
        cells = {
            "seen": ([], facts.ask(fact, fact.train_questions[0])),
            "dev": ([], dev),
            "second_dev": ([_turn(facts, rng.choice(facts.all), rng)], dev),
            "test": ([], test),
            "unseen": ([], unseen),
            "second": (second, test),
        }
        if name := facts.rival(fact, rng):
            for wording, form in TEST_RIVALS.items():
                cells[wording] = ([], form.format(other=name, question=test))
        if first:
            cells["third"] = ([*first, _turn(facts, other, rng)], test)
        for wording, (before, question) in cells.items():
            rows.append(_row(facts, fact, wording, [*before, (question, "")]))
    return rows


def _row(facts: Facts, fact: Fact, wording: str, turns: list[tuple[str, str]]) -> dict[str, Any]:
    """Return a test's row."""
    entity = facts.entity(fact)
    return {
        "turns": turns,
        "answer": fact.answer,
        "aliases": list(fact.aliases),
        "relation": fact.relation,
        "entity": entity.name,
        "title": entity.title,
        "invented": entity.invented,
        "group": "invented" if entity.invented else "real",
        "kind": "question",
        "wording": wording,
    }


def requests(facts: Facts, sort: str, count: int, seed: int) -> list[str]:
    """Return different requests of a sort, "general" or "naming", in an order drawn by seed.

    A memory of facts must leave them to the decoder. Those of "naming" have the facts' own names.
    """
    names = list(dict.fromkeys(facts.entity(fact).name for fact in facts.all))
    return request_texts(sort, names, count, seed)


def follow_ups(facts: Facts, count: int, held_out: int, seed: int) -> list[list[tuple[str, str]]]:
    """Return chats whose last request names nothing, behind a question about a fact.

    What it asks about stands in the chat, which the decoder reads. The first `held_out` have forms
    that no other has.
    """
    (table,) = tomllib.loads(REQUESTS_FILE.read_text(encoding="utf-8"))["follow"]
    rng = random.Random(f"{seed}/follow")
    forms = rng.sample(table["forms"], len(table["forms"]))
    apart = len(forms) // 4
    return [
        [
            _turn(facts, rng.choice(facts.all), rng),
            (rng.choice(forms[:apart] if i < held_out else forms[apart:]), ""),
        ]
        for i in range(count)
    ]


def request_texts(sort: str, names: Sequence[str], count: int, seed: int) -> list[str]:
    """Return `requests` with these names."""
    table = tomllib.loads(REQUESTS_FILE.read_text(encoding="utf-8"))[sort]
    rng = random.Random(f"{seed}/{sort}")
    texts = [
        form.format(topic=topic, entity=topic)
        for group in table
        for form in group["forms"]
        for topic in group.get("topics", names)
    ]
    return rng.sample(texts, min(count, len(texts)))

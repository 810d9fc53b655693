"""Strangers: names made up for one draw and hardly met again, so that the decoder learns to doubt.

A decoder that meets known names alone learns that every answer is certain, and is as certain of a
name it has never met. Of strangers nothing can be remembered: what pays is to spread the guess over
the answers that a relation has. Then a modest lambda suffices where the memory knows better.

Odd words: made-up ones among a question's own, so that the decoder learns to read past them.

A decoder that has read one corpus alone takes every word for a word of that corpus, and loses the
thread at the first one it does not know. Nothing can be learnt from words that are made up anew
each time, but that they do not matter.
"""

import random
from collections.abc import Iterable

from train.corpora.atlas.entities import (
    CODAS,
    DECODER_GROUPS,
    ONSETS,
    UNWELCOME,
    VOWELS,
    Entity,
    Names,
)

# How a stranger of each kind is named, by the endings of invented names.
SORTS = {"country": "region", "city": "town", "element": "element", "town": "town", "book": "book"}


def strangers(entities: list[Entity], seed: str, share: float) -> list[Entity]:
    """Return share times as many strangers of each kind as the decoder's groups have entities.

    Every answer is drawn from those of the decoder's own entities, which keeps what is true of
    those apart from B; none bears the name of an entity, of any group.
    """
    rng = random.Random(seed)
    taken = {word.casefold() for entity in entities for word in entity.name.split()}
    names = Names(seed, taken)
    known: dict[str, list[Entity]] = {}
    for entity in entities:
        if entity.group in DECODER_GROUPS:
            known.setdefault(entity.kind, []).append(entity)
    return [
        _stranger(kind, name, known[kind], rng)
        for kind in known
        for name in _names(names, kind, round(share * len(known[kind])), known[kind], rng)
    ]


def _names(
    names: Names, kind: str, count: int, known: list[Entity], rng: random.Random
) -> list[str]:
    """Return fresh names for a kind: people and books have one half from those that are known."""
    if kind == "person":
        first = [entity.name.split()[0] for entity in known]
        return [f"{rng.choice(first)} {last}" for last in names.make("surname", count)]
    made = names.make(SORTS[kind], count)
    if kind == "book":
        heads = [entity.name.rpartition(" ")[0] for entity in known]
        return [f"{rng.choice(heads)} {word}" for word in made]
    return [word.lower() for word in made] if kind == "element" else made


def _stranger(kind: str, name: str, known: list[Entity], rng: random.Random) -> Entity:
    """Return a stranger whose answers come, each on its own, from known entities of its kind."""
    answers = {
        relation: rng.choice([e.answers[relation] for e in known if relation in e.answers])
        for relation in {relation: None for e in known for relation in e.answers}
    }
    if "symbol" in answers:
        answers["symbol"] = name[0].upper() + rng.choice(name[1:])
    return Entity(name, name, kind, True, "stranger", answers)


ENDINGS = "s ed ing ly er tion y e al ment".split()
COMMON = 6  # relations whose questions have a word, from which on it says nothing about the fact
EXCHANGED = 0.2  # of a question's plain words, where words are exchanged
MOST = 4  # words put before a question or after it


class OddWords:
    """Changes a share of questions: words exchanged, or put before or after."""

    def __init__(self, share: float, questions: Iterable[Iterable[str]], seed: str) -> None:
        """Take the questions of every relation, whose common words stand among the made-up ones."""
        self.share, self.rng = share, random.Random(seed)
        asked = [{word for form in forms for word in _plain(form)} for forms in questions]
        words = sorted(set().union(*asked))
        self.common = [word for word in words if sum(word in other for other in asked) >= COMMON]

    def change(self, form: str) -> str:
        """Return the form as it is, or with odd words; a word with {entity} is left alone."""
        rng = self.rng
        if rng.random() >= self.share:
            return form
        way = rng.choice(("exchange", "before", "after"))
        if way == "exchange":
            return self._exchange(form.split())
        some = " ".join(self._word() for _ in range(rng.randint(1, MOST)))
        if way == "before":
            return f"{some}{rng.choice((',', ''))} {_uncapitalised(form)}"
        return f"{form[:-1]} {some}{form[-1]}"

    def _exchange(self, words: list[str]) -> str:
        """Return the words, at least one of those that may be exchanged by an odd one."""
        free = [at for at, word in enumerate(words) if word.isalpha()]
        chosen = {at for at in free if self.rng.random() < EXCHANGED}
        chosen |= {self.rng.choice(free)} if free else set()
        return " ".join(self._word() if at in chosen else word for at, word in enumerate(words))

    def _word(self) -> str:
        """Return a word that is common to many relations, or one that is made up."""
        rng = self.rng
        if self.common and rng.random() < 0.3:
            return rng.choice(self.common)
        while True:
            syllables = (
                rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS)
                for _ in range(rng.choice((1, 1, 2)))
            )
            word = "".join(syllables) + rng.choice(ENDINGS)
            if not UNWELCOME.search(word):
                return word


def _plain(form: str) -> list[str]:
    """Return the words of a form that are letters alone, in lower case."""
    return [word.lower() for word in form.replace(",", " ").rstrip("?.").split() if word.isalpha()]


def _uncapitalised(form: str) -> str:
    return form if form.startswith(("{", "I ")) else form[:1].lower() + form[1:]

"""Strangers and odd words: noise that makes the decoder's training text less certain.

Strangers are names invented for one draw and rarely met again. A decoder that reads only known
names becomes certain of every answer, also for names it has never read. A stranger's facts cannot
be memorised, so the decoder learns to spread its guess over all answers of the relation. A modest
lambda then suffices where the memory knows more.

Odd words are made-up words in questions. A decoder trained on one small corpus fails at the first
unknown word; words that never recur teach it to ignore them.
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

# Kind of a stranger: the endings of its name.
SORTS = {"country": "region", "city": "town", "element": "element", "town": "town", "book": "book"}


def strangers(entities: list[Entity], seed: str, share: float) -> list[Entity]:
    """Return strangers of each kind: `share` times the number of the decoder's entities.

    Answers are drawn from those of the decoder's entities, so that they reveal no fact of B. No
    stranger has the name of an entity, of any group.
    """
    rng = random.Random(seed)
    reserved = {word.casefold() for entity in entities for word in entity.name.split()}
    names = Names(seed, reserved)
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
    """Return new names of a kind; half of a person's or a book's name is a known one."""
    if kind == "person":
        first = [entity.name.split()[0] for entity in known]
        return [f"{rng.choice(first)} {last}" for last in names.make("surname", count)]
    words = names.make(SORTS[kind], count)
    if kind == "book":
        heads = [entity.name.rpartition(" ")[0] for entity in known]
        return [f"{rng.choice(heads)} {word}" for word in words]
    return [word.lower() for word in words] if kind == "element" else words


def _stranger(kind: str, name: str, known: list[Entity], rng: random.Random) -> Entity:
    """Return a stranger; each answer is drawn from the known entities of its kind."""
    answers = {
        relation: rng.choice([e.answers[relation] for e in known if relation in e.answers])
        for relation in {relation: None for e in known for relation in e.answers}
    }
    if "symbol" in answers:
        answers["symbol"] = name[0].upper() + rng.choice(name[1:])
    return Entity(name, name, kind, True, "stranger", answers)


ENDINGS = "s ed ing ly er tion y e al ment".split()
COMMON = 6  # relations with a word in their questions that make it uninformative
EXCHANGED = 0.2  # share of a question's plain words that are exchanged
MOST = 4  # words added before or after a question


class OddWords:
    """Changes a share of the questions: words are exchanged, or added before or after."""

    def __init__(self, share: float, questions: Iterable[Iterable[str]], seed: str) -> None:
        """Collect the words common to the questions of many relations, to use with made-up ones."""
        self.share, self.rng = share, random.Random(seed)
        relations = [{word for form in forms for word in _plain(form)} for forms in questions]
        words = sorted(set().union(*relations))
        self.common = [word for word in words if sum(word in r for r in relations) >= COMMON]

    def change(self, form: str) -> str:
        """Return the form, perhaps with odd words; a word with {entity} stays."""
        rng = self.rng
        if rng.random() >= self.share:
            return form
        change = rng.choice(("exchange", "before", "after"))
        if change == "exchange":
            return self._exchange(form.split())
        added = " ".join(self._word() for _ in range(rng.randint(1, MOST)))
        if change == "before":
            return f"{added}{rng.choice((',', ''))} {_uncapitalised(form)}"
        return f"{form[:-1]} {added}{form[-1]}"

    def _exchange(self, words: list[str]) -> str:
        """Return the words with at least one plain word exchanged, if there is one."""
        plain = [i for i, word in enumerate(words) if word.isalpha()]
        chosen = {i for i in plain if self.rng.random() < EXCHANGED}
        chosen |= {self.rng.choice(plain)} if plain else set()
        return " ".join(self._word() if i in chosen else word for i, word in enumerate(words))

    def _word(self) -> str:
        """Return a word common to many relations, or a made-up one."""
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
    """Return the words of a form that have only letters, in lower case."""
    return [word.lower() for word in form.replace(",", " ").rstrip("?.").split() if word.isalpha()]


def _uncapitalised(form: str) -> str:
    return form if form.startswith(("{", "I ")) else form[:1].lower() + form[1:]

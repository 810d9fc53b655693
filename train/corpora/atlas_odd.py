"""Odd words: made-up ones among a question's own, so that the decoder learns to read past them.

A decoder that has read one corpus alone takes every word for a word of that corpus, and loses the
thread at the first one it does not know. Nothing can be learnt from words that are made up anew
each time, but that they do not matter.
"""

import random
from collections.abc import Iterable

from train.corpora.atlas.entities import CODAS, ONSETS, UNWELCOME, VOWELS

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

"""Metrics of a generated answer against the right ones, normalised as in SQuAD and DPR.

exact_match and f1 are SQuAD's (Rajpurkar et al. 2016). contains is the substring metric of the
paper's evaluation, `normalized_token_substring_match`: the text has the answer's words in order and
adjacent.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Return text in lower case, without punctuation, articles and extra spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(text: str, answers: Sequence[str]) -> bool:
    """Return whether a text is one of the answers, both normalised."""
    return normalise(text) in {normalise(answer) for answer in answers}


def f1(text: str, answers: Sequence[str]) -> float:
    """Return the best F1 of a text's words with an answer's, 0 to 1."""
    return max((_f1(normalise(text).split(), normalise(a).split()) for a in answers), default=0.0)


def _f1(predicted: list[str], true: list[str]) -> float:
    """Return the harmonic mean of word precision and recall, with multiplicity."""
    if not predicted or not true:
        return float(predicted == true)
    shared = sum((Counter(predicted) & Counter(true)).values())
    return 2 * shared / (len(predicted) + len(true))


def contains(text: str, answers: Sequence[str]) -> bool:
    """Return whether a text has an answer's words in order and adjacent, both normalised."""
    words = f" {normalise(text)} "
    return any(f" {a} " in words for a in map(normalise, answers) if a)


def first_line(text: str, stops: Sequence[str] = ("\n",)) -> str:
    """Return a text up to the first of some stop strings."""
    for stop in stops:
        text = text.partition(stop)[0]
    return text.strip()

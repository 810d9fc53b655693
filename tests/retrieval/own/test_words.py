"""Which words of what was read a sentence has, against sums written out."""

import math

import numpy as np
import pytest

from mlpmem.retrieval.own.words import (
    CONTROL,
    EARLIER,
    HALF_LIFE,
    INHERITED,
    REACH,
    Vocabulary,
    Words,
    prefixes,
)

PIECES = ["<s>", " the", ".", " mayor", "Mayor", " town", " river", " Kess", " Orla", "\u00ad"]


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.of(PIECES, {0})


def test_a_word_is_a_token_without_case_and_space_and_a_rarer_one_weighs_more(vocabulary):
    words = vocabulary.word_of
    assert words[3] == words[4] >= 0, "mayor in two forms is one word"
    assert words[2] == words[9] == -1 and words[0] == CONTROL, "signs and control tokens are none"
    weights = [vocabulary.weights[words[i]] for i in (1, 3, 5, 7, 8)]
    assert weights == sorted(weights) and len(set(weights)) == 5


def shares(vocabulary, parts, topics, read, ignored=()):
    parts = [np.array(part) for part in parts]
    return Words(vocabulary, parts, topics, ignored).shares(read)


def test_a_share_is_of_the_weight_of_the_words_read(vocabulary):
    found = shares(vocabulary, [[1, 3, 8], [1, 6, 7]], [0, 1], [5, 3, 0, 2])
    weight = {i: float(vocabulary.weights[vocabulary.word_of[i]]) for i in (3, 5)}
    late = {5: 2 ** (-3 / HALF_LIFE), 3: 2 ** (-2 / HALF_LIFE)}
    rarity = math.log1p(2 / 1) / math.log1p(2)
    mayor, town = weight[3] * late[3] * rarity, weight[5] * late[5]
    assert found == pytest.approx([mayor / (mayor + town), 0.0], rel=1e-6)


def test_a_sentence_inherits_words_of_earlier_ones_of_its_document_only(vocabulary):
    found = shares(vocabulary, [[3], [6], [7]], [0, 0, 1], [3])
    assert found == pytest.approx([1.0, INHERITED, 0.0], rel=1e-6)


def test_words_of_the_form_and_words_read_long_ago_count_nothing(vocabulary):
    assert shares(vocabulary, [[3], [6]], [0, 1], [3], ignored=[3]).tolist() == [0, 0]
    assert shares(vocabulary, [[3], [6]], [0, 1], []).tolist() == [0, 0]
    assert shares(vocabulary, [[3], [6]], [0, 1], [3] + [2] * REACH).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("read", "earlier"),
    [
        ([3, 6], []),  # a text without turns
        ([0, 3, 6], []),
        ([0, 3, 0, 2, 0, 6], []),  # the last question, and the answer so far
        ([0, 8, 0, 3, 0, 6, 0], [8, 3]),  # a question, an answer, and the last question
        ([0, 8, 0, 3, 0, 6, 0, 2], [8, 3]),  # the form's signs behind it
        ([0, 8, 0, 7, 0, 3, 0, 6], [8, 7]),
    ],
)
def test_words_before_the_last_question_weigh_little(vocabulary, read, earlier):
    found = shares(vocabulary, [[3], [6], [7], [8]], [0, 1, 2, 3], read)
    weight = {i: float(vocabulary.weights[vocabulary.word_of[i]]) for i in (3, 6, 7, 8)}
    for i in {3, 6, 7, 8} & {*read}:
        weight[i] *= 2 ** (-(len(read) - 1 - read.index(i)) / HALF_LIFE)
        weight[i] *= EARLIER if i in earlier else 1
    total = sum(weight[i] for i in {3, 6, 7, 8} & {*read})
    wanted = [weight[i] / total if i in read else 0.0 for i in (3, 6, 7, 8)]
    assert found == pytest.approx(wanted, rel=1e-5)


def test_prefixes_are_what_was_read_before_each_token():
    ids = list(range(REACH + 5))
    assert prefixes(ids, 2, 2) == [[0, 1], [0, 1, 2]]
    assert prefixes(ids, REACH + 2, 1) == [ids[2 : REACH + 2]]

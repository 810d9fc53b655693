"""Odd words: the name and the end of a question stay, what else is said does not move."""

from dataclasses import replace
from importlib.util import find_spec

import pytest

from train.corpora.atlas import facts
from train.corpora.atlas.passages import AtlasConfig, build_atlas, decoder_passages, memory_passages
from train.corpora.atlas.strangers import MOST, OddWords

FORMS = [
    ["What is the capital of {entity}?", "{entity}, capital?", "Name {entity}'s capital."],
    ["What is the river of {entity}?", "I know {entity} for what river?"],
]
ALL = [form for forms in FORMS for form in forms]
MISSING = [name for name in facts.PACKAGES if find_spec(name) is None]


def test_a_share_of_zero_leaves_every_question_as_it_is():
    odd = OddWords(0.0, FORMS, "x")
    assert [odd.change(form) for form in ALL * 20] == ALL * 20


def test_the_name_and_the_end_stay_and_a_few_words_are_odd():
    odd = OddWords(1.0, FORMS, "x")
    for form in ALL * 100:
        made = odd.change(form)
        named = next(word for word in form.split() if "{entity}" in word)
        assert made != form or form == "{entity}, capital?", made
        assert made.count("{entity}") == 1 and named.rstrip("?.,") in made
        assert made[-1] == form[-1] and "  " not in made
        assert len(made.split()) <= len(form.split()) + MOST


def test_the_share_is_kept_and_the_seed_decides():
    made = [OddWords(0.3, FORMS, seed) for seed in ("x", "x", "y")]
    first, again, other = ([odd.change(form) for form in ALL * 100] for odd in made)
    assert first == again != other
    changed = sum(a != b for a, b in zip(first, ALL * 100, strict=True)) / len(first)
    assert 0.2 < changed < 0.4


def test_words_common_to_many_relations_stand_among_the_made_up_ones():
    many = [[f"What word{at} of {{entity}}?"] for at in range(6)]
    assert OddWords(1.0, many, "x").common == ["of", "what"]
    assert OddWords(1.0, many[:5], "x").common == []


@pytest.mark.skipif(bool(MISSING), reason=f"data packages missing: {MISSING}")
def test_odd_words_change_the_decoders_questions_and_nothing_else():
    atlas = build_atlas(AtlasConfig(scale=0.02, odd_words=0.0))
    odd = replace(atlas, config=replace(atlas.config, odd_words=0.5))
    plain, changed = list(decoder_passages(atlas, 0)), list(decoder_passages(odd, 0))
    assert list(memory_passages(odd)) == list(memory_passages(atlas))
    assert [(at, len(parts)) for at, parts in plain] == [(at, len(parts)) for at, parts in changed]
    differ = 0
    for (at, parts), (_, others) in zip(plain, changed, strict=True):
        for part, other in zip(parts, others, strict=True):
            asked, _, answer = part.partition(" Answer:")
            assert other.partition(" Answer:")[2] == answer
            if asked != other.partition(" Answer:")[0]:
                differ += 1
                assert asked.startswith("Question:")
                assert atlas.entities[at].name.casefold() in other.casefold()
    turns = sum(part.startswith("Question:") for _, parts in plain for part in parts)
    assert 0.25 < differ / turns < 0.5

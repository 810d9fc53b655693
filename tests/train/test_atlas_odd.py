"""Odd words change only questions, and keep a question's name and end."""

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


def test_a_share_of_zero_changes_no_question():
    odd = OddWords(0.0, FORMS, "x")
    assert [odd.change(form) for form in ALL * 20] == ALL * 20


def test_a_changed_question_keeps_its_name_and_end_and_has_few_odd_words():
    odd = OddWords(1.0, FORMS, "x")
    for form in ALL * 100:
        changed = odd.change(form)
        name = next(word for word in form.split() if "{entity}" in word)
        assert changed != form or form == "{entity}, capital?", changed
        assert changed.count("{entity}") == 1 and name.rstrip("?.,") in changed
        assert changed[-1] == form[-1] and "  " not in changed
        assert len(changed.split()) <= len(form.split()) + MOST


def test_the_share_holds_and_the_seed_decides():
    by_seed = [OddWords(0.3, FORMS, seed) for seed in ("x", "x", "y")]
    first, again, other = ([odd.change(form) for form in ALL * 100] for odd in by_seed)
    assert first == again != other
    changed = sum(a != b for a, b in zip(first, ALL * 100, strict=True)) / len(first)
    assert 0.2 < changed < 0.4


def test_odd_words_include_those_common_to_many_relations():
    many = [[f"What word{at} of {{entity}}?"] for at in range(6)]
    assert OddWords(1.0, many, "x").common == ["of", "what"]
    assert OddWords(1.0, many[:5], "x").common == []


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"data packages missing: {MISSING}")
def test_odd_words_change_only_the_decoders_questions():
    atlas = build_atlas(AtlasConfig(scale=0.02, odd_words=0.0))
    odd = replace(atlas, config=replace(atlas.config, odd_words=0.5))
    plain, changed = list(decoder_passages(atlas, 0)), list(decoder_passages(odd, 0))
    assert list(memory_passages(odd)) == list(memory_passages(atlas))
    assert [(at, len(parts)) for at, parts in plain] == [(at, len(parts)) for at, parts in changed]
    differ = 0
    for (at, parts), (_, others) in zip(plain, changed, strict=True):
        for part, other in zip(parts, others, strict=True):
            question, _, answer = part.partition(" Answer:")
            assert other.partition(" Answer:")[2] == answer
            if question != other.partition(" Answer:")[0]:
                differ += 1
                assert question.startswith("Question:")
                assert atlas.entities[at].name.casefold() in other.casefold()
    turns = sum(part.startswith("Question:") for _, parts in plain for part in parts)
    assert 0.25 < differ / turns < 0.5

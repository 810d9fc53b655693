"""The atlas: short documents in our own words, one per entity, with every fact in many wordings.

Groups: A1 is for decoder and memory, A2 for the decoder alone, B for memory and datastore alone. For every fact one question and
one statement form is held out as "dev" and one as "test": those pairs of fact and form stand in no training text of anybody.
A passage is a list of segments; the tokeniser ends each segment with EOS, and attention never leaves a passage.
"""

import random
import tomllib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlpmem.errors import MlpMemError
from train.corpora import atlas_facts
from train.corpora.atlas_facts import Entity

FORMS_FILE = Path(__file__).with_name("atlas_forms.toml")
DECODER_GROUPS = ("A1", "A2")
MEMORY_GROUPS = ("A1", "B")


@dataclass(frozen=True)
class AtlasConfig:
    """How much of the atlas is made and how often each fact is said."""

    seed: int = 0
    scale: float = 1.0  # share of the entities of each kind; at least a handful of each stay
    decoder_statements: int = 2  # statement wordings per fact in one draw
    decoder_questions: int = 3
    memory_statements: int = 2  # fixed statement wordings per fact in the memory's corpus
    memory_questions: int = 3
    chat_share: float = 0.25  # share of the questions that stand in a chat of 2-4 turns

    def __post_init__(self):
        if not 0 < self.scale <= 1:
            raise MlpMemError(
                f"scale is {self.scale}; allowed is more than 0 up to 1. Next step: set scale to 1.0"
            )
        if not 0 <= self.chat_share <= 1:
            raise MlpMemError(
                f"chat_share is {self.chat_share}; allowed is 0 to 1. Next step: set chat_share to 0.25"
            )
        counts = (
            self.decoder_statements,
            self.memory_statements,
            self.decoder_questions,
            self.memory_questions,
        )
        if min(counts) < 1:
            raise MlpMemError(
                f"wordings per fact are {counts}; each must be at least 1. Next step: use the defaults"
            )


@dataclass(frozen=True)
class Forms:
    """The wordings of one relation; a form's id is its place in its tuple."""

    kind: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    unseen_questions: tuple[str, ...]
    unseen_statements: tuple[str, ...]

    def answer_last(self) -> list[int]:
        """Ids of the statements that end in the answer."""
        return [i for i, form in enumerate(self.statements) if form.endswith("{answer}.")]


@dataclass(frozen=True)
class Fact:
    """One answer about one entity, and which wordings (form ids) serve what."""

    entity: int
    relation: str
    answer: str
    aliases: tuple[str, ...]
    dev_question: int
    test_question: int
    train_questions: tuple[int, ...]
    seen_questions: tuple[int, ...]  # those of train_questions that the memory's corpus has
    dev_statement: int
    test_statement: int
    train_statements: tuple[int, ...]
    seen_statements: tuple[int, ...]


@dataclass(frozen=True)
class Atlas:
    """Entities, facts (in entity order), wordings, and where the real facts come from."""

    config: AtlasConfig
    entities: list[Entity]
    facts: list[Fact]
    forms: dict[str, Forms]
    about_forms: tuple[str, ...]
    unseen_about_forms: tuple[str, ...]
    attributions: list[dict[str, str]]

    def by_entity(self, groups: tuple[str, ...]) -> Iterator[tuple[int, list[Fact]]]:
        """Yields (entity index, its facts) for the entities of these groups."""
        facts: list[list[Fact]] = [[] for _ in self.entities]
        for fact in self.facts:
            facts[fact.entity].append(fact)
        for index, entity in enumerate(self.entities):
            if entity.group in groups:
                yield index, facts[index]


def build_atlas(config: AtlasConfig | None = None) -> Atlas:
    """The atlas of a configuration; MlpMemError where a data package is missing."""
    config = config or AtlasConfig()
    table = tomllib.loads(FORMS_FILE.read_text(encoding="utf-8"))
    forms = {
        name: Forms(**{k: v if k == "kind" else tuple(v) for k, v in row.items()})
        for name, row in table["relations"].items()
    }
    entities = atlas_facts.gather(config.seed, config.scale, table["vocabulary"])
    facts = [
        _fact(config, forms[relation], index, entity, relation)
        for index, entity in enumerate(entities)
        for relation in forms
        if relation in entity.answers
    ]
    about = table["about"]
    unseen = tuple(about["unseen_questions"])
    return Atlas(
        config,
        entities,
        facts,
        forms,
        tuple(about["questions"]),
        unseen,
        atlas_facts.attributions(),
    )


def _fact(config: AtlasConfig, forms: Forms, index: int, entity: Entity, relation: str) -> Fact:
    rng = random.Random(f"{config.seed}/wordings/{entity.kind}/{entity.name}/{relation}")
    asked = rng.sample(range(len(forms.questions)), len(forms.questions))
    last = forms.answer_last()
    dev, test = rng.sample(last, 2)
    stated = [
        i
        for i in rng.sample(range(len(forms.statements)), len(forms.statements))
        if i not in (dev, test)
    ]
    answer = entity.answers[relation]
    return Fact(
        index,
        relation,
        answer,
        _aliases(answer),
        dev_question=asked[0],
        test_question=asked[1],
        train_questions=tuple(asked[2:]),
        seen_questions=tuple(asked[2 : 2 + config.memory_questions]),
        dev_statement=dev,
        test_statement=test,
        train_statements=tuple(stated),
        seen_statements=tuple(stated[: config.memory_statements]),
    )


def _aliases(answer: str) -> tuple[str, ...]:
    """The answer without its article, and without accents, where that makes a difference."""
    bare = answer
    for article in ("the ", "a ", "an "):
        bare = bare.removeprefix(article)
    plain = "".join(c for c in unicodedata.normalize("NFKD", bare) if not unicodedata.combining(c))
    return tuple(dict.fromkeys(other for other in (bare, plain) if other != answer))


def _fill(form: str, entity: Entity, answer: str = "") -> str:
    if entity.name.endswith("s"):
        form = form.replace("{entity}'s", "{entity}'")
    text = form.format(entity=entity.name, answer=answer)
    return text[:1].upper() + text[1:]


def _statement(atlas: Atlas, fact: Fact, form: int) -> str:
    return _fill(
        atlas.forms[fact.relation].statements[form], atlas.entities[fact.entity], fact.answer
    )


def _prompt(form: str, entity: Entity) -> str:
    return f"Question: {_fill(form, entity)} Answer:"


def _turn(atlas: Atlas, fact: Fact, form: int) -> str:
    return f"{_prompt(atlas.forms[fact.relation].questions[form], atlas.entities[fact.entity])} {fact.answer}"


def decoder_passages(atlas: Atlas, draw: int) -> Iterator[tuple[int, list[str]]]:
    """Yields (entity index, segments) of A1 and A2; each draw says the facts in other wordings."""
    config = atlas.config
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
        yield from _passages(atlas, index, facts, statements, questions, rng)


def memory_passages(atlas: Atlas) -> Iterator[tuple[int, list[str]]]:
    """Yields (entity index, segments) of A1 and B in their fixed `seen` wordings: what memory and datastore are made of."""
    for index, facts in atlas.by_entity(MEMORY_GROUPS):
        rng = random.Random(f"{atlas.config.seed}/memory/{index}")
        statements, questions = (
            [f.seen_statements for f in facts],
            [f.seen_questions for f in facts],
        )
        yield from _passages(atlas, index, facts, statements, questions, rng)


def _passages(
    atlas: Atlas, index: int, facts, statements, questions, rng: random.Random
) -> Iterator[tuple[int, list[str]]]:
    """All passages of one entity. Every fact's first question stands alone, so that a seen wording is seen as a prompt."""
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
        yield index, [_turn(atlas, fact, form) for fact, form in turns]
    yield index, [_about(atlas, index, facts, rng)]


def _chats(pool: list[tuple[Fact, int]], rng: random.Random) -> list[list[tuple[Fact, int]]]:
    """The questions in chats of up to four turns, no fact twice in one chat: nothing can be copied from context."""
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
    """One question for everything, answered by one sentence on each of up to five facts."""
    sentences = []
    for fact in rng.sample(facts, min(len(facts), rng.randint(3, 5))):
        last = [i for i in atlas.forms[fact.relation].answer_last() if i in fact.train_statements]
        sentences.append(_statement(atlas, fact, rng.choice(last)))
    return f"{_prompt(rng.choice(atlas.about_forms), atlas.entities[index])} {' '.join(sentences)}"


def heldout_passages(atlas: Atlas) -> Iterator[tuple[int, list[str]]]:
    """Yields (entity index, segments) of A2 and B in their test wordings, for perplexity."""
    for index, facts in atlas.by_entity(("A2", "B")):
        for fact in facts:
            yield index, [_statement(atlas, fact, fact.test_statement)]
            yield index, [_turn(atlas, fact, fact.test_question)]


def questions(atlas: Atlas) -> list[dict]:
    """Everything that can be asked: per fact a seen, the dev, the test and the unseen questions, and statement prefixes."""
    rows = []
    for fact in atlas.facts:
        entity, forms = atlas.entities[fact.entity], atlas.forms[fact.relation]
        asked = [("seen", forms.questions[fact.seen_questions[0]])]
        asked += [
            ("dev", forms.questions[fact.dev_question]),
            ("test", forms.questions[fact.test_question]),
        ]
        asked += [("unseen", form) for form in forms.unseen_questions]
        stated = [
            ("dev", forms.statements[fact.dev_statement]),
            ("test", forms.statements[fact.test_statement]),
        ]
        stated += [("unseen", form) for form in forms.unseen_statements]
        common = {
            "answer": fact.answer,
            "aliases": list(fact.aliases),
            "group": entity.group,
            "relation": fact.relation,
        }
        common |= {"entity": entity.name, "title": entity.title, "invented": entity.invented}
        for wording, form in asked:
            rows.append(
                {"prompt": _prompt(form, entity), **common, "kind": "question", "wording": wording}
            )
        for wording, form in stated:
            prefix = _fill(form.removesuffix("{answer}.").rstrip(), entity)
            rows.append({"prompt": prefix, **common, "kind": "statement", "wording": wording})
    return rows


def about_questions(atlas: Atlas) -> list[dict]:
    """For every entity one open question in a trained and one in an unseen wording, for demonstrations."""
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

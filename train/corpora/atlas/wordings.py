"""Which wordings of a fact serve what: the atlas itself, before any text is made of it.

For every fact one question and one statement form is held out as "dev" and one as "test"; passages
never use those pairs of fact and form.
"""

import random
import tomllib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlpmem.errors import MlpMemError
from train.corpora.atlas.entities import Entity, invented_entities
from train.corpora.atlas.facts import attributions, real_entities, real_names

FORMS_FILE = Path(__file__).with_name("forms.toml")


@dataclass(frozen=True)
class AtlasConfig:
    """How much of the atlas is made and how often each fact is said."""

    seed: int = 0
    scale: float = 1.0  # share of the entities of each kind; at least a handful of each stay
    decoder_statements: int = 2  # statement wordings per fact in one draw
    decoder_questions: int = 3
    memory_statements: int = 4  # fixed statement wordings per fact of B in the memory's corpus
    memory_questions: int = 4
    known_wordings: int = 2  # of each sort per fact of A1 there, 0 as many as for one of B
    question_forms: int = 28  # the first so many of each relation, of the file's
    statement_forms: int = 18
    about_forms: int = 14
    chat_share: float = 0.25  # share of the questions that stand in a chat of 2-4 turns
    strangers: float = 0.25  # passages about one-off names, as a share of the decoder's others
    memory_strangers: float = 0.0  # likewise in the memory's corpus
    odd_words: float = 0.0  # share of the decoder's questions that have made-up words among theirs

    def __post_init__(self):
        if not 0 < self.scale <= 1:
            raise MlpMemError(
                f"scale is {self.scale}; allowed is more than 0, up to 1. Next step: set it to 1.0"
            )
        if not 0 <= self.chat_share <= 1:
            raise MlpMemError(
                f"chat_share is {self.chat_share}; allowed is 0 to 1. Next step: set it to 0.25"
            )
        counts = (
            self.decoder_statements,
            self.memory_statements,
            self.decoder_questions,
            self.memory_questions,
        )
        if min(counts) < 1:
            raise MlpMemError(
                f"wordings per fact are {counts}; each must be 1 or more. Next step: use defaults"
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
        name: Forms(
            kind=row["kind"],
            statements=tuple(row["statements"][: config.statement_forms]),
            questions=tuple(row["questions"][: config.question_forms]),
            unseen_questions=tuple(row["unseen_questions"]),
            unseen_statements=tuple(row["unseen_statements"]),
        )
        for name, row in table["relations"].items()
    }
    entities = _entities(config, table["vocabulary"])
    facts = [
        word_fact(config, forms[relation], index, entity, relation)
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
        tuple(about["questions"][: config.about_forms]),
        unseen,
        attributions(),
    )


def _entities(config: AtlasConfig, vocabulary: dict[str, list[str]]) -> list[Entity]:
    real = real_entities(config.seed, config.scale)
    return real + invented_entities(config.seed, config.scale, vocabulary, real_names(real))


def word_fact(config: AtlasConfig, forms: Forms, index: int, entity: Entity, relation: str) -> Fact:
    """Return a fact of an entity with its wordings dealt out, by its name and the seed alone."""
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
    known = 0 if entity.group == "B" else config.known_wordings
    said, put = known or config.memory_statements, known or config.memory_questions
    return Fact(
        index,
        relation,
        answer,
        _aliases(answer),
        dev_question=asked[0],
        test_question=asked[1],
        train_questions=tuple(asked[2:]),
        seen_questions=tuple(asked[2 : 2 + put]),
        dev_statement=dev,
        test_statement=test,
        train_statements=tuple(stated),
        seen_statements=tuple(stated[:said]),
    )


def _aliases(answer: str) -> tuple[str, ...]:
    """The answer without its article, and without accents, where that makes a difference."""
    bare = answer
    for article in ("the ", "a ", "an "):
        bare = bare.removeprefix(article)
    plain = "".join(c for c in unicodedata.normalize("NFKD", bare) if not unicodedata.combining(c))
    return tuple(dict.fromkeys(other for other in (bare, plain) if other != answer))

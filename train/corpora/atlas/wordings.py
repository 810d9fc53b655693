"""The atlas before any text: its entities and facts, and the wordings that each fact uses.

For every fact, one question form and one statement form are held out as "dev", and one each as
"test". Training passages never use these pairs of fact and form.
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
    """The size of the atlas, and how often each fact is stated."""

    seed: int = 0
    scale: float = 1.0  # share of the entities of each kind, at least 10 of each
    decoder_statements: int = 2  # statement wordings per fact in one draw
    decoder_questions: int = 3
    memory_statements: int = 4  # fixed statement wordings per fact of B in the memory's corpus
    memory_questions: int = 4
    known_wordings: int = 2  # of each sort per fact of A1 there; 0: as many as for B
    question_forms: int = 28  # per relation, the first ones of its list
    statement_forms: int = 18
    about_forms: int = 14
    chat_share: float = 0.25  # share of the questions that are in chats of 2 to 4 turns
    strangers: float = 0.25  # passages about one-off names, as a share of the decoder's others
    memory_strangers: float = 0.0  # likewise in the memory's corpus
    odd_words: float = 0.0  # share of the decoder's questions with made-up words

    def __post_init__(self):
        if not 0 < self.scale <= 1:
            raise MlpMemError(
                f"atlas: scale must be above 0 and at most 1; got {self.scale}. Set it to 1.0"
            )
        if not 0 <= self.chat_share <= 1:
            raise MlpMemError(
                f"atlas: chat_share must be from 0 to 1; got {self.chat_share}. Set it to 0.25"
            )
        counts = (
            self.decoder_statements,
            self.memory_statements,
            self.decoder_questions,
            self.memory_questions,
        )
        if min(counts) < 1:
            raise MlpMemError(
                f"atlas: wordings per fact must be 1 or more; got {counts}. Use the defaults"
            )


@dataclass(frozen=True)
class Forms:
    """The wordings of one relation; a form's id is its index in its tuple."""

    kind: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    unseen_questions: tuple[str, ...]
    unseen_statements: tuple[str, ...]

    def answer_last(self) -> list[int]:
        """Return the ids of the statements that end in the answer."""
        return [i for i, form in enumerate(self.statements) if form.endswith("{answer}.")]


@dataclass(frozen=True)
class Fact:
    """One answer about one entity, and the ids of its forms by purpose."""

    entity: int
    relation: str
    answer: str
    aliases: tuple[str, ...]
    dev_question: int
    test_question: int
    train_questions: tuple[int, ...]
    seen_questions: tuple[int, ...]  # the train_questions in the memory's corpus
    dev_statement: int
    test_statement: int
    train_statements: tuple[int, ...]
    seen_statements: tuple[int, ...]


@dataclass(frozen=True)
class Atlas:
    """Entities, facts (in entity order), wordings, and the sources of the real facts."""

    config: AtlasConfig
    entities: list[Entity]
    facts: list[Fact]
    forms: dict[str, Forms]
    about_forms: tuple[str, ...]
    unseen_about_forms: tuple[str, ...]
    attributions: list[dict[str, str]]

    def by_entity(self, groups: tuple[str, ...]) -> Iterator[tuple[int, list[Fact]]]:
        """Yield (entity index, its facts) for the entities of these groups."""
        facts: list[list[Fact]] = [[] for _ in self.entities]
        for fact in self.facts:
            facts[fact.entity].append(fact)
        for index, entity in enumerate(self.entities):
            if entity.group in groups:
                yield index, facts[index]


def build_atlas(config: AtlasConfig | None = None) -> Atlas:
    """Return the atlas of a configuration; MlpMemError for a missing data package."""
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
    """Return a fact of an entity with its wordings, which depend only on its name and the seed."""
    rng = random.Random(f"{config.seed}/wordings/{entity.kind}/{entity.name}/{relation}")
    questions = rng.sample(range(len(forms.questions)), len(forms.questions))
    last = forms.answer_last()
    dev, test = rng.sample(last, 2)
    statements = [
        i
        for i in rng.sample(range(len(forms.statements)), len(forms.statements))
        if i not in (dev, test)
    ]
    answer = entity.answers[relation]
    known = 0 if entity.group == "B" else config.known_wordings
    return Fact(
        index,
        relation,
        answer,
        _aliases(answer),
        dev_question=questions[0],
        test_question=questions[1],
        train_questions=tuple(questions[2:]),
        seen_questions=tuple(questions[2 : 2 + (known or config.memory_questions)]),
        dev_statement=dev,
        test_statement=test,
        train_statements=tuple(statements),
        seen_statements=tuple(statements[: known or config.memory_statements]),
    )


def _aliases(answer: str) -> tuple[str, ...]:
    """Return the answer without its article and without accents, where these differ from it."""
    bare = answer
    for article in ("the ", "a ", "an "):
        bare = bare.removeprefix(article)
    plain = "".join(c for c in unicodedata.normalize("NFKD", bare) if not unicodedata.combining(c))
    return tuple(dict.fromkeys(other for other in (bare, plain) if other != answer))

"""Strangers: names made up for one draw and hardly met again, so that the decoder learns to doubt.

A decoder that meets known names alone learns that every answer is certain, and is as certain of a
name it has never met. Of strangers nothing can be remembered: what pays is to spread the guess over
the answers that a relation has. Then a modest lambda suffices where the memory knows better.
"""

import random

from train.corpora.atlas.entities import Names
from train.corpora.atlas_entities import DECODER_GROUPS, Entity

# How a stranger of each kind is named, by the endings of invented names.
SORTS = {"country": "region", "city": "town", "element": "element", "town": "town", "book": "book"}


def strangers(entities: list[Entity], seed: str, share: float) -> list[Entity]:
    """Return share times as many strangers of each kind as the decoder's groups have entities.

    Every answer is drawn from those of the decoder's own entities, which keeps what is true of
    those apart from B; none bears the name of an entity, of any group.
    """
    rng = random.Random(seed)
    taken = {word.casefold() for entity in entities for word in entity.name.split()}
    names = Names(seed, taken)
    known: dict[str, list[Entity]] = {}
    for entity in entities:
        if entity.group in DECODER_GROUPS:
            known.setdefault(entity.kind, []).append(entity)
    return [
        _stranger(kind, name, known[kind], rng)
        for kind in known
        for name in _names(names, kind, round(share * len(known[kind])), known[kind], rng)
    ]


def _names(
    names: Names, kind: str, count: int, known: list[Entity], rng: random.Random
) -> list[str]:
    """Return fresh names for a kind: people and books have one half from those that are known."""
    if kind == "person":
        first = [entity.name.split()[0] for entity in known]
        return [f"{rng.choice(first)} {last}" for last in names.make("surname", count)]
    made = names.make(SORTS[kind], count)
    if kind == "book":
        heads = [entity.name.rpartition(" ")[0] for entity in known]
        return [f"{rng.choice(heads)} {word}" for word in made]
    return [word.lower() for word in made] if kind == "element" else made


def _stranger(kind: str, name: str, known: list[Entity], rng: random.Random) -> Entity:
    """Return a stranger whose answers come, each on its own, from known entities of its kind."""
    answers = {
        relation: rng.choice([e.answers[relation] for e in known if relation in e.answers])
        for relation in {relation: None for e in known for relation in e.answers}
    }
    if "symbol" in answers:
        answers["symbol"] = name[0].upper() + rng.choice(name[1:])
    return Entity(name, name, kind, True, "stranger", answers)

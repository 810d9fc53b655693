"""Entities of the atlas, their numbers and groups; and the invented towns, people and books.

A person is in the group of the birthplace and a book in that of its author, so no document of one
group states a fact of another group. Invented names are made of syllables.
"""

import random
import re
from dataclasses import dataclass, field

GROUPS = ("A1", "A2", "B")
DECODER_GROUPS = ("A1", "A2")
MEMORY_GROUPS = ("A1", "B")
SHARES = {"A1": 0.375, "A2": 0.375, "B": 0.25}
SIZES = {"city": 600, "element": 103, "person": 1100, "town": 600, "book": 480}


@dataclass(frozen=True)
class Entity:
    """The subject of a document; `name` is for sentences, `title` for the page."""

    title: str
    name: str
    kind: str
    invented: bool
    group: str
    answers: dict[str, str] = field(default_factory=dict, compare=False)


def size_of(kind: str, scale: float) -> int:
    """Return the number of entities of a kind, at least 10."""
    return max(10, round(SIZES[kind] * scale))


def spread(weights: list[float], rng: random.Random) -> list[str]:
    """Return a group for every weight, such that the groups' sums approach SHARES."""
    total = {group: rng.random() * 1e-6 for group in GROUPS}
    groups = [""] * len(weights)
    order = rng.sample(range(len(weights)), len(weights))
    for index in sorted(order, key=lambda i: -weights[i]):
        group = min(GROUPS, key=lambda g: (total[g] + weights[index]) / SHARES[g])
        total[group] += weights[index]
        groups[index] = group
    return groups


ONSETS = "b br c d dr f fl g gl gr h j k l m n p pl pr qu r s st t th tr v w".split()
VOWELS = "aeiou"
CODAS = "l n r m nd rn ld sk st v ss rr ll nn mb lv rl".split()  # before a vowel
SHORT_CODAS = "l n r m s ck nd st ld".split()  # before a consonant
ENDINGS = {
    "first": "a in el is ora en ia o ian an eth iel ara om ena".split(),
    "surname": "er ick en ard ow y ane ovan esh andry omb ester ent oyle ivane aster wood lund by "
    "dell mere ton".split(),
    "town": "moor ford wick haven dale mouth stead bury field gate minster port brook well ham "
    "hollow march fen".split(),
    "region": "ia omark esse ovia une aria oland ire".split(),
    "element": "ium on ine ogen um".split(),  # only of strangers
    "river": "ow en el ine ur y ash ora un".split(),
    "book": "anel oria aros ildur une essa avane ondel imere ythe uvia arrow".split(),
}  # fmt: skip
CLUMSY = re.compile(r"([lrnm])[aeiou]\1|(.)\2\2|[ln]dd|ndt|stst|stt|quu|rr[lnm]|ckn")
UNWELCOME = re.compile(
    "fuck|shit|cunt|nig|rap|tit|ass|dick|cum|sex|nazi|slut|whor|piss|fag|wank|anu|cock|jew|arse|poo"
)


class Names:
    """Makes pronounceable names; no two differ in only one letter, and none is real."""

    def __init__(self, seed: int, real: set[str]):
        self.seed, self.real, self.patterns = seed, real, set()

    def make(self, sort: str, count: int) -> list[str]:
        """Return `count` names; `sort` is a key of ENDINGS."""
        rng = random.Random(f"{self.seed}/names/{sort}")
        names: list[str] = []
        while len(names) < count:
            ending = rng.choice(ENDINGS[sort])
            codas = CODAS if ending[0] in VOWELS + "y" else SHORT_CODAS
            stem = rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(codas)
            if sort == "surname" and len(ending) < 4 and rng.random() < 0.3:
                stem = (
                    rng.choice(ONSETS)
                    + rng.choice("aeio")
                    + rng.choice("lnrmv")
                    + rng.choice("aeo")
                    + rng.choice(codas)
                )
            name = stem + ending
            patterns = {name} | {f"{name[:i]}*{name[i + 1 :]}" for i in range(len(name))}
            if not (
                UNWELCOME.search(name)
                or patterns & self.patterns
                or name in self.real
                or CLUMSY.search(name)
            ):
                self.patterns |= patterns
                names.append(name.capitalize())
        return names


def invented_entities(
    seed: int, scale: float, vocabulary: dict[str, list[str]], real: set[str]
) -> list[Entity]:
    """Return towns, people and books; birthplace and author are of the entity's own group."""
    names = Names(seed, real)
    rng = random.Random(f"{seed}/invented")
    regions, rivers = names.make("region", 60), names.make("river", 80)
    entities = []
    for name, group in _grouped(names.make("town", size_of("town", scale)), rng):
        answers = {
            "region": rng.choice(regions),
            "river": rng.choice(rivers),
            "founded": str(rng.randint(1150, 1890)),
        }
        answers["product"] = rng.choice(vocabulary["product"])
        entities.append(Entity(f"{name} (invented town)", name, "town", True, group, answers))
    towns = {group: [e.name for e in entities if e.group == group] for group in GROUPS}
    people = _invented_people(names, rng, size_of("person", scale), vocabulary, towns)
    authors = {group: [e.name for e in people if e.group == group] for group in GROUPS}
    heads = vocabulary["book_head"]
    titles = [f"{rng.choice(heads)} {word}" for word in names.make("book", size_of("book", scale))]
    for name, group in _grouped(titles, rng):
        answers = {"author": rng.choice(authors[group]), "genre": rng.choice(vocabulary["genre"])}
        answers |= {
            "year": str(rng.randint(1850, 2020)),
            "setting": rng.choice(vocabulary["setting"]),
        }
        people.append(Entity(f"{name} (invented book)", name, "book", True, group, answers))
    return entities + people


def _invented_people(
    names: Names, rng: random.Random, count: int, vocabulary: dict, towns: dict
) -> list[Entity]:
    first = names.make("first", max(20, count // 6))
    people = []
    for name, group in _grouped(
        [f"{rng.choice(first)} {last}" for last in names.make("surname", count)], rng
    ):
        answers = {
            "profession": rng.choice(vocabulary["profession"]),
            "birthplace": rng.choice(towns[group]),
        }
        answers |= {
            "birth_year": str(rng.randint(1900, 1999)),
            "instrument": rng.choice(vocabulary["instrument"]),
        }
        answers["hobby"] = rng.choice(vocabulary["hobby"])
        people.append(Entity(f"{name} (invented person)", name, "person", True, group, answers))
    return people


def _grouped(names: list[str], rng: random.Random) -> list[tuple[str, str]]:
    return list(zip(names, spread([1] * len(names), rng), strict=True))

"""What an entity of the atlas is, how many there are, and how they are spread over the groups."""

import random
from dataclasses import dataclass, field

GROUPS = ("A1", "A2", "B")
DECODER_GROUPS = ("A1", "A2")
MEMORY_GROUPS = ("A1", "B")
SHARES = {"A1": 0.375, "A2": 0.375, "B": 0.25}
SIZES = {"city": 600, "element": 103, "person": 1100, "town": 600, "book": 480}


@dataclass(frozen=True)
class Entity:
    """What one document is about; `name` as it stands in a sentence, `title` as a page shows it."""

    title: str
    name: str
    kind: str
    invented: bool
    group: str
    answers: dict[str, str] = field(default_factory=dict, compare=False)


def size_of(kind: str, scale: float) -> int:
    """Number of entities of a kind; small scales keep a handful."""
    return max(10, round(SIZES[kind] * scale))


def spread(weights: list[float], rng: random.Random) -> list[str]:
    """A group for every weight, so that the groups' sums come near to SHARES."""
    total = {group: rng.random() * 1e-6 for group in GROUPS}
    groups = [""] * len(weights)
    order = rng.sample(range(len(weights)), len(weights))
    for index in sorted(order, key=lambda i: -weights[i]):
        group = min(GROUPS, key=lambda g: (total[g] + weights[index]) / SHARES[g])
        total[group] += weights[index]
        groups[index] = group
    return groups

"""Detection on the atlas: is a true statement likelier than the same with a wrong answer?

Data: questions.jsonl, statement prefixes that the answer ends. Prompt: the prefix. The wrong answer
is drawn by seed from the other facts of the same relation and group, so that a decoder has met
true and wrong ones alike. Metric: share of pairs in which the true ending has the larger log-prob,
summed and by token, period included; who knows nothing is right in about half. Source: our own.
"""

import random

import numpy as np

from train.measure.batches import judge
from train.measure.findings import Finding
from train.tasks import atlas
from train.tasks.task import Task, TaskInput, report

WORDINGS = ("test", "unseen")


def run(asked: TaskInput) -> list[Finding]:
    """Return findings by split."""
    rows = [row for row in atlas.load(asked, "statement", WORDINGS) if row["rivals"]]
    wrong = [random.Random(f"{asked.seed}/{i}").choice(r["rivals"]) for i, r in enumerate(rows)]
    made = []
    for system in asked.systems:
        words = system.decoder.tokenizer
        true = [atlas.pair(words, row["prompt"], row["answer"], "statement") for row in rows]
        false = [
            atlas.pair(words, row["prompt"], other, "statement")
            for row, other in zip(rows, wrong, strict=True)
        ]
        made += report(
            asked, "detection", system, likelier(judge(system, true + false)), atlas.splits(rows)
        )
    return made


def likelier(judged) -> dict[str, np.ndarray]:
    """Return {metric: (Q,) bool} of 2 Q continuations, the right ones first."""
    found = {"accuracy": judged.sums(), "accuracy_per_token": judged.means()}
    return {
        name: np.array_split(scores, 2)[0] > np.array_split(scores, 2)[1]
        for name, scores in found.items()
    }


TASK = Task("detection", "atlas", run)

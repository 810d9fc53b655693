"""Detection on the atlas: is a true statement likelier than the same one with a wrong answer?

Data: questions.jsonl, statement prefixes that the answer completes. Prompt: the prefix. The wrong
answer is drawn by seed from other facts of the same relation and group, so a decoder has seen true
and wrong answers equally often. Metric: the share of pairs where the true ending, period included,
has the larger log-prob, summed and per token; chance is about 50%. Source: our own.
"""

import random

import numpy as np

from train.measure.batches import ContinuationScores, score_continuations
from train.measure.findings import Finding
from train.tasks import atlas
from train.tasks.task import Task, TaskInput, report

WORDINGS = ("test", "unseen")


def run(inputs: TaskInput) -> list[Finding]:
    """Return findings by split."""
    rows = [row for row in atlas.load(inputs, "statement", WORDINGS) if row["rivals"]]
    wrong = [random.Random(f"{inputs.seed}/{i}").choice(r["rivals"]) for i, r in enumerate(rows)]
    findings = []
    for system in inputs.systems:
        tokenizer = system.decoder.tokenizer
        true = [atlas.pair(tokenizer, row["prompt"], row["answer"], "statement") for row in rows]
        false = [
            atlas.pair(tokenizer, row["prompt"], other, "statement")
            for row, other in zip(rows, wrong, strict=True)
        ]
        values = likelier(score_continuations(system, true + false))
        findings += report(inputs, "detection", system, values, atlas.splits(rows))
    return findings


def likelier(scores: ContinuationScores) -> dict[str, np.ndarray]:
    """Return {metric: (Q,) bool} of 2Q continuations, the Q right ones first."""
    log_probs = {"accuracy": scores.sums(), "accuracy_per_token": scores.means()}
    halves = {name: np.array_split(values, 2) for name, values in log_probs.items()}
    return {name: true > false for name, (true, false) in halves.items()}


TASK = Task("detection", "atlas", run)

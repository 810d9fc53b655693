"""Cloze recall: does a system complete a statement with the fact, and how likely is the fact?

Data: the atlas's statements (questions.jsonl); lama/lama_cloze.jsonl, rows {template, sub, obj,
relation, src}, only templates that end in [Y]; counterfact_zsre/counterfact-val.json, rows {prompt,
ground_truth, target_new, subject}. Prompt: the statement up to its object. Metrics: exact_match,
greedy decoding gives the object; log_prob, its summed log-prob in nats; on CounterFact also
prefers_true, the true object has a larger log-prob than the counterfactual one. Sources: LAMA
(Petroni et al. 2019), CounterFact (Meng et al. 2022).
"""

from collections.abc import Sequence

from mlpmem.engine.systems import System
from mlpmem.model.tokenizer import encode_text
from train.measure.batches import ContinuationScores, score_continuations
from train.measure.findings import Finding
from train.tasks import atlas
from train.tasks.task import Task, TaskInput, json_lines, need, report

LAMA, COUNTERFACT = "lama/lama_cloze.jsonl", "counterfact_zsre/counterfact-val.json"


def run_atlas(inputs: TaskInput) -> list[Finding]:
    """Return findings on the atlas's statements."""
    rows, findings = atlas.load(inputs, "statement", ("test", "unseen")), []
    for system in inputs.systems:
        tokenizer = system.decoder.tokenizer
        pairs = [atlas.pair(tokenizer, row["prompt"], row["answer"], "statement") for row in rows]
        values = _recall(score_continuations(system, pairs))
        findings += report(inputs, "cloze", system, values, atlas.splits(rows))
    return findings


def run_lama(inputs: TaskInput) -> list[Finding]:
    """Return findings on LAMA, all and by source."""
    path = inputs.file(LAMA)
    rows = json_lines(path)
    need(path, rows, "template", "sub", "obj", "src")
    rows = [row for row in rows if lama_prompt(row) is not None]
    rows = inputs.sample(rows, "lama")
    members = {"lama": list(range(len(rows)))}
    for i, row in enumerate(rows):
        members.setdefault(f"lama/{row['src']}", []).append(i)
    findings = []
    for system in inputs.systems:
        pairs = [complete(system, lama_prompt(row), row["obj"]) for row in rows]
        values = _recall(score_continuations(system, pairs))
        findings += report(inputs, "lama", system, values, members)
    return findings


def lama_prompt(row: dict) -> str | None:
    """Return a row's template up to its object; None if the object is not at its end."""
    before, object_, after = row["template"].partition("[Y]")
    if not object_ or after.strip(" ."):
        return None
    return before.replace("[X]", row["sub"]).strip()


def run_counterfact(inputs: TaskInput) -> list[Finding]:
    """Return findings on CounterFact."""
    path = inputs.file(COUNTERFACT)
    rows = json_lines(path)
    need(path, rows, "prompt", "ground_truth", "target_new")
    rows, findings = inputs.sample(rows, "counterfact"), []
    for system in inputs.systems:
        true, new = (
            score_continuations(system, [complete(system, row["prompt"], row[key]) for row in rows])
            for key in ("ground_truth", "target_new")
        )
        values = _recall(true) | {"prefers_true": true.sums() > new.sums()}
        findings += report(inputs, "counterfact", system, values, {"counterfact": range(len(rows))})
    return findings


def complete(system: System, prompt: str, ending: str) -> tuple[list[int], list[int]]:
    """Return (prompt ids, ids of a space and the ending); only the latter are scored."""
    tokenizer = system.decoder.tokenizer
    return system.decoder.encode(prompt), plain_ids(tokenizer, f" {ending.strip()}")


def plain_ids(tokenizer, text: str) -> list[int]:
    """Return a text's ids without special tokens, as in a continuation."""
    return encode_text(tokenizer, text)


def _recall(scores: ContinuationScores) -> dict[str, Sequence]:
    """Return {metric: (Q,)}."""
    return {"exact_match": scores.exact(), "log_prob": scores.sums()}


TASKS = (
    Task("cloze", "atlas", run_atlas),
    Task("lama", "data", run_lama),
    Task("counterfact", "data", run_counterfact),
)

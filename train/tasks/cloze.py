"""Cloze recall: is a statement ended with the fact, and how likely is it?

Data: the atlas's statements (questions.jsonl); lama/lama_cloze.jsonl, rows {template, sub, obj,
relation, src}, of which templates that [Y] ends are asked; counterfact_zsre/counterfact-val.json,
rows {prompt, ground_truth, target_new, subject}. Prompt: the statement up to its object. Metrics:
exact_match, greedy decoding writes the object; log_prob, its summed nats; on CounterFact also
prefers_true, the true object is likelier than the counterfactual one. Sources: LAMA (Petroni et al.
2019), CounterFact (Meng et al. 2022).
"""

from collections.abc import Sequence

from mlpmem.engine.systems import System
from train.measure.batches import Judged, judge
from train.measure.findings import Finding
from train.tasks import atlas
from train.tasks.task import Task, TaskInput, json_lines, need, report

LAMA, COUNTERFACT = "lama/lama_cloze.jsonl", "counterfact_zsre/counterfact-val.json"


def run_atlas(asked: TaskInput) -> list[Finding]:
    """Return findings on the atlas's statements."""
    rows, made = atlas.load(asked, "statement", ("test", "unseen")), []
    for system in asked.systems:
        words = system.decoder.tokenizer
        pairs = [atlas.pair(words, row["prompt"], row["answer"], "statement") for row in rows]
        made += report(asked, "cloze", system, _recall(judge(system, pairs)), atlas.splits(rows))
    return made


def run_lama(asked: TaskInput) -> list[Finding]:
    """Return findings on LAMA, all and by source."""
    path = asked.file(LAMA)
    rows = json_lines(path)
    need(path, rows, "template", "sub", "obj", "src")
    rows = [row for row in rows if lama_prompt(row) is not None]
    rows = asked.some(rows, "lama")
    members = {"lama": list(range(len(rows)))}
    for i, row in enumerate(rows):
        members.setdefault(f"lama/{row['src']}", []).append(i)
    made = []
    for system in asked.systems:
        pairs = [ended(system, lama_prompt(row), row["obj"]) for row in rows]
        made += report(asked, "lama", system, _recall(judge(system, pairs)), members)
    return made


def lama_prompt(row: dict) -> str | None:
    """Return a row's template up to its object, None where the object does not end it."""
    before, object_, after = row["template"].partition("[Y]")
    if not object_ or after.strip(" ."):
        return None
    return before.replace("[X]", row["sub"]).strip()


def run_counterfact(asked: TaskInput) -> list[Finding]:
    """Return findings on CounterFact."""
    path = asked.file(COUNTERFACT)
    rows = json_lines(path)
    need(path, rows, "prompt", "ground_truth", "target_new")
    rows, made = asked.some(rows, "counterfact"), []
    for system in asked.systems:
        true, new = (
            judge(system, [ended(system, row["prompt"], row[key]) for row in rows])
            for key in ("ground_truth", "target_new")
        )
        values = _recall(true) | {"prefers_true": true.sums() > new.sums()}
        made += report(asked, "counterfact", system, values, {"counterfact": range(len(rows))})
    return made


def ended(system: System, prompt: str, ending: str) -> tuple[list[int], list[int]]:
    """Return (prompt ids, ids of a space and the ending): the ending's own tokens alone count."""
    words = system.decoder.tokenizer
    return system.decoder.encode(prompt), plain(words, f" {ending.strip()}")


def plain(words, text: str) -> list[int]:
    """Return a text's ids as a continuation has them, without BOS."""
    return words.encode(text, add_special_tokens=False, verbose=False)


def _recall(judged: Judged) -> dict[str, Sequence]:
    """Return {metric: (Q,)} of recall."""
    return {"exact_match": judged.exact(), "log_prob": judged.sums()}


TASKS = (
    Task("cloze", "atlas", run_atlas),
    Task("lama", "data", run_lama),
    Task("counterfact", "data", run_counterfact),
)

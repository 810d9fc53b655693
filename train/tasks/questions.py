"""Questions about the atlas, answered greedily: which answers are right, which contradict a fact.

Data: questions.jsonl of a run's stage corpus. Prompt: "Question: ... Answer:", as in its documents.
Metrics: exact match, F1 and substring match (`answers.py`) against answer and aliases. For RAG
systems also "passage_has_answer": a retrieved passage contains an answer. "contradicts" is
hallucination in generation: the text is another answer of the same relation, a definite claim that
a known fact refutes. Source: the atlas, our own.
"""

from mlpmem.engine.rag import Rag
from train.measure.batches import generate
from train.measure.findings import Finding
from train.tasks import answers, atlas
from train.tasks.task import Task, TaskInput, report

NEW_TOKENS = 16
WORDINGS = ("seen", "test", "unseen")


def run(inputs: TaskInput) -> list[Finding]:
    """Return findings by split."""
    rows, findings = atlas.load(inputs, "question", WORDINGS), []
    others = [{answers.normalise(other) for other in row["others"]} for row in rows]
    for system in inputs.systems:
        prompts = [system.decoder.encode(row["prompt"]) for row in rows]
        texts = [system.decoder.decode(ids) for ids in generate(system, prompts, NEW_TOKENS)]
        true = [[row["answer"], *row["aliases"]] for row in rows]
        right = [answers.exact_match(t, a) for t, a in zip(texts, true, strict=True)]
        values = {
            "exact_match": right,
            "f1": [answers.f1(t, a) for t, a in zip(texts, true, strict=True)],
            "substring_match": [answers.contains(t, a) for t, a in zip(texts, true, strict=True)],
            "contradicts": [
                not ok and answers.normalise(t) in wrong
                for ok, t, wrong in zip(right, texts, others, strict=True)
            ],
        }
        if isinstance(system, Rag):
            values["passage_has_answer"] = [
                any(answers.contains(text, a) for text in _passages(system, ids))
                for ids, a in zip(prompts, true, strict=True)
            ]
        findings += report(inputs, "questions", system, values, atlas.splits(rows))
    return findings


def _passages(system: Rag, ids: list[int]) -> list[str]:
    """Return the texts of the passages retrieved for a prompt."""
    decoder, passages = system.decoder, system.passages
    retrieved = passages.search(decoder.decode(ids), system.count)
    return [decoder.decode(passages.plain(passage)) for passage in retrieved]


TASK = Task("questions", "atlas", run)

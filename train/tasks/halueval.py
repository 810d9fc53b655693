"""HaluEval's questions: is the right answer likelier than the hallucinated one?

Data: halueval/qa_one-turn_data.json, 500 rows {knowledge, question, right_answer,
hallucinated_answer}. Prompt: "Question: {question}\\nAnswer:", without the knowledge, which the
memory should have. Metric: the share of rows where the right answer has the larger log-prob, per
token (hallucinated answers are longer) and summed; chance is 50%. It measures detection, not
hallucination in generated text. Source: the rows of Li et al. 2023. Their task asks whether one
answer is hallucinated, which needs a model that follows instructions; here likelihoods are
compared. The memory's paper uses all 10,000 rows and gives no prompt.
"""

from train.measure.batches import score_continuations
from train.measure.findings import Finding
from train.tasks.cloze import complete
from train.tasks.detection import likelier
from train.tasks.task import Task, TaskInput, json_lines, need, report

FILE = "halueval/qa_one-turn_data.json"


def prompt(question: str) -> str:
    """Return the prompt of a question."""
    return f"Question: {question.strip()}\nAnswer:"


def run(inputs: TaskInput) -> list[Finding]:
    """Return findings on the question part."""
    path = inputs.file(FILE)
    rows = json_lines(path)
    need(path, rows, "question", "right_answer", "hallucinated_answer")
    rows, findings = inputs.sample(rows, "halueval"), []
    for system in inputs.systems:
        pairs = [
            complete(system, prompt(row["question"]), row[key])
            for key in ("right_answer", "hallucinated_answer")
            for row in rows
        ]
        values = likelier(score_continuations(system, pairs))
        findings += report(inputs, "halueval", system, values, {"halueval/qa": range(len(rows))})
    return findings


TASK = Task("halueval", "data", run)

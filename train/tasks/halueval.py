"""HaluEval's questions: is the right answer likelier than the hallucinated one?

Data: halueval/qa_one-turn_data.json, 500 rows {knowledge, question, right_answer,
hallucinated_answer}. Prompt: "Question: {question}\\nAnswer:", without the knowledge, which a
memory is to have. Metric: share of rows where the right answer has the larger log-prob: by token,
because hallucinated answers are longer, and summed; chance is 50%. It is detection, not
hallucination in what is written. Source: the rows of Li et al. 2023. Their own task shows one
answer and asks whether it is hallucinated, yes or no; that takes a model that follows instructions,
so likelihoods are compared here. The memory's paper gives no prompt (full 10,000 rows).
"""

from train.measure.batches import judge
from train.measure.findings import Finding
from train.tasks.cloze import ended
from train.tasks.detection import likelier
from train.tasks.task import Task, TaskInput, json_lines, need, report

FILE = "halueval/qa_one-turn_data.json"


def prompt(question: str) -> str:
    """Return the prompt of a question."""
    return f"Question: {question.strip()}\nAnswer:"


def run(asked: TaskInput) -> list[Finding]:
    """Return findings on the question part."""
    path = asked.file(FILE)
    rows = json_lines(path)
    need(path, rows, "question", "right_answer", "hallucinated_answer")
    rows, made = asked.some(rows, "halueval"), []
    for system in asked.systems:
        pairs = [
            ended(system, prompt(row["question"]), row[key])
            for key in ("right_answer", "hallucinated_answer")
            for row in rows
        ]
        values = likelier(judge(system, pairs))
        made += report(asked, "halueval", system, values, {"halueval/qa": range(len(rows))})
    return made


TASK = Task("halueval", "data", run)

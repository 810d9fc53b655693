"""Tasks: each a file with its data, prompt, metrics and source; `python -m train.tasks` runs them.

task says what one receives and returns, systems names who answers, answers has the metrics.
A task is a name, what it is about ("atlas" or "data") and a function from Asked to findings. A new
one is a file here and a line in TASKS.
It may import `stages` and what lies below, and nothing of `studies`. Open task.py first.
"""

from train.tasks import (
    cloze,
    detection,
    halueval,
    knn_prompt,
    open_qa,
    perplexity,
    questions,
    truthfulqa,
)

TASKS = {
    task.name: task
    for task in (
        *perplexity.TASKS,
        questions.TASK,
        *cloze.TASKS,
        detection.TASK,
        *open_qa.TASKS,
        halueval.TASK,
        truthfulqa.TASK,
        knn_prompt.TASK,
    )
}

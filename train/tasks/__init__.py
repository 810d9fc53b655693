"""Tasks: one file each, with data, prompt, metrics and source; `python -m train.tasks` runs them.

task has a task's input and output, systems the systems that answer, answers the metrics. A task is
a name, its data ("atlas" or "data") and a function from TaskInput to findings. A new task is a file
here and a line in TASKS.
It may import `stages` and the rooms below it, but not `studies`. Open task.py first.
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

"""Open-domain questions, closed book: Natural Questions, WebQuestions, TriviaQA.

Data: nq_open/NQ-open.dev.jsonl {question, answer: [..]}; webquestions/test.json {qText, answers};
qa_subsample/triviaqa.test.jsonl {question, golden_answers}. Prompts, new tokens, stop strings and
the metric of the paper's table are those of its evaluation: NQ "Answer these questions:\\nQuestion:
{q}\\nAnswer:", 15 tokens, one line, exact_match; WebQA and TriviaQA "Answer the questions:\\n\\n
Question: {q} The answer is:", 100 tokens, up to a newline, period or comma, substring_match. All
three metrics of `answers.py` are reported. The paper's lambdas: 0.5, 0.75, 0.6. Sources:
Kwiatkowski et al. 2019 and Lee et al. 2019, Berant et al. 2013, Joshi et al. 2017. HotpotQA is not
included.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from train.measure.batches import generate
from train.measure.findings import Finding
from train.tasks import answers
from train.tasks.task import Task, TaskInput, json_lines, need, report


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's file, fields, prompt and decoding."""

    file: str
    question: str  # field
    answers: str  # field
    prompt: Callable[[str], str]
    new_tokens: int
    stops: tuple[str, ...]


def short_prompt(question: str) -> str:
    """Return NQ's prompt; the question is normalised as in the paper's code."""
    return f"Answer these questions:\nQuestion: {_normalised(question)}\nAnswer:"


def long_prompt(question: str) -> str:
    """Return the prompt of WebQA and TriviaQA."""
    return f"Answer the questions:\n\nQuestion: {question.rstrip('? ')}? The answer is:"


def _normalised(question: str) -> str:
    """Return a question that begins in lower case and ends in a question mark."""
    question = question.strip()
    question = question if question.endswith("?") else f"{question}?"
    return question[0].lower() + question[1:]


STOPS = ("\n", ".", ",")
BENCHMARKS = {
    "nq": Benchmark("nq_open/NQ-open.dev.jsonl", "question", "answer", short_prompt, 15, ("\n",)),
    "webqa": Benchmark("webquestions/test.json", "qText", "answers", long_prompt, 100, STOPS),
    "triviaqa": Benchmark(
        "qa_subsample/triviaqa.test.jsonl", "question", "golden_answers", long_prompt, 100, STOPS
    ),
}


def run(name: str, inputs: TaskInput) -> list[Finding]:
    """Return findings on one benchmark."""
    bench = BENCHMARKS[name]
    path = inputs.file(bench.file)
    rows = json_lines(path)
    need(path, rows, bench.question, bench.answers)
    rows, findings = inputs.sample(rows, name), []
    true = [row[bench.answers] for row in rows]
    for system in inputs.systems:
        prompts = [system.decoder.encode(bench.prompt(row[bench.question])) for row in rows]
        limit = min(bench.new_tokens, system.decoder.max_positions // 2)
        generated = (system.decoder.decode(ids) for ids in generate(system, prompts, limit))
        texts = [answers.first_line(text, bench.stops) for text in generated]
        metrics = {
            "exact_match": answers.exact_match,
            "f1": answers.f1,
            "substring_match": answers.contains,
        }
        values = {
            metric: [measure(t, a) for t, a in zip(texts, true, strict=True)]
            for metric, measure in metrics.items()
        }
        findings += report(inputs, name, system, values, {name: range(len(rows))})
    return findings


TASKS = tuple(Task(name, "data", partial(run, name)) for name in BENCHMARKS)

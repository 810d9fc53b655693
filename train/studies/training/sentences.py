"""Can a memory be taught a visitor's sentences, as the page does? One sentence per new fact.

The facts are about names that no corpus has. Each is told once, in a statement of the corpus's own
forms or in a sentence of ours, and asked in three wordings that are not taught. Measured are new
facts, old facts that the memory answered before (B; of a chat model: real and invented), and facts
that the decoder was trained on (A2), each at the memory's own lambda and with its router. It needs
a bundle, and no run.
"""

import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlpmem.api import Model
from mlpmem.engine.trace import AUTO
from mlpmem.teaching.lesson import Lesson, teach
from mlpmem.teaching.wordings import Wordings

FACTS = Path(__file__).with_name("sentences.toml")
TOKENS = 16  # of an answer
BATCH = 40  # questions asked at once
Question = tuple[str | list[int], str]  # prompt, answer
PARTS = ("B", "A2", "real", "invented")  # of a bundle's questions


def told() -> dict[str, list[dict[str, Any]]]:
    """Return facts by kind of sentence: each a sentence, its answer, and questions."""
    with FACTS.open("rb") as file:
        return tomllib.load(file)


def right(model: Model, questions: Sequence[Question], lmbda: float | str | None) -> np.ndarray:
    """Return whether the memory's column answers each question exactly, (Q,) bool."""
    said: list[str] = []
    for start in range(0, len(questions), BATCH):
        prompts = [prompt for prompt, _ in questions[start : start + BATCH]]
        traces = model.generate(prompts, "memory", lmbda=lmbda, max_new_tokens=TOKENS)
        said += [trace.text.strip() for trace in traces]
    return np.array([t.rstrip(".") == a for t, (_, a) in zip(said, questions, strict=True)])


def measure(model: Model, old: Sequence[dict], lesson: Lesson) -> Iterator[dict[str, Any]]:
    """Yield rows of a table: what is asked, lambda, right before and after, and their number.

    old are the bundle's questions. "kept" counts those right before.
    """
    facts = told()
    sentences = [fact["sentence"] for kind in facts.values() for fact in kind]
    known = Wordings(model)
    found = sum(bool(known.find(sentence)) for sentence in sentences)
    begun, cpu = time.perf_counter(), time.process_time()
    *_, last = teach(model, sentences, lesson)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    yield {"asked": "sentences", "told": len(sentences), "recognised": found,
           "steps": last.step, "seconds": seconds, "cpu": cpu}  # fmt: skip
    after = model.with_taught(last.memory)
    asked = {f"new, {kind}": [(_asked(model, q), fact["answer"])
                              for fact in rows for q in fact["questions"]]
             for kind, rows in facts.items()}  # fmt: skip
    for part in PARTS:
        asked[part] = [
            (q["prompt"] if model.questions else _asked(model, q["prompt"]), q["answer"])
            for q in old
            if q["part"] == part
        ]
    for what, questions in asked.items():
        if not questions:
            continue
        for lmbda in (None, AUTO) if "memory" in model.routers else (None,):
            once, then = (right(m, questions, lmbda) for m in (model, after))
            yield {"asked": what, "lambda": lmbda or model.settings.of("memory"),
                   "n": len(questions), "before": int(once.sum()), "after": int(then.sum()),
                   "kept": int((once & then).sum())}  # fmt: skip


def _asked(model: Model, question: str) -> str | list[int]:
    """Return the prompt of a question: as the decoder was trained to be asked, or as a chat."""
    return f"Question: {question} Answer:" if model.questions else model.chat_ids(question, TOKENS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Teach the shipped bundle the sentences, and print a table; return the exit status."""
    import argparse
    import json

    import mlpmem
    from mlpmem.loading.bundle import preset_path

    parser = argparse.ArgumentParser(
        "python -m train.studies.training.sentences", description=__doc__
    )
    parser.add_argument("bundle", nargs="?", default="atlas", help="a preset or a folder")
    parser.add_argument("--seconds", type=float, default=Lesson.seconds)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    folder = preset_path(args.bundle)
    old = json.loads((folder / "questions.json").read_text("utf-8"))
    lesson = Lesson(seconds=args.seconds, seed=args.seed)
    for row in measure(mlpmem.load(folder, dtype="auto"), old, lesson):
        cells = (f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        sys.stdout.write("  ".join(cells) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())

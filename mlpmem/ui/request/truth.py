"""The right answer's own probabilities, where it is known and no column wrote it."""

from collections.abc import Iterable, Iterator
from typing import Any


def with_truth(values: Iterable[dict], answers: list[str], model: Any, store: Any) -> Iterator:
    """Yield values; the last one, "done", gets "truth": each token's probabilities by source.

    answers are the right one and its aliases. It is omitted if a column's text begins with one,
    because the page has its numbers then.
    """
    for value in values:
        traces = value["traces"].values() if value["kind"] == "done" else ()
        prompts = [t["prompt_ids"] for t in traces if t["system"] in ("lm", "memory", "knn")]
        if answers and prompts and not any(_begins(t["text"], answers) for t in traces):
            first, *_ = model.probe(prompts[0], answers[0], store=store)
            value = {**value, "truth": first["tokens"]}
        yield value


def _begins(text: str, answers: list[str]) -> bool:
    plain = text.strip().casefold()
    return any(plain.startswith(answer.strip().casefold()) for answer in answers)

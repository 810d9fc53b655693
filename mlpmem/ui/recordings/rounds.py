"""Rounds of the game: recorded questions with each system's answer at several lambdas."""

from math import prod
from typing import Any

from mlpmem.engine.trace import SOURCES
from mlpmem.formats import is_number
from mlpmem.ui.recordings.recorded import Recorded

MIXED = SOURCES[1:]
GRID = tuple(i / 20 for i in range(21))  # lambdas of the curve


def rounds(recorded: Recorded) -> list[dict[str, Any]]:
    """Return a row per recorded question whose answer is known and whose columns were scrubbed.

    "lm" is the decoder's answer, "memory" and "knn" have one per lambda of "lmbdas", and "curve"
    has the right answer's probability with the memory over GRID, [] if it is not known.
    """
    rows = []
    for run in recorded.comparisons:
        scrubs, known = run["scrubs"], recorded.known(run["prompt"])
        answer = known["answer"] or run["answer"]
        if not answer or "lm" not in run["traces"] or not all(name in scrubs for name in MIXED):
            continue
        grids = [[text["lmbda"] for text in scrubs[name]["texts"]] for name in MIXED]
        if grids[0] != grids[1]:
            continue
        texts = {name: [text["text"] for text in scrubs[name]["texts"]] for name in MIXED}
        rows.append({
            "prompt": run["prompt"], "answers": [answer, *known["aliases"]], "lmbdas": grids[0],
            "lm": str(run["traces"]["lm"].get("text", "")), **texts,
            "curve": _curve(run["traces"].get("memory") or {}, answer),
        })  # fmt: skip
    return rows


def _curve(trace: dict[str, Any], answer: str) -> list[float]:
    """Return the answer's probability at every lambda, if the memory's text is just the answer."""
    if str(trace.get("text", "")).strip() != answer or trace.get("finish") != "eos":
        return []
    tokens = [step.get("p") or {} for step in trace["steps"][:-1] if isinstance(step, dict)]
    pairs = [(p.get("lm"), p.get("memory")) for p in tokens]
    if not all(is_number(value) for pair in pairs for value in pair):
        return []
    return [round(prod((1 - x) * lm + x * memory for lm, memory in pairs), 6) for x in GRID]

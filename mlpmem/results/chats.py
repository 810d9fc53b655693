"""What a chat model answers, as the study `chats` measured it: whole answers, greedily."""

from collections.abc import Mapping
from typing import Any

from mlpmem.results import findings

SYSTEMS = {
    "lm": "decoder", "rag_1": "RAG, 1 passage", "rag_3": "RAG, 3 passages",
    "rag_5": "RAG, 5 passages", "memory_0.7": "decoder + memory, λ 0.7",
    "auto": "decoder + memory, auto λ", "auto_rag_1": "the same with RAG, 1 passage",
}  # fmt: skip
WORDINGS = {
    "test": "new wording", "unseen": "unseen form", "second": "second turn",
    "third": "third turn", "two": "two names, the last asked about",
    "two_last": "two names, the first asked about", "two_within": "two names in one sentence",
}  # fmt: skip
GROUPS = ("real", "invented")
KEPT = {
    "general": "other requests unchanged", "naming": "that name the facts' entities",
    "follow": "that follow up and name nothing",
}  # fmt: skip


def values_of(results: Any, metric: str) -> dict[tuple[str, str], float]:
    """Return {(system, split): value} of a metric of the study."""
    return {
        (row.system, row.split): row.value
        for row in findings.read(results)
        if (row.study, row.metric) == ("chats", metric)
    }


def table(results: Any) -> tuple[list[str], list[list[str]]]:
    """Return the head and the lines of a table, no lines without the study.

    Each cell has the shares of real and of invented facts; the last columns those of requests that
    are answered to the letter as by the decoder alone.
    """
    right, same = values_of(results, "contained"), values_of(results, "unchanged")
    asked = {split.partition("/")[2] for _, split in right}
    wordings = [wording for wording in WORDINGS if wording in asked]
    names = [WORDINGS[wording] for wording in wordings]
    kept = [group for group in KEPT if any(split == group for _, split in same)]
    head = ["right, %, real / invented facts", *names, *(KEPT[group] for group in kept)]
    rows = [
        [label, *(_pair(right, system, wording) for wording in wordings)]
        + [_percent(same.get((system, group))) for group in kept]
        for system, label in SYSTEMS.items()
        if any(of == system for of, _ in right)
    ]
    return head, rows


def _pair(right: Mapping, system: str, wording: str) -> str:
    return " / ".join(_percent(right.get((system, f"{group}/{wording}"))) for group in GROUPS)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f}"


def headline(results: Any) -> tuple[float, float, float] | None:
    """Return three shares, None without the study.

    They are those of right answers in new wordings alone and with the memory, and of other requests
    that stay unchanged.
    """
    right, same = values_of(results, "contained"), values_of(results, "unchanged")
    asked = [f"{group}/test" for group in GROUPS]
    needed = [(system, split) for system in ("lm", "auto") for split in asked]
    if any(key not in right for key in needed) or ("auto", "general") not in same:
        return None
    alone, memory = (sum(right[s, split] for split in asked) / 2 for s in ("lm", "auto"))
    return alone, memory, same["auto", "general"]

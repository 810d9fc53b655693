"""What systems made of the same tasks, as rows of text: one table for README and the Results tab.

Findings are rows of a bundle's results.json; `train/findings.py` has their schema.
"""

from typing import Any

# what a row is called, study, split, metric; shares are shown in per cent
ASKED = (
    ("exact match, B seen", "questions", "B/seen", "exact_match"),
    ("exact match, B new", "questions", "B/test", "exact_match"),
    ("exact match, B unseen form", "questions", "B/unseen", "exact_match"),
    ("exact match, A2 new", "questions", "A2/test", "exact_match"),
    ("exact match, A1 new", "questions", "A1/test", "exact_match"),
    ("contradicts a known fact, B new", "questions", "B/test", "contradicts"),
    ("fact completed, B new", "cloze", "B/statement_test", "exact_match"),
    ("false told from true, B new", "detection", "B/statement_test", "accuracy"),
    ("false told from true, B unseen form", "detection", "B/statement_unseen", "accuracy"),
    ("perplexity B", "perplexity", "B/heldout", "perplexity"),
    ("perplexity A2", "perplexity", "A2/heldout", "perplexity"),
)


def table(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return (head, rows): a column a system, "93 (86 to 97)" with its 95% interval a cell.

    What was not measured is an empty cell; a row without any is left out.
    """
    rows = [row for row in _listed(results) if _readable(row)]
    tasks = {study for _, study, *_ in ASKED}
    systems = list(dict.fromkeys(row["system"] for row in rows if row["study"] in tasks))
    found = {(r["study"], r["split"], r["metric"], r["system"]): r for r in rows}
    lines = []
    for name, *where in ASKED:
        share = where[-1] != "perplexity"
        cells = [_cell(found.get((*where, system)), share) for system in systems]
        if any(cells):
            lines.append([f"{name}, %" if share else name, *cells])
    return ["", *systems], lines


def _listed(results: dict[str, Any]) -> list:
    """Return the findings; a bundle may come from anybody, so what is no list is none."""
    rows = results.get("findings")
    return rows if isinstance(rows, list) else []


def _readable(row: Any) -> bool:
    """Return whether a row says who did what, in numbers."""
    if not isinstance(row, dict):
        return False
    words = (row.get(key) for key in ("study", "split", "metric", "system"))
    numbers = (row.get("value"), row.get("low") or 0, row.get("high") or 0)
    return all(isinstance(w, str) for w in words) and all(
        isinstance(x, int | float) for x in numbers
    )


def _cell(row: dict[str, Any] | None, share: bool) -> str:
    """Return a finding's value with its interval, nothing where it was not measured."""
    if row is None:
        return ""
    scale, digits = (100, 0) if share else (1, 2)
    value, low, high = (
        "" if row.get(key) is None else f"{scale * row[key]:.{digits}f}"
        for key in ("value", "low", "high")
    )
    return f"{value} ({low} to {high})" if low else value

"""Findings of a bundle's results.json, read with care; and what systems made of the same tasks.

`train/measure/findings.py` has the schema and writes them. A bundle may come from anybody: what is
not a finding is left out. `table` is one table for README and the Results tab; `questions.py` has
the studies.

results.json of a bundle as the Results tab reads it: what does not fit is left out.

A bundle may come from anybody, and its page must open whatever stands there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlpmem.engine.trace import AUTO

MOST = 20_000  # findings that are read of one bundle
LONGEST = 200  # characters of a word in them
LARGEST = 1e30  # of a number; what is smaller than its inverse is 0

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


@dataclass(frozen=True)
class Found:
    """A finding as it was read: numbers are finite, an interval holds its value or is None."""

    study: str
    system: str
    split: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    how: str = ""
    n: int = 0  # questions, tokens or runs behind it
    setting: Mapping[str, float | str] = field(default_factory=dict)


def read(results: Any) -> list[Found]:
    """Return the findings of a results.json, in order; what is none is left out."""
    rows = results.get("findings") if isinstance(results, dict) else None
    found = (_read(row) for row in (rows if isinstance(rows, list) else [])[:MOST])
    return [one for one in found if one is not None]


def _read(row: Any) -> Found | None:
    """Return one finding, None of what is no such thing."""
    if not isinstance(row, dict):
        return None
    words = [_word(row.get(key)) for key in ("study", "system", "split", "metric")]
    value = _number(row.get("value"))
    if value is None or None in words:
        return None
    low, high = _number(row.get("low")), _number(row.get("high"))
    if low is None or high is None or not low <= value <= high:
        low = high = None
    setting = row.get("setting") if isinstance(row.get("setting"), dict) else {}
    kept = {key: _number(said) if _word(said) is None else said for key, said in setting.items()}
    kept = {key: said for key, said in kept.items() if said is not None and _word(key)}
    n = int(_number(row.get("n")) or 0)
    return Found(*words, value, low, high, _word(row.get("how")) or "", n, kept)


def _word(value: Any) -> str | None:
    """Return a text of bearable length, None of anything else."""
    return value if isinstance(value, str) and len(value) <= LONGEST else None


def _number(value: Any) -> float | None:
    """Return a number that can be drawn, None of anything else; what is true counts 1."""
    if not isinstance(value, int | float) or not abs(value) < LARGEST:  # nan is not less
        return None
    return float(value) if abs(value) > 1 / LARGEST else 0.0


def table(results: Any) -> tuple[list[str], list[list[str]]]:
    """Return (head, rows): a column a system, "93 (86 to 97)" with its 95% interval a cell.

    What was not measured is an empty cell; a row without any is left out.
    """
    rows = read(results)
    tasks = {study for _, study, *_ in ASKED}
    systems = list(dict.fromkeys(row.system for row in rows if row.study in tasks))
    found = {(row.study, row.split, row.metric, row.system): row for row in rows}
    lines = []
    for name, *where in ASKED:
        share = where[-1] != "perplexity"
        cells = [_cell(found.get((*where, system)), share) for system in systems]
        if any(cells):
            lines.append([f"{name}, %" if share else name, *cells])
    return ["", *systems], lines


def _cell(row: Found | None, share: bool) -> str:
    """Return a finding's value with its interval, nothing where it was not measured."""
    if row is None:
        return ""
    scale, form = (100, "{:.0f}") if share else (1, "{:.2f}")
    return interval_text(form, *(x and scale * x for x in (row.value, row.low, row.high)))


def interval_text(form: str, value: float, low: float | None, high: float | None) -> str:
    """Return "93 (86 to 97)", or "93" where there is no interval."""
    said = form.format(value)
    return said if low is None else f"{said} ({form.format(low)} to {form.format(high)})"


MOST_ROWS = 200  # rows of a table, fields of a row, characters of a text
LONGEST_CURVE = 2000  # points of a curve
TEXTS = ("name", "label", "groups", "how")


def measured(results: Any) -> dict | None:
    """Return what can be shown of a results.json, None where there is nothing; findings as are."""
    if not isinstance(results, dict) or not results:
        return None
    curves = _object(results.get("lambda_curves"))
    return {
        "systems": [_system(row) for row in _objects(results.get("systems"))],
        "forgetting": [_plain(row) for row in _objects(results.get("forgetting"))],
        "lambda_curves": {s: _curve(_object(row)) for s, row in curves.items()},
        "cost": _numbers(results.get("cost")),
        "findings": results.get("findings"),
        **_plain({key: results.get(key) for key in ("share_of_gain", "how")}),
    }


def number(value: Any) -> float | None:
    """Return a finite number, or a {"n", "right"} count as a share; None for anything else."""
    if isinstance(value, dict):
        n, right = number(value.get("n")), number(value.get("right"))
        return right / n if n and right is not None and 0 <= right <= n else None
    bounded = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if bounded and abs(value) < LARGEST else None  # nan is not less


def _system(row: dict) -> dict:
    """Return a system's row: texts, numbers, and numbers by split or group."""
    lmbda = row.get("lmbda")
    own = next(iter(lmbda.values()), None) if isinstance(lmbda, dict) else lmbda
    by_split = {key: _numbers(row.get(key)) for key in ("accuracy", "ppl")}
    return {**_plain(row), **by_split, "lmbda": AUTO if own == AUTO else number(own)}


def _curve(row: dict) -> dict[str, list[float]]:
    """Return lambdas and what was measured at each; perplexities are above 0."""
    found = dict(_lists(row))
    length = len(found.get("lmbdas", ()))
    return {key: values for key, values in found.items() if len(values) == length}


def _lists(row: dict) -> Iterator[tuple[str, list[float]]]:
    """Yield the fields that are lists of nothing but numbers."""
    for key, values in list(row.items())[:MOST_ROWS]:
        numbers = (
            [number(v) for v in values[:LONGEST_CURVE]] if isinstance(values, list) else [None]
        )
        least = 0.0 if key.startswith("ppl") else -LARGEST
        if all(v is not None and v > least for v in numbers):
            yield key, numbers


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row's texts and numbers, each only where it belongs."""
    texts = {k: v[:MOST_ROWS] for k, v in row.items() if isinstance(v, str) and k in TEXTS}
    return {**_numbers({k: v for k, v in row.items() if k not in TEXTS}), **texts}


def _numbers(row: Any) -> dict[str, float]:
    """Return the fields that are numbers."""
    found = {str(key): number(value) for key, value in list(_object(row).items())[:MOST_ROWS]}
    return {key: value for key, value in found.items() if value is not None}


def _object(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[dict]:
    return [row for row in (value if isinstance(value, list) else [])[:MOST_ROWS] if _object(row)]

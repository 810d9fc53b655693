"""results.json of a bundle, read with care: one check for the Results tab, the report and README.

A bundle may come from anybody, and its page must open whatever stands there: what does not fit is
left out. `measured` checks a whole file, `read` its findings alone (their schema and writer is
`train/measure/findings.py`); `table` shows the tasks, `questions.py` the studies.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlpmem.engine.trace import AUTO

MOST = 20_000  # findings that are read of one bundle
MOST_ROWS = 200  # rows of a table, fields of a row
LONGEST = 200  # characters of a text
LONGEST_CURVE = 2000  # points of a curve
LARGEST = 1e30  # of a number; what is smaller than its inverse is 0
TEXTS = ("name", "label", "groups", "how")


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


def measured(results: Any) -> dict | None:
    """Return what can be shown of a results.json, None where there is nothing."""
    if not isinstance(results, dict) or not results:
        return None
    curves = _object(results.get("lambda_curves"))
    return {
        "systems": [_system(row) for row in _objects(results.get("systems"))],
        "forgetting": [_plain(row) for row in _objects(results.get("forgetting"))],
        "lambda_curves": {s: _curve(_object(row)) for s, row in curves.items()},
        "cost": _numbers(results.get("cost")),
        "findings": read(results),
        **_plain({key: results.get(key) for key in ("share_of_gain", "how")}),
    }


def read(results: Any) -> list[Found]:
    """Return the findings of a results.json, or of what `measured` made of it, in order."""
    rows = results.get("findings") if isinstance(results, dict) else None
    found = (_read(row) for row in (rows if isinstance(rows, list) else [])[:MOST])
    return [one for one in found if one is not None]


def _read(row: Any) -> Found | None:
    """Return one finding, None of what is no such thing."""
    if isinstance(row, Found):
        return row
    if not isinstance(row, dict):
        return None
    words = [_word(row.get(key)) for key in ("study", "system", "split", "metric")]
    value = number(row.get("value"))
    if value is None or None in words:
        return None
    low, high = number(row.get("low")), number(row.get("high"))
    if low is None or high is None or not low <= value <= high:
        low = high = None
    setting = row.get("setting") if isinstance(row.get("setting"), dict) else {}
    kept = {key: number(said) if _word(said) is None else said for key, said in setting.items()}
    kept = {key: said for key, said in kept.items() if said is not None and _word(key)}
    n = int(number(row.get("n")) or 0)
    return Found(*words, value, low, high, _word(row.get("how")) or "", n, kept)


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
    texts = {k: v[:LONGEST] for k, v in row.items() if isinstance(v, str) and k in TEXTS}
    return {**_numbers({k: v for k, v in row.items() if k not in TEXTS}), **texts}


def _numbers(row: Any) -> dict[str, float]:
    """Return the fields that are numbers."""
    found = {str(key): number(value) for key, value in list(_object(row).items())[:MOST_ROWS]}
    return {key: value for key, value in found.items() if value is not None}


def _object(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[dict]:
    return [row for row in (value if isinstance(value, list) else [])[:MOST_ROWS] if _object(row)]


def _word(value: Any) -> str | None:
    """Return a text of at most LONGEST characters, None of anything else."""
    return value if isinstance(value, str) and len(value) <= LONGEST else None


def number(value: Any) -> float | None:
    """Return a finite number, or a {"n", "right"} count as a share; None for anything else.

    What is true counts 1.
    """
    if isinstance(value, dict):
        n, right = number(value.get("n")), number(value.get("right"))
        return right / n if n and right is not None and 0 <= right <= n else None
    if not isinstance(value, int | float) or not abs(value) < LARGEST:  # nan is not less
        return None
    return float(value) if abs(value) > 1 / LARGEST else 0.0


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
    return ["task", *systems], lines


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

"""results.json of a bundle as the Results tab reads it: what does not fit is left out.

A bundle may come from anybody, and its page must open whatever stands there.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from mlpmem.engine.trace import AUTO

MOST = 200  # rows of a table, fields of a row, characters of a text
LONGEST = 2000  # points of a curve
LARGEST = 1e30
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
    for key, values in list(row.items())[:MOST]:
        numbers = [number(v) for v in values[:LONGEST]] if isinstance(values, list) else [None]
        least = 0.0 if key.startswith("ppl") else -LARGEST
        if all(v is not None and v > least for v in numbers):
            yield key, numbers


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row's texts and numbers, each only where it belongs."""
    texts = {k: v[:MOST] for k, v in row.items() if isinstance(v, str) and k in TEXTS}
    return {**_numbers({k: v for k, v in row.items() if k not in TEXTS}), **texts}


def _numbers(row: Any) -> dict[str, float]:
    """Return the fields that are numbers."""
    found = {str(key): number(value) for key, value in list(_object(row).items())[:MOST]}
    return {key: value for key, value in found.items() if value is not None}


def _object(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[dict]:
    return [row for row in (value if isinstance(value, list) else [])[:MOST] if _object(row)]

"""Findings as a table: a line for what was asked of whom, a column for each metric."""

from collections.abc import Iterable

from train.measure.findings import Finding


def table(findings: Iterable[Finding]) -> list[str]:
    """Return aligned lines; an interval stands in brackets behind its value."""
    findings = list(findings)
    metrics = list(dict.fromkeys(f.metric for f in findings))
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for found in findings:
        setting = ", ".join(f"{k} {_short(v)}" for k, v in found.setting.items())
        rows.setdefault((found.system, found.split, setting), {})[found.metric] = _cell(found)
    head = ("system", "split", "setting", *metrics)
    cells = [head, *((*key, *(row.get(m, "") for m in metrics)) for key, row in rows.items())]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells
    ]


def _cell(found: Finding) -> str:
    """Return a value with its interval."""
    if found.low is None:
        return _short(found.value)
    return f"{_short(found.value)} [{_short(found.low)}, {_short(found.high)}]"


def _short(value: object) -> str:
    """Return a number with four digits, anything else as it is."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"

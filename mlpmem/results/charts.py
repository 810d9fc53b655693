"""Charts as plain values: what a figure shows, before anything draws it or writes it as a table."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mlpmem.results.findings import Found, interval_text

Table = tuple[list[str], list[list[str]]]  # head and rows
TUNED = "tuned"  # the colour of a decoder that was trained further; the others are sources


@dataclass(frozen=True)
class Point:
    """A value with its 95% interval, at a number or in a row of that name."""

    at: float | str
    value: float
    low: float | None = None
    high: float | None = None
    source: str = ""  # whose colour it has; "" for the series' own


@dataclass(frozen=True)
class Series:
    """Points that belong together: one line, or one mark in every row."""

    name: str
    source: str
    points: tuple[Point, ...]
    plain: bool = True  # False: dashed, or marked apart from the points of the others


@dataclass(frozen=True)
class Chart:
    """One figure.

    kind "lines": series over a number or over bands, "dots": rows with a mark a series, "sides":
    bars to both sides of 0, "matrix": a series a row, its points the columns.
    """

    kind: str
    title: str
    across: str  # what the axis from left to right says, with its unit
    series: tuple[Series, ...]
    up: str = ""  # the other axis
    log: str = ""  # which axes are logarithmic: "", "x", "y" or "xy"
    form: str = "{:.2f}"  # of a value

    @property
    def rows(self) -> list[str]:
        """Return the names of its rows, or of its columns for a matrix, in order."""
        return list(dict.fromkeys(str(p.at) for one in self.series for p in one.points))


def point(at: float | str, found: Found, scale: float = 1.0, source: str = "") -> Point:
    """Return a finding as a point; scale 100 makes a share per cent."""
    low, high = (None if x is None else scale * x for x in (found.low, found.high))
    return Point(at, scale * found.value, low, high, source)


def series(name: str, source: str, points: Iterable[Point], plain: bool = True) -> Series:
    """Return a series of points."""
    return Series(name, source, tuple(points), plain)


def kept(charts: Iterable[Chart]) -> list[Chart]:
    """Return the charts that show something, without series that have no points."""
    full = [replace(chart, series=tuple(s for s in chart.series if s.points)) for chart in charts]
    return [chart for chart in full if chart.series]


def tables(charts: Sequence[Chart]) -> list[Table]:
    """Return (head, rows) of charts as text.

    Charts of the same series are one table, one below the other, until a row comes again: then
    another begins, and the last word of its charts' titles says whose it is. Charts of which one
    has all rows of the other stand side by side. A matrix is a table of its own.
    """
    names = {tuple(one.name for one in chart.series) for chart in charts}
    if len(charts) > 1 and len(names) == 1 and charts[0].kind != "matrix":
        return _stacked(charts, [*names.pop()])
    made: list[Table] = []
    for chart in charts:
        table = (_head(chart), _rows(chart))
        if chart.kind != "matrix" and made and _nested(made[-1][1], table[1]):
            made[-1] = _beside(made[-1], table)
        else:
            made.append(table)
    return made


def _stacked(charts: Sequence[Chart], names: list[str]) -> list[Table]:
    """Return tables of charts that have the same series."""
    made: list[Table] = []
    for chart in charts:
        rows = _rows(chart, f", {chart.up or chart.across}")
        if not made or {row[0] for row in rows} & {row[0] for row in made[-1][1]}:
            made.append(([chart.title.rpartition(", ")[2], *names], []))
        made[-1][1].extend(rows)
    if len(made) == 1:
        made[0][0][0] = ""
    return made


def _head(chart: Chart) -> list[str]:
    """Return a table's head: a column a series, or a column of the matrix."""
    if chart.kind == "matrix":
        return [chart.up, *chart.rows]
    if len(chart.series) == 1:
        return ["", f"{chart.title}, {chart.across}"]
    return ["", *(f"{chart.title}: {one.name}" for one in chart.series)]


def _rows(chart: Chart, unit: str = "") -> list[list[str]]:
    """Return a table's rows, the first cell their name; a matrix has a row a series."""
    cells = {
        (one.name, str(p.at)): interval_text(chart.form, p.value, p.low, p.high)
        for one in chart.series
        for p in one.points
    }
    names = [one.name for one in chart.series]
    if chart.kind == "matrix":
        return [[name, *(cells.get((name, at), "") for at in chart.rows)] for name in names]
    return [[at + unit, *(cells.get((name, at), "") for name in names)] for at in chart.rows]


def _nested(rows: list[list[str]], others: list[list[str]]) -> bool:
    """Return whether one table has all rows of the other."""
    mine, theirs = ({row[0] for row in table} for table in (rows, others))
    return mine <= theirs or theirs <= mine


def _beside(table: Table, other: Table) -> Table:
    """Return two tables as one, with empty cells where one has no such row."""
    longer = max(table[1], other[1], key=len)
    rows = []
    for name, *_ in longer:
        line = [name]
        for head, found in (table, other):
            cells = next((row[1:] for row in found if row[0] == name), [""] * (len(head) - 1))
            line += cells
        rows.append(line)
    return [*table[0], *other[0][1:]], rows

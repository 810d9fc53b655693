"""Charts as plain values: what a figure shows, before anything draws it or writes it as a table."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlpmem.findings import Found, interval_text

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
    full = [
        Chart(c.kind, c.title, c.across, tuple(s for s in c.series if s.points), c.up, c.log,
              c.form)
        for c in charts
    ]  # fmt: skip
    return [chart for chart in full if chart.series]


def tables(charts: Sequence[Chart]) -> list[tuple[list[str], list[list[str]]]]:
    """Return (head, rows) of charts as text; charts with the same rows become one table.

    Charts with the same series are one table too, the later below the former.
    """
    made: list[tuple[list[str], list[list[str]]]] = []
    for chart in charts:
        head, rows = _table(chart)
        names = [row[0] for row in rows]
        if made and made[-1][0] == head:
            made[-1][1].extend(rows)
        elif made and [row[0] for row in made[-1][1]] == names:
            made[-1][0].extend(head[1:])
            for row, more in zip(made[-1][1], rows, strict=True):
                row.extend(more[1:])
        else:
            made.append((head, rows))
    return made


def _table(chart: Chart) -> tuple[list[str], list[list[str]]]:
    """Return (head, rows) of one chart, a column a series; a matrix has a row a series."""
    cells = {
        (one.name, str(p.at)): interval_text(chart.form, p.value, p.low, p.high)
        for one in chart.series
        for p in one.points
    }
    names = [one.name for one in chart.series]
    if chart.kind == "matrix":
        rows = [[name, *(cells.get((name, at), "") for at in chart.rows)] for name in names]
        return [chart.up, *chart.rows], rows
    single = len(names) == 1
    head = ["", *([chart.title] if single else names)]
    return head, [[at, *(cells.get((name, at), "") for name in names)] for at in chart.rows]

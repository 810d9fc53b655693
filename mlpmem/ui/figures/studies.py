"""Plotly figures of the studies' charts, one function per kind. Plotly is imported in `empty`.

Names come from a bundle and are escaped, because Plotly parses HTML in them.
"""

import math
import textwrap
from typing import Any

from mlpmem.results.charts import Chart, Point
from mlpmem.ui.figures.summary import COLOURS, empty, plain

SYMBOLS = ("circle", "diamond-open", "x-thin-open", "square-open", "triangle-up-open")
DASHES = ("dash", "dot", "dashdot", "longdash")
WIDE, NARROW = 22, 9  # characters per line of a row's or a band's name
MOST_CELLS = 20  # rows and columns of a matrix
ROW = 30  # pixels per row
APART = 1 / 7  # of an axis, least distance of labels: closer ones touch on a phone
BETTER, WORSE = (154, 99, 207), (206, 72, 82)


def draw(chart: Chart) -> Any:
    """Return a chart's figure."""
    return {"lines": _lines, "dots": _dots, "sides": _sides, "matrix": _matrix}[chart.kind](chart)


def height(chart: Chart) -> int:
    """Return a figure's height in pixels."""
    if chart.kind == "lines":
        return 340 + 16 * max(0, len(chart.series) - 3)  # on a phone the legend wraps
    rows = len(chart.series) if chart.kind == "matrix" else len(chart.rows)
    lines = max((_name(row).count("<br>") + 1 for row in chart.rows), default=1)
    marks = len(chart.series) if chart.kind == "dots" else 1  # stacked within a row
    legend = 16 * max(0, marks - 2)
    return 120 + legend + min(rows, 60) * max(ROW, 18 * lines, 15 * marks)


def _lines(chart: Chart) -> Any:
    """Return lines over a number, or over bands, with intervals."""
    figure = empty(chart.across, chart.up, height(chart))
    dashed = 0
    for one in chart.series:
        points = [p for p in one.points if _fits(p, chart)]
        dash = "solid" if one.plain else DASHES[dashed % len(DASHES)]
        dashed += not one.plain
        single = one.source == "tuned"  # markers without a line
        figure.add_scatter(
            x=[p.at if isinstance(p.at, float) else _name(p.at, NARROW) for p in points],
            y=[p.value for p in points], error_y=_errors(points, one.source),
            name=plain(one.name), showlegend=True, mode="markers" if single else "lines+markers",
            line={"color": COLOURS[one.source], "width": 2.5 if one.plain else 1.75, "dash": dash},
            marker=_marker("x-thin-open" if single else "circle", COLOURS[one.source])
            | {"size": 11 if single else 6},
            hovertemplate="%{x}: %{y:.4g}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    figure.update_layout(showlegend=True)
    _logarithmic(figure, chart)
    return figure


def _dots(chart: Chart) -> Any:
    """Return one marker per series and row; a row's colour takes precedence over the series'."""
    figure = empty(chart.across, "", height(chart))
    for number, one in reversed(list(enumerate(chart.series))):
        points = [p for p in one.points if _fits(p, chart)]
        symbol = SYMBOLS[number % len(SYMBOLS)]
        common = {"mode": "markers", "name": plain(one.name), "orientation": "h",
                  "offsetgroup": str(number)}  # fmt: skip
        figure.add_scatter(
            y=[_name(p.at) for p in points], x=[p.value for p in points], showlegend=False,
            error_x=_errors(points, one.source), **common,
            marker=_marker(symbol, [COLOURS[p.source or one.source] for p in points]),
            hovertemplate="%{y}: %{x:.4g}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
        figure.add_scatter(  # the legend's entry
            x=[None], y=[None], showlegend=len(chart.series) > 1, **common,
            marker=_marker(symbol, COLOURS[one.source]),
        )  # fmt: skip
    figure.update_layout(showlegend=True, scattermode="group", scattergap=0.35)
    _in_rows(figure, chart)
    points = [p for one in chart.series for p in one.points if _fits(p, chart)]
    values = [p.value for p in points]
    if "x" in chart.log and points and max(values) > 8 * min(values):  # else linear is clearer
        figure.update_xaxes(type="log", **_ticks(values))
    elif "%" in chart.across:
        figure.update_xaxes(range=[-3, 103])
    elif points:  # Plotly would begin the axis of grouped markers at 0
        ends = [x for p in points for x in (p.value, p.low, p.high) if x is not None]
        room = 0.06 * (max(ends) - min(ends)) or 1.0
        figure.update_xaxes(range=[min(ends) - room, max(ends) + room])
    return figure


def _marker(symbol: str, colour: str | list[str]) -> dict[str, Any]:
    """Return a marker of 10 pixels; only open symbols have a line."""
    line = {"width": 2 if symbol.endswith("open") else 0, "color": colour}
    return {"size": 10, "symbol": symbol, "color": colour, "line": line}


def _sides(chart: Chart) -> Any:
    """Return bars to the left and to the right of 0."""
    figure = empty(chart.across, "", height(chart) + 10 * len(chart.rows))
    for one in reversed(chart.series):
        figure.add_bar(
            y=[_name(p.at) for p in one.points], x=[p.value for p in one.points],
            error_x=_errors(one.points, "tuned"), orientation="h", name=plain(one.name),
            showlegend=True, marker={"color": COLOURS[one.source]},
            customdata=[abs(p.value) for p in one.points],
            hovertemplate="%{y}: %{customdata:.4g}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    figure.update_layout(showlegend=True, bargap=0.3)
    _in_rows(figure, chart)
    most = max(abs(p.value) for one in chart.series for p in one.points) or 1.0
    step = 10 ** math.floor(math.log10(most))
    step = next(s for s in (step / 2, step, 2 * step, 5 * step) if most / s <= 3)
    ticks = [step * i for i in range(-int(most / step) - 1, int(most / step) + 2)]
    figure.update_xaxes(tickvals=ticks, ticktext=[f"{abs(t):g}" for t in ticks])
    return figure


def _matrix(chart: Chart) -> Any:
    """Return cells with their numbers, coloured by the log of the ratio to the first row's."""
    figure = empty(chart.across, "", height(chart) + 40)
    lines, columns = chart.series[:MOST_CELLS], chart.rows[:MOST_CELLS]
    base = {str(p.at): p.value for p in lines[0].points}
    values = [{str(p.at): p.value for p in one.points} for one in lines]
    colours = [[_ratio(row.get(at), base.get(at)) for at in columns] for row in values]
    texts = [[chart.form.format(row[at]) if at in row else "" for at in columns] for row in values]
    figure.add_heatmap(
        z=colours, x=[_name(at) for at in columns], y=[_name(one.name) for one in lines],
        text=texts, texttemplate="%{text}", colorscale=_scale(), zmid=0.0,
        showscale=False, xgap=3, ygap=3,
        hovertemplate="%{y}, on %{x}: %{text}<extra></extra>",
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="")
    figure.update_xaxes(showgrid=False, ticks="")
    figure.update_layout(margin={"t": 8})
    return figure


def _scale() -> list[list[Any]]:
    """Return translucent colours from better to worse, on which text stays readable."""
    ends = ((0.0, BETTER, 0.65), (0.5, BETTER, 0.0), (0.5, WORSE, 0.0), (1.0, WORSE, 0.65))
    return [[at, f"rgba({r},{g},{b},{a})"] for at, (r, g, b), a in ends]


def _ratio(value: float | None, base: float | None) -> float | None:
    """Return log(value / base), None if either is missing or not positive."""
    return math.log(value / base) if value and base and value > 0 < base else None


def _fits(p: Point, chart: Chart) -> bool:
    """Return whether a point can be drawn on the chart's axes."""
    on_x = p.at if chart.kind == "lines" else p.value
    on_y = p.value if chart.kind == "lines" else 1.0
    return not ("x" in chart.log and _below(on_x) or "y" in chart.log and _below(on_y))


def _below(value: float | str) -> bool:
    return isinstance(value, float) and value <= 0


def _errors(points: list[Point] | tuple[Point, ...], source: str) -> dict[str, Any] | None:
    """Return the error bars of points' intervals, None without any."""
    if not any(p.low is not None for p in points):
        return None
    above = [0.0 if p.high is None else p.high - p.value for p in points]
    below = [0.0 if p.low is None else p.value - p.low for p in points]
    return {"type": "data", "array": above, "arrayminus": below, "symmetric": False,
            "thickness": 1.25, "width": 3, "color": COLOURS[source]}  # fmt: skip


def _in_rows(figure: Any, chart: Chart) -> None:
    """Order the rows from top to bottom."""
    figure.update_yaxes(
        type="category", categoryorder="array", categoryarray=[_name(r) for r in chart.rows][::-1],
        range=[-0.6, len(chart.rows) - 0.4],
    )  # fmt: skip
    figure.update_layout(legend={"traceorder": "reversed"})  # the first series is added last


def _logarithmic(figure: Any, chart: Chart) -> None:
    """Make the axes of lines logarithmic, with few, round ticks."""
    lines = [one for one in chart.series if one.source != "tuned"]
    points = [p for one in lines for p in one.points if _fits(p, chart)]
    ats = sorted({p.at for p in points if isinstance(p.at, float)})
    values = [p.value for one in chart.series for p in one.points if p.value > 0]
    if "x" in chart.log and ats:
        some = _apart(ats)
        few = {"tickvals": some, "ticktext": [_short(at) for at in some]}
        figure.update_xaxes(type="log", **(few if 1 < len(ats) <= 6 else _ticks(ats)))
    if "y" in chart.log and values:
        low, top = min(values), max(values)
        if chart.log == "y" and ats:  # a steep end would flatten the rest
            top = min(top, max(2 * low, *(4 * one.points[0].value for one in lines)))
            figure.update_yaxes(range=[math.log10(0.85 * low), math.log10(1.15 * top)])
        figure.update_yaxes(type="log", **_ticks([low, top]))


def _apart(ats: list[float]) -> list[float]:
    """Return the ascending numbers whose labels fit on a logarithmic axis."""
    least = APART * math.log(ats[-1] / ats[0])
    spaced = ats[:1]
    for at in ats[1:]:
        if math.log(at / spaced[-1]) >= least:
            spaced.append(at)
    return spaced


def _ticks(values: list[float]) -> dict[str, list]:
    """Return ticks of a logarithmic axis: 1, 2, 5, 10 on a short range, powers of ten on others."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = (1, 2, 5) if high - low <= 2 else (1,)
    every = max(1, (high - low) // 6)
    at = [s * 10.0**power for power in range(low, high + 1, every) for s in steps]
    return {"tickvals": at, "ticktext": [_short(value) for value in at]}


def _short(value: float) -> str:
    """Return a number as an axis label: 0.01, 50, 10k, 2M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= value < 1000 * size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _name(name: float | str, width: int = WIDE) -> str:
    """Return a row's name, wrapped to at most four lines."""
    lines = textwrap.wrap(str(name), width, break_long_words=True) or [""]
    return "<br>".join(plain(line) for line in lines[:4])

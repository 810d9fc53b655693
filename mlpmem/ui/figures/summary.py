"""Plotly figures of a bundle's results. Plotly is imported when the Results tab is opened."""

import html
import math
import re
from collections.abc import Sequence
from typing import Any

COLOURS = {"lm": "#5b7fa6", "knn": "#e08a1e", "memory": "#9a63cf", "tuned": "#868e96"}
SYMBOLS = {"lm": "circle", "knn": "diamond", "memory": "star", "tuned": "triangle-down"}
ROUTED = {"auto": "memory", "auto_knn": "knn"}  # system with a router -> its source
DASHES = {"memory": "solid", "knn": "dash"}
NEAR = 5  # per cent of A2: labels closer than this overlap
REFIT = "MLPMEM.mountFigures(element);"  # script of the markup above figures


def outputs(figures: list[Any]) -> Any:
    """Return figures as a Gradio listener's output: a single one is not a list."""
    return figures if len(figures) > 1 else figures[0]


def percent(value: float | None) -> float | None:
    """Return a fraction in per cent, None for None."""
    return None if value is None else 100.0 * value


def plain(name: str) -> str:
    """Return a name escaped for Plotly, which parses HTML but knows few entities."""
    return html.escape(name, quote=False)


def kind_of(name: str) -> str:
    """Return the source whose colour a system has, "tuned" for fine-tuned ones."""
    own = {"lm": "lm", **ROUTED}.get(name, "tuned")
    return next((s for s in ("memory", "knn") if name.startswith(s)), own)


def headline_points(results: dict) -> list[dict]:
    """Return one point per system: name, label, kind, learned (B, new wordings), kept (A2).

    Accuracies are in per cent. "label" is short, "full" includes learning rates, "said" is the
    label in the results.
    """
    points = []
    for row in results.get("systems") or []:
        accuracy = row.get("accuracy") or {}
        learned, kept = percent(accuracy.get("B/test")), percent(accuracy.get("A2/test"))
        points.append((row.get("name", ""), row.get("label"), learned, kept))
    for row in results.get("forgetting") or []:
        learned, kept = percent(row.get("B_test")), percent(row.get("A2_test"))
        points.append((f"tuned {row.get('name', '')}", row.get("label"), learned, kept))
    complete = [
        (n, str(label or n), _label(n, str(label or n)), b, a)
        for n, label, b, a in points
        if b is not None and a is not None
    ]
    short = [re.sub(r", lr [^,]+|^with (?=LoRA)", "", full) for _, _, full, _, _ in complete]
    return [
        {"name": n, "label": brief if short.count(brief) == 1 else full, "full": full,
         "said": label, "kind": kind_of(n), "learned": b, "kept": a}
        for brief, (n, label, full, b, a) in zip(short, complete, strict=True)
    ]  # fmt: skip


def headline(results: dict) -> Any:
    """Return the figure of learning against forgetting, None without numbers."""
    points = headline_points(results)
    if not points:
        return None
    routed = {ROUTED[p["name"]] for p in points if p["name"] in ROUTED}
    points = [p for p in points if p["name"] not in routed]  # the fixed lambda's point is close by
    figure = empty("learned: accuracy on B, new wordings (%)", "kept: accuracy on A2 (%)", 430)
    for kind in ("tuned", "lm", "knn", "memory"):
        chosen = [p for p in points if p["kind"] == kind]
        figure.add_scatter(
            x=[p["learned"] for p in chosen], y=[p["kept"] for p in chosen],
            text=[plain(p["label"]) for p in chosen], mode="markers+text",
            customdata=[plain(p["full"]) for p in chosen],
            textposition=[_side(p, points) for p in chosen], cliponaxis=False,
            marker={"size": 18 if kind == "memory" else 13, "symbol": SYMBOLS[kind],
                    "color": COLOURS[kind], "line": {"width": 1, "color": "#20242a"}},
            hovertemplate="%{customdata}<br>learned %{x:.1f}%<br>kept %{y:.1f}%<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(range=[-4, 104])
    figure.update_yaxes(range=[max(0, min(p["kept"] for p in points) - 12), 108], dtick=20)
    return figure


def _side(point: dict, points: list[dict]) -> str:
    """Return the side on which a point's label overlaps neither the frame nor another label.

    On a phone, labels from the left and from the right meet; at equal height one is moved up.
    """
    if point["kind"] == "memory":
        return "top center"
    left = point["learned"] < 50
    tuned = [p for p in points if p["kind"] == point["kind"] == "tuned"]
    meets = any(
        (p["learned"] < 50) != left and abs(p["kept"] - point["kept"]) < NEAR for p in tuned
    )
    height = ("bottom" if left else "top") if meets else "middle"
    return f"{height} {'right' if left else 'left'}"


def _label(name: str, label: str) -> str:
    """Return a short label, without words that all systems share."""
    brief = label.removeprefix("decoder ").removesuffix(", lambda by token")
    return "decoder only" if name == "lm" else brief


def curve_points(results: dict, keys: dict[str, str]) -> list[dict]:
    """Return the measured curves against lambda: source, place among keys, name, x, y.

    keys maps a field to its name.
    """
    table = results.get("lambda_curves") or {}
    measured = []
    for source in ("memory", "knn"):
        row = table.get(source) or {}
        for place, (key, label) in enumerate(keys.items()):
            if row.get("lmbdas") and row.get(key):
                name = f"{'memory' if source == 'memory' else 'datastore'}, {label}"
                measured.append({"source": source, "place": place, "name": name, "x": row["lmbdas"],
                                 "y": row[key]})  # fmt: skip
    return measured


def curves(results: dict, keys: dict[str, str], title: str, log: bool = False) -> Any:
    """Return a figure of the curves, None without any; linear ones are in per cent."""
    measured = curve_points(results, keys)
    if not measured:
        return None
    figure = empty("λ", title, 340)
    for one in measured:
        source, main = one["source"], one["place"] == 0
        figure.add_scatter(
            x=one["x"], y=one["y"] if log else [percent(v) for v in one["y"]], name=one["name"],
            mode="lines", showlegend=True,
            line={"color": COLOURS[source], "width": 2.5 if main else 1.5,
                  "dash": DASHES[source] if main else "dot"},
        )  # fmt: skip
    figure.update_layout(showlegend=True)
    if log:
        figure.update_yaxes(
            type="log", tickvals=[1, 2, 5, 10, 20, 50, 100, 200], range=_span(figure)
        )
    return figure


def _span(figure: Any) -> list[float]:
    """Return the log10 range of a figure's curves, up to 4 times the largest value at lambda 0."""
    values = [v for curve in figure.data for v in curve.y if v]
    top = min(max(values), 4 * max(curve.y[0] for curve in figure.data))
    return [math.log10(0.85 * min(values)), math.log10(1.15 * top)]


def has_cost(results: dict, parts: Sequence[tuple[str, str, str]]) -> bool:
    """Return whether any part of a cost was measured."""
    return any((results.get("cost") or {}).get(field) for field, _, _ in parts)


def cost(results: dict, parts: Sequence[tuple[str, str, str]], title: str, scale: float) -> Any:
    """Return stacked bars of one cost; parts are (field, source, name); None without numbers."""
    if not has_cost(results, parts):
        return None
    row = results["cost"]
    figure = empty(title, "", 220)
    bars = ["Decoder only", "With memory", "With datastore"]
    wanted = {"lm": bars, "memory": bars[1:2], "knn": bars[2:]}
    for field, source, name in parts:
        value = (row.get(field) or 0) * scale
        names = wanted[source]
        figure.add_bar(
            y=names, x=[value] * len(names), name=name, orientation="h", showlegend=True,
            marker={"color": COLOURS[source]}, hovertemplate=f"{name} %{{x:.3g}}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(barmode="stack", bargap=0.35, showlegend=True)
    figure.update_yaxes(categoryorder="array", categoryarray=bars[::-1])
    return figure


def empty(x: str, y: str, height: int) -> Any:
    """Return an empty figure with axis titles x and y, height in pixels, without a theme."""
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.update_layout(
        height=height, showlegend=False, dragmode=False, template="none",
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 56, "r": 24, "t": 32, "b": 48},
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        xaxis={"title": _title(x), "fixedrange": True, "zeroline": False, "automargin": True},
        yaxis={"title": _title(y), "fixedrange": True, "zeroline": False, "automargin": True},
    )  # fmt: skip
    return figure


def _title(text: str) -> dict[str, Any]:
    """Return an axis title in the size of the other texts."""
    return {"text": text, "font": {"size": 13}}

"""The Results tab: tables, plots drawn when the tab is opened, and reviewers' questions.

Each question is a section with its answer as heading; its figures are drawn when it is opened.
"""

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from mlpmem.engine.trace import AUTO
from mlpmem.results import chats, findings
from mlpmem.results.charts import Chart
from mlpmem.results.questions import Question, questions
from mlpmem.results.study_charts import NAMES
from mlpmem.ui import components
from mlpmem.ui.context import PRIVATE, Shared
from mlpmem.ui.figures import studies, summary
from mlpmem.ui.recordings import words

COLUMNS = (
    ("B/test", "B, new wordings"), ("B/seen", "B, seen wordings"), ("B/unseen", "B, unseen forms"),
    ("B/statement_test", "B, statements"), ("A1/test", "A1, new wordings"),
    ("A2/test", "A2, new wordings"), ("real/test", "real, new"), ("real/unseen", "real, unseen"),
    ("real/second", "real, 2nd turn"), ("real/third", "real, 3rd turn"),
    ("real/two", "real, two names"), ("invented/test", "invented, new"),
    ("invented/unseen", "invented, unseen"), ("invented/second", "invented, 2nd turn"),
    ("invented/third", "invented, 3rd turn"), ("invented/two", "invented, two names"),
)  # fmt: skip
PERPLEXITIES = (("B", "ppl\u00a0B"), ("A2", "ppl\u00a0A2"), ("text", "ppl"),
                ("general", "ppl\u00a0other chats"), ("naming", "ppl\u00a0naming"),
                ("follow", "ppl\u00a0follow-ups"),
                ("plain", "ppl\u00a0plain text"))  # fmt: skip
SYSTEMS = NAMES | {
    "auto": "memory, auto λ", "mixed": "memory + datastore", "rag": "decoder + retrieval",
    "rag_5": "decoder + retrieval of 5", "memory_alpha_0": "memory, cross-entropy only",
}  # fmt: skip
HEADLINE = (
    "Learn without forgetting",
    "Each point is one system. The x-axis is accuracy on entities that the decoder never saw (B), "
    "the y-axis accuracy on entities that only the decoder was trained on (A2). The upper right "
    "corner is best; fine-tuning the decoder on B trades one for the other.",
)
LETTERS = (
    "B: facts that the decoder never saw. A2: facts that only the decoder was trained on. "
    "A1: facts that the memory was trained on too."
)
ACCURACY = {"B_dev": "B", "A2_dev": "A2"}
PERPLEXITY = {"ppl_B": "B", "ppl_A2": "A2", "ppl_text": "text"}
TIME = (("decoder_ms", "lm", "decoder"), ("memory_ms", "memory", "memory"),
        ("search_ms", "knn", "search"))  # fmt: skip
SIZE = (("decoder_bytes", "lm", "decoder"), ("memory_bytes", "memory", "memory"),
        ("datastore_bytes", "knn", "datastore"))  # fmt: skip
INTERVAL = re.compile(r"\([^()]* to [^()]*\)")


@dataclass(frozen=True)
class ResultFigure:
    """A figure and its place on the tab; without numbers both are omitted."""

    title: str
    text: str
    height: str  # a CSS class that reserves the height
    there: Callable[[dict], Any]  # whether results have its numbers, without Plotly
    draw: Callable[[dict], Any]


FIGURES = (
    ResultFigure(*HEADLINE, "plot-tall", summary.headline_points, summary.headline),
    ResultFigure(
        "Accuracy against λ", "On dev wordings, where λ is chosen.", "plot-mid",
        lambda results: summary.curve_points(results, ACCURACY),
        lambda results: summary.curves(results, ACCURACY, "exact match (%)"),
    ),
    ResultFigure(
        "Perplexity against λ", "Logarithmic; lower is better.", "plot-mid",
        lambda results: summary.curve_points(results, PERPLEXITY),
        lambda results: summary.curves(results, PERPLEXITY, "perplexity", log=True),
    ),
    ResultFigure(
        "Time per token", "Milliseconds, by part.", "plot-low",
        lambda results: summary.has_cost(results, TIME),
        lambda results: summary.cost(results, TIME, "ms per token", 1.0),
    ),
    ResultFigure(
        "Storage", "Megabytes, by part.", "plot-low",
        lambda results: summary.has_cost(results, SIZE),
        lambda results: summary.cost(results, SIZE, "MB", 1e-6),
    ),
)  # fmt: skip


def build(shared: Shared, tab: gr.Tab) -> None:
    """Lay out the tab; figures are drawn when it is opened."""
    results = shared.recorded.results
    if not results:
        text = words.words(shared.recorded).results
        components.static(f'<p class="panel-note results">{text}</p>')
        return
    shown = [figure for figure in FIGURES if figure.there(results)]
    first = shown[:1] if shown[:1] == [FIGURES[0]] else []  # a text corpus has perplexities only
    places = [_place(figure) for figure in first]
    components.static(_tables(results), elem_classes="results")
    rest = shown[len(first) :]
    for at in range(0, len(rest), 2):
        with gr.Row(elem_classes="plot-row"):
            for figure in rest[at : at + 2]:
                with gr.Column(min_width=340):
                    places.append(_place(figure))
    build_questions(results)
    if places:
        tab.select(lambda: summary.outputs(draw(results, shown)), None, places, **PRIVATE)


def _place(figure: ResultFigure) -> gr.Plot:
    """Return an empty figure of the final height, below its heading."""
    components.static(_heading(figure.title, figure.text), summary.REFIT, elem_classes="results")
    return gr.Plot(show_label=False, container=False, elem_classes=figure.height)


def draw(results: dict, shown: Sequence[ResultFigure] = FIGURES) -> list[Any]:
    """Return the tab's figures in order, None for one without numbers."""
    return [figure.draw(results) for figure in shown]


def _heading(title: str, text: str) -> str:
    return f"<h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>"


def _tables(results: dict) -> str:
    """Return the tables of `measured` results as HTML; every text is escaped."""
    parts = [_chats(results), _systems(results), _tasks(results), _tuned(results)]
    if results.get("share_of_gain") is not None:
        share = f"{100 * results['share_of_gain']:.0f}%"
        parts.append(f"<p>The memory has {share} of what the datastore gains.</p>")
    if results.get("how"):
        parts.append(f"<p>Measured by <code>{html.escape(results['how'])}</code></p>")
    return "".join(parts)


def _systems(results: dict) -> str:
    systems = results.get("systems") or []
    cells = _measured(systems, "accuracy", COLUMNS)
    texts = _measured(systems, "ppl", PERPLEXITIES)
    head = ["system", "λ", *(name for _, name in (*cells, *texts)), "size", "training"]
    rows = []
    for row in systems:
        accuracy, ppl = row.get("accuracy") or {}, row.get("ppl") or {}
        rows.append(
            [str(row.get("label") or row.get("name")), _lambda(row.get("lmbda"))]
            + [_number(summary.percent(accuracy.get(key)), "{:.1f}") for key, _ in cells]
            + [_perplexity(ppl.get(group)) for group, _ in texts]
            + [_number(row.get("bytes"), "{:,.1f} MB", 1e-6)]
            + [_number(row.get("train_seconds"), "{:,.0f} s")]
        )
    what = "Exact match in per cent, by the wordings of each column."
    if any(key.startswith("B/") for key, _ in cells):
        what = f"{what} {LETTERS}"
    return _table(head, rows, what if cells else "Perplexity of the test split.")


def _chats(results: dict) -> str:
    head, rows = chats.table(results)
    what = "Whole answers, generated greedily; the right answer is among the first twelve words."
    return _table(head, rows, what) if rows else ""


def _tasks(results: dict) -> str:
    head, rows = findings.table(results)
    head = [SYSTEMS.get(name, name) for name in head]
    return (
        _table(head, rows, "The same tasks put to every system, with 95% intervals.")
        if rows
        else ""
    )


def _measured(systems: list[dict], field: str, columns: tuple) -> list[tuple[str, str]]:
    """Return the columns in which any system has a value."""
    return [
        (key, name) for key, name in columns if any(key in (s.get(field) or {}) for s in systems)
    ]


def _tuned(results: dict) -> str:
    head = ["fine-tuned on", "learning rate", "epochs", "B", "A1", "A2", "ppl B", "ppl A2"]
    rows = [
        [str(row.get("groups") or row.get("label") or row.get("name")) + _rank(row)]
        + [_number(row.get(key), "{:g}") for key in ("lr", "epochs")]
        + [_number(summary.percent(row.get(k)), "{:.1f}") for k in ("B_test", "A1_test", "A2_test")]
        + [_number(row.get(key), "{:.2f}") for key in ("ppl_B", "ppl_A2")]
        for row in results.get("forgetting") or []
    ]  # fmt: skip
    return _table(head, rows, "Fine-tuning the decoder instead: gains and losses.") if rows else ""


def _rank(row: dict) -> str:
    """Return ", LoRA of rank 32" for a decoder tuned with LoRA, "" for others."""
    return f", LoRA of rank {row['rank']:g}" if row.get("rank") else ""


def _whole(value: str) -> str:
    """Return a cell whose interval in parentheses stays on one line."""
    return INTERVAL.sub(lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), value)


def _table(head: list[str], rows: list[list[str]], caption: str) -> str:
    cells = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{html.escape(first)}</th>'
        + "".join(f"<td>{html.escape(_whole(value))}</td>" for value in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<p>{html.escape(caption)}</p><div class="table-scroll" tabindex="0"><table>'
        f"<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _lambda(value: Any) -> str:
    return AUTO if value == AUTO else _number(value, "{:g}")


def _perplexity(value: Any) -> str:
    """Return a perplexity; one that is as good as infinite as a bound."""
    return "> 100,000" if _is_vast(value) else _number(value, "{:.2f}")


def _is_vast(value: Any) -> bool:
    return isinstance(value, int | float) and value > 1e5


def _number(value: Any, form: str, scale: float = 1.0) -> str:
    return form.format(value * scale) if isinstance(value, int | float) else "–"


TEXT = "Each heading is an answer. Open it for its question and figures; bars are 95% intervals."


def build_questions(results: dict) -> None:
    """Lay out one closed section per question that the results answer."""
    answered = questions(results)
    if not answered:
        return
    components.static(f"<h2>Reviewers' questions</h2><p>{TEXT}</p>", elem_classes="results")
    for question in answered:
        _section(question)


def _section(question: Question) -> None:
    """Lay out one question below its answer: its text, two figures per row, the command."""
    shown = question.charts
    places = []
    heading = question.answer or question.title
    with gr.Accordion(heading, open=False, elem_classes="question") as section:
        asked = f"<p><strong>{html.escape(question.title)}</strong></p>" if question.answer else ""
        text = f"{asked}<p>{html.escape(question.text)}</p>"
        components.static(text, summary.REFIT, elem_classes="results")
        for chart in shown:
            if chart.kind == "matrix" or len(shown) == 1:
                places.append(_plot(chart))
                continue
            if len(places) % 2 == 0:
                row = gr.Row(elem_classes="plot-row")
            with row, gr.Column(min_width=320):
                places.append(_plot(chart))
        how = ", ".join(f"<code>{html.escape(line)}</code>" for line in question.hows)
        if how:
            components.static(f"<p>Measured by {how}</p>", elem_classes="results")
    section.expand(partial(_drawn, shown), None, places, **PRIVATE)


def _plot(chart: Chart) -> gr.Plot:
    """Return an empty figure below a chart's title."""
    components.static(f"<h3>{html.escape(chart.title)}</h3>", elem_classes="results")
    return gr.Plot(show_label=False, container=False, elem_classes="plot-asked")


def _drawn(shown: list[Chart]) -> Any:
    """Return the figures of a section."""
    return summary.outputs([studies.draw(chart) for chart in shown])

"""Reviewers' questions on the Results tab: each opens on its own, and is drawn only then."""

import html
from functools import partial
from typing import Any

import gradio as gr

from mlpmem.results.charts import Chart
from mlpmem.results.questions import Question, questions
from mlpmem.ui import components
from mlpmem.ui.context import PRIVATE
from mlpmem.ui.figures import studies, summary

TEXT = "Open one to see its figures. Bars are 95% intervals where there are some."


def build(results: dict) -> None:
    """Lay out a closed section for every question the results answer."""
    asked = questions(results)
    if not asked:
        return
    components.static(f"<h2>Asked like a reviewer</h2><p>{TEXT}</p>", elem_classes="results")
    for question in asked:
        _section(question)


def _section(question: Question) -> None:
    """Lay out one question: how to read it, two figures a row, the command."""
    shown = question.charts
    places = []
    with gr.Accordion(question.title, open=False, elem_classes="question") as section:
        text = f"<p>{html.escape(question.text)}</p>"
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
    """Return the place of a chart's figure, below its title."""
    components.static(f"<h3>{html.escape(chart.title)}</h3>", elem_classes="results")
    return gr.Plot(show_label=False, container=False, elem_classes="plot-asked")


def _drawn(shown: list[Chart]) -> Any:
    """Return the figures of a section."""
    return summary.outputs([studies.draw(chart) for chart in shown])

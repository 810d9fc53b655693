"""The About tab: purpose, formula, groups of entities, limits, licence."""

import html
from pathlib import Path

import gradio as gr

from mlpmem.ui import components
from mlpmem.ui.context import Shared
from mlpmem.ui.recordings import words

TEXT = Path(__file__).parents[1] / "static" / "about.html"


def build(shared: Shared, tab: gr.Tab) -> None:
    """Lay out the tab."""
    credits = "".join(f"<li>{html.escape(line)}</li>" for line in shared.recorded.attributions)
    text = words.fitted(TEXT.read_text("utf-8"), shared.recorded).replace(
        "<!-- attributions -->", credits
    )
    components.static(text, "MLPMEM.mountAbout(element);", elem_id="about")

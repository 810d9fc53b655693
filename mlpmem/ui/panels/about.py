"""The About tab: purpose, formula, groups of entities, endpoints, limits, licence."""

import html
import re
from pathlib import Path

import gradio as gr

from mlpmem.ui import components
from mlpmem.ui.context import Shared
from mlpmem.ui.openai.routes import is_on
from mlpmem.ui.recordings import words

TEXT = Path(__file__).parents[1] / "static" / "about.html"
FIGURE = TEXT.with_name("figure.svg")
PROGRAMS = re.compile(r"<!-- programs: begin -->(.*?)<!-- programs: end -->", re.DOTALL)


def build(shared: Shared, tab: gr.Tab) -> None:
    """Lay out the tab."""
    credits = "".join(f"<li>{html.escape(line)}</li>" for line in shared.recorded.attributions)
    text = PROGRAMS.sub(r"\1" if is_on() else "", TEXT.read_text("utf-8"))
    text = words.fitted(text, shared.recorded).replace("<!-- attributions -->", credits)
    text = text.replace("<!-- figure -->", FIGURE.read_text("utf-8"))
    components.static(text, "MLPMEM.mountAbout(element);", elem_id="about")

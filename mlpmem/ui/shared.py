"""What every panel is given, and how the page's handlers are wired to the queue."""

from dataclasses import dataclass

import gradio as gr

from mlpmem.ui.recorded import Recorded
from mlpmem.ui.service import Service


@dataclass(frozen=True)
class Shared:
    """The model behind the page, what was recorded, the one lambda bar, the head's tools."""

    service: Service
    recorded: Recorded
    lambda_bar: gr.HTML
    tools: gr.HTML


# Handlers of the page are no public interface; quick ones do not wait behind the model.
PRIVATE = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
STREAM = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "trigger_mode": "multiple",  # static/page.js holds back a second run while one is under way
    "concurrency_limit": 1,
    "concurrency_id": "model",
}

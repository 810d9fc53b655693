"""How many runs are ahead of a visitor's own in the model's queue."""

import gradio as gr

from mlpmem.ui.context import PRIVATE, STREAM
from mlpmem.ui.request.stream import new_run


def build(page: gr.Blocks, tools: gr.HTML) -> None:
    """Answer the page while a run of its visitor waits."""

    def ahead(request: gr.Request) -> dict:
        return {"ahead": runs_ahead(page, request.session_hash), "asked": new_run()}

    tools.ahead(ahead, None, tools, **PRIVATE)


def runs_ahead(page: gr.Blocks, session: str | None) -> int | None:
    """Return how many runs come before the session's first waiting one, None if none waits."""
    queue = page._queue.event_queue_per_concurrency_id.get(STREAM["concurrency_id"])
    waiting = [event.session_hash for event in queue.queue] if queue else []
    return waiting.index(session) + queue.current_concurrency if session in waiting else None

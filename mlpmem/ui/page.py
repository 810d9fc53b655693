"""The whole page: header, tabs, the lambda bar below, the status that looks after itself."""

from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from mlpmem.ui import components, endpoints, waiting
from mlpmem.ui.context import PRIVATE, Shared
from mlpmem.ui.panels import about, chat, compare, corpus, inspect, results
from mlpmem.ui.recordings import words  # fmt: skip
from mlpmem.ui.recordings.recorded import Recorded
from mlpmem.ui.request import limits
from mlpmem.ui.service.own_text import Shelf
from mlpmem.ui.service.service import Service

TITLE = "MLP Memory, live"
QUEUE_SIZE = 64  # who waits sees how many are ahead; more are refused in a sentence
POLL_SECONDS = 0.7
UPLOADS = (600, 3600)  # seconds: how often unread files are looked for, how old they may get
MASTHEAD = (components.STATIC / "header.html").read_text("utf-8")
PANELS = {
    "Compare": compare, "Inspect": inspect, "Chat": chat, "Corpus": corpus, "Results": results,
    "About": about,
}  # fmt: skip


class Queued(gr.Blocks):
    """Blocks whose queue is set as they begin, once: setting it later makes the whole app anew."""

    def queue(self, *_: Any, **__: Any) -> "Queued":
        """Return self, with a queue of bounded length that runs one request of a kind at a time."""
        bounds = {"max_size": QUEUE_SIZE, "default_concurrency_limit": 1, "api_open": False}
        return super().queue(**bounds)


def build(service: Service, recorded: Recorded) -> gr.Blocks:
    """Return the page; nothing of the model is touched here."""
    limits.refuse_addresses()
    with Queued(title=TITLE, analytics_enabled=False, delete_cache=UPLOADS) as page:
        with gr.Row(elem_classes="top-row"):
            components.static(MASTHEAD, elem_id="masthead")
            status = components.status(service.payload(recorded.defaults()), elem_id="status")
            tools = components.tools(elem_id="tools")
        lambda_bar = components.lambda_bar(elem_id="lambda-bar", render=False)
        shelf = Shelf()
        shared = Shared(service, recorded, lambda_bar, tools, *_own(shelf, recorded), shelf)
        with gr.Tabs(elem_id="tabs"):
            for name, panel in PANELS.items():
                with gr.Tab(name, id=name.lower()) as tab:
                    panel.build(shared, tab)
        lambda_bar.render()
        inspect.build_probe(shared)
        _watch(page, shared, status)
        waiting.build(page, tools)
        endpoints.build(shared)
    return page


def _own(shelf: Shelf, recorded: Recorded) -> tuple[gr.State, gr.Radio]:
    """Return the id of a visitor's own datastore, and the choice that appears with it."""
    own = gr.State("", time_to_live=shelf.seconds, delete_callback=shelf.drop)
    served = words.words(recorded).corpus.capitalize()
    choice = gr.Radio(
        [(served, "atlas"), ("Your text", "own")], value="atlas", visible=False,
        label="Search in", elem_id="store-choice", container=False,
    )  # fmt: skip
    return own, choice


def _watch(page: gr.Blocks, shared: Shared, status: gr.HTML) -> None:
    """Poll the status until nothing more changes, then stop polling."""
    timer = gr.Timer(POLL_SECONDS)

    def poll():
        settled = shared.service.status.settled
        return shared.service.payload(shared.recorded.defaults()), gr.Timer(active=not settled)

    timer.tick(poll, None, [status, timer], **PRIVATE)
    page.load(poll, None, [status, timer], **PRIVATE)


def launch_options() -> dict:
    """Return the launch arguments that belong to the page rather than to the machine."""
    return {
        "head": components.head(),
        "favicon_path": components.STATIC / "favicon.svg",
        "theme": theme(),
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "show_error": False,
        "ssr_mode": False,
        "state_session_capacity": 200,
        "pwa": False,
        "app_kwargs": {
            "middleware": [Middleware(limits.BoundedBody), Middleware(limits.BoundedUploads)]
        },
        "max_file_size": "8mb",  # what is above own.MAX_BYTES gets a sentence rather than a 413
    }


def theme() -> gr.themes.Base:
    """Return a plain theme with system fonts; the look itself is in static/*.css."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
    mono = ["ui-monospace", "SF Mono", "Menlo", "Consolas", "monospace"]
    base = gr.themes.Base(font=fonts, font_mono=mono, neutral_hue="slate", primary_hue="slate")
    ink, paper = "var(--ink)", "var(--bg)"
    return base.set(
        button_primary_background_fill=ink,
        button_primary_background_fill_dark=ink,
        button_primary_background_fill_hover=ink,
        button_primary_background_fill_hover_dark=ink,
        button_primary_text_color=paper,
        button_primary_text_color_dark=paper,
        button_primary_text_color_hover=paper,
        button_primary_text_color_hover_dark=paper,
    )

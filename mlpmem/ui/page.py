"""The whole page: header, tabs, the lambda bar below, the status that looks after itself.

From a service to an answering page: build, launch, load, wait.

How many runs are ahead of a visitor's own in the model's queue.
"""

import gc
import os
import sys
import tempfile
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from mlpmem.ui import components, endpoints, page
from mlpmem.ui.context import PRIVATE, STREAM, Shared
from mlpmem.ui.panels import about, chat, compare, corpus, inspect, results
from mlpmem.ui.recordings import words  # fmt: skip
from mlpmem.ui.recordings.recorded import Recorded
from mlpmem.ui.request import limits
from mlpmem.ui.request.stream import new_run
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
        answer_ahead(page, tools)
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


def serve(
    service: Service, recorded: Recorded, host: str | None = None, port: int | None = None
) -> int:
    """Serve until interrupted, loading once the page answers; returns an exit status.

    Where host and port are not given, GRADIO_SERVER_NAME and GRADIO_SERVER_PORT count, which a host
    such as Spaces sets. Uploads lie in GRADIO_TEMP_DIR or, without it, in a folder of this
    process alone, which goes when it ends.
    """
    if os.environ.get("GRADIO_TEMP_DIR"):
        return _serve(service, recorded, host, port)
    with tempfile.TemporaryDirectory(prefix="mlpmem-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        return _serve(service, recorded, host, port)


def _serve(service: Service, recorded: Recorded, host: str | None, port: int | None) -> int:
    """Serve until interrupted."""
    host = host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    port = int(os.environ.get("GRADIO_SERVER_PORT") or 7860) if port is None else port
    blocks = page.build(service, recorded)
    try:
        blocks.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            **page.launch_options(),
        )
    except OSError:
        sys.stderr.write(
            f"mlpmem: cannot serve at {host}:{port}: the port is taken or not allowed, or the host "
            "is not this machine's; give another --port or --host\n"
        )
        return 2
    except ValueError as error:  # Gradio asks its own page whether it answers
        sys.stderr.write(
            f"mlpmem: the page does not answer at {host}:{port}; check HTTP_PROXY and NO_PROXY, or "
            f"start it again when the machine is less busy ({str(error).splitlines()[0]})\n"
        )
        return 2
    gc.freeze()  # what was imported stays
    gc.enable()
    sys.stderr.write(f"mlpmem: http://{host}:{port}\n")
    service.start()
    blocks.block_thread()
    return 0


def answer_ahead(page: gr.Blocks, tools: gr.HTML) -> None:
    """Answer the page while a run of its visitor waits."""

    def ahead(request: gr.Request) -> dict:
        return {"ahead": runs_ahead(page, request.session_hash), "asked": new_run()}

    tools.ahead(ahead, None, tools, **PRIVATE)


def runs_ahead(page: gr.Blocks, session: str | None) -> int | None:
    """Return how many runs come before the session's first waiting one, None if none waits."""
    queue = page._queue.event_queue_per_concurrency_id.get(STREAM["concurrency_id"])
    waiting = [event.session_hash for event in queue.queue] if queue else []
    return waiting.index(session) + queue.current_concurrency if session in waiting else None

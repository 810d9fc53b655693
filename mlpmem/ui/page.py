"""The whole page: layout (header, tabs, lambda bar, status), launch options, and the server."""

import gc
import ipaddress
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import gradio as gr
import httpx
from starlette.middleware import Middleware

from mlpmem.ui import components, endpoints
from mlpmem.ui.context import MODEL, PRIVATE, Shared
from mlpmem.ui.door import ending
from mlpmem.ui.door.bounds import BOUNDS
from mlpmem.ui.door.door import Door, Gate
from mlpmem.ui.door.fair import FairQueue
from mlpmem.ui.door.preview import Preview
from mlpmem.ui.models import PageModel, picker
from mlpmem.ui.openai import routes as programs
from mlpmem.ui.panels import about, chat, compare, corpus, inspect, results
from mlpmem.ui.recordings import value, words
from mlpmem.ui.recordings.recorded import Recorded
from mlpmem.ui.request import limits
from mlpmem.ui.request.stream import new_run
from mlpmem.ui.service.own_text import Shelf
from mlpmem.ui.service.prefixes import Prefixes

TITLE = "MLP Memory, live"
POLL_SECONDS = 0.7
INVALID_VALUES = (
    "The request has values of the wrong type. Reload the page and try again; for programs, About "
    "lists the types."
)
MASTHEAD = (components.STATIC / "header.html").read_text("utf-8")
PREVIEW = components.STATIC / "preview.png"
PANELS = {
    "Compare": compare, "Inspect": inspect, "Chat": chat, "Corpus": corpus, "Results": results,
    "About": about,
}  # fmt: skip


class Guarded(gr.Blocks):
    """Blocks behind the door, with its gate and its fair queue.

    The queue is set once at the start, because setting it later builds the whole app again.
    """

    gate: Gate
    prefixes: Prefixes  # of all its models

    def queue(self, *_: Any, **__: Any) -> "Guarded":
        """Return self, with a fair queue of bounded length."""
        super().queue(api_open=False)
        self._queue = FairQueue(self, BOUNDS)
        return self

    async def preprocess_data(self, *args: Any, **kwargs: Any) -> Any:
        """Return the handler's arguments; gr.Error for a value of the wrong type."""
        try:
            return await super().preprocess_data(*args, **kwargs)
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:
            raise gr.Error(INVALID_VALUES, print_exception=False) from error


def build(models: Sequence[PageModel]) -> gr.Blocks:
    """Return the page, with a path for every model, the first one's at /; no model is touched."""
    limits.refuse_addresses()
    gate, shelf = Gate(models[0].service), Shelf()
    copies = Shelf(BOUNDS.taught_bytes, share=BOUNDS.client_taught_bytes)
    with Guarded(title=TITLE, analytics_enabled=False) as page:
        page.gate, page.prefixes = gate, Prefixes()
        _lay_out(page, models, models[0], shelf, copies)
        endpoints.build(models)
        programs.build([model.service for model in models], page)
    for model in models[1:]:
        with page.route(model.title, model.name):
            _lay_out(page, models, model, shelf, copies)
    return page


def _lay_out(
    page: Guarded, models: Sequence[PageModel], model: PageModel, shelf: Shelf, copies: Shelf
) -> None:
    """Lay out one model's path and connect its events."""
    service, recorded = model.service, model.recorded
    path = "/" if model is models[0] else f"/{model.name}"
    picture = PREVIEW if words.is_atlas(recorded) else None  # it shows the atlas's figures
    page.gate.pages.previews[path] = Preview(TITLE, value.plain(recorded), picture)
    with gr.Row(elem_classes="top-row"):
        masthead = MASTHEAD.replace("<!-- value -->", value.markup(recorded))
        masthead = masthead.replace("</header>", f"{picker(models, model)}</header>")
        components.static(masthead, elem_id="masthead")
        status = components.status(service.payload(recorded.defaults()), elem_id="status")
        tools = components.tools(elem_id="tools")
    lambda_bar = components.lambda_bar(elem_id="lambda-bar", render=False)
    others = {other.name: other.title for other in models if other is not model}
    own = _own(shelf, recorded)
    taught = gr.State("", time_to_live=copies.seconds, delete_callback=copies.drop)
    shared = Shared(
        service, recorded, lambda_bar, tools, *own, shelf, others, page.gate.uploads, taught,
        copies, page.prefixes,
    )  # fmt: skip
    with gr.Tabs(elem_id="tabs"):
        for name, panel in PANELS.items():
            with gr.Tab(name, id=name.lower()) as tab:
                panel.build(shared, tab)
    lambda_bar.render()
    inspect.build_probe(shared)
    _watch(page, shared, status)
    answer_ahead(page, tools)


def _own(shelf: Shelf, recorded: Recorded) -> tuple[gr.State, gr.Radio]:
    """Return (state with the id of a visitor's own datastore, radio to select the datastore)."""
    own = gr.State("", time_to_live=shelf.seconds, delete_callback=shelf.drop)
    served = words.words(recorded).corpus.capitalize()
    choice = gr.Radio(
        [(served, "atlas"), ("Your text", "own")], value="atlas", visible=False,
        label="Search in", elem_id="store-choice", container=False,
    )  # fmt: skip
    return own, choice


def _watch(page: gr.Blocks, shared: Shared, status: gr.HTML) -> None:
    """Load the model at the first visit, and poll the status until it is final."""
    service, defaults = shared.service, shared.recorded.defaults()
    timer = gr.Timer(POLL_SECONDS)

    def poll():
        settled = service.status.settled
        return service.payload(defaults), gr.Timer(active=not settled)

    def begin():
        service.start()
        return poll()

    def download():
        service.start(download=True)
        return poll()

    timer.tick(poll, None, [status, timer], **PRIVATE)
    page.load(begin, None, [status, timer], **PRIVATE)
    status.download(download, None, [status, timer], **PRIVATE)


def launch_options() -> dict:
    """Return the launch arguments that do not depend on the machine."""
    return {
        "head": components.head(),
        "favicon_path": components.STATIC / "favicon.svg",
        "theme": theme(),
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "show_error": False,
        "ssr_mode": False,
        "pwa": False,
        "app_kwargs": {"middleware": [Middleware(Door)], "lifespan": Gate.lifespan},
        "max_file_size": BOUNDS.upload_body,  # above MAX_BYTES, for a message in place of a 413
    }


def theme() -> gr.themes.Base:
    """Return a plain theme with system fonts; the design is in static/*.css."""
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
    models: Sequence[PageModel],
    host: str | None = None,
    port: int | None = None,
    download: bool = False,
) -> int:
    """Serve until interrupted, and load the first model once the page answers; return a status.

    host and port default to GRADIO_SERVER_NAME and GRADIO_SERVER_PORT, which Spaces set. With
    download, a file that the first model lacks is downloaded.
    """
    ending.exit_on_signals()
    host = bracketed(host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1")
    port = int(os.environ.get("GRADIO_SERVER_PORT") or 7860) if port is None else port
    blocks = build(models)
    try:
        blocks.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            **launch_options(),
        )
    except OSError:
        sys.stderr.write(
            f"mlpmem: cannot serve at {host}:{port}: the port is in use or not permitted, or the "
            "host is not an address of this machine; give another --port or --host\n"
        )
        return 2
    except (ValueError, httpx.InvalidURL) as error:  # Gradio requests its own page at the start
        sys.stderr.write(
            f"mlpmem: the page does not answer at {host}:{port}; check --host, HTTP_PROXY and "
            "NO_PROXY, or try again when the machine is less busy "
            f"({str(error).splitlines()[0]})\n"
        )
        return 2
    gc.freeze()  # imported objects are never collected
    gc.enable()
    sys.stderr.write(f"mlpmem: http://{host}:{port}\n")
    models[0].service.start(download)
    try:
        while blocks.is_running:
            time.sleep(0.2)
    finally:
        blocks.close(verbose=False)
        ending.end_training()
        sys.stderr.write("mlpmem: stopped\n")
    return 0


def bracketed(host: str) -> str:
    """Return a host for use in a URL: an IPv6 address in brackets."""
    try:
        return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        return host


def answer_ahead(page: gr.Blocks, tools: gr.HTML) -> None:
    """Report the number of runs ahead while a visitor's run waits."""

    def ahead(request: gr.Request) -> dict:
        return {"ahead": runs_ahead(page, request.session_hash), "asked": new_run()}

    tools.ahead(ahead, None, tools, **PRIVATE)


def runs_ahead(page: gr.Blocks, session: str | None) -> int | None:
    """Return the number of runs ahead of the session's first waiting one, None if none waits."""
    queue = page._queue.event_queue_per_concurrency_id.get(MODEL["concurrency_id"])
    waiting = [event.session_hash for event in queue.queue] if queue else []
    return waiting.index(session) + queue.current_concurrency if session in waiting else None

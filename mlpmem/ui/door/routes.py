"""The allowlist of routes: those that the page and its programs use, no others of Gradio's."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mlpmem.loading.shipped import SHIPPED

NAME = r"[A-Za-z0-9_-]{1,64}"  # of sessions, events, uploads and functions
PATTERN = re.compile(NAME)
API = "/gradio_api"
V1 = "/v1"  # OpenAI's protocol: mlpmem/ui/openai


class RefusedError(Exception):
    """Raised for a request that is refused, with an HTTP status and a sentence for the client."""

    def __init__(self, status: int, sentence: str) -> None:
        """Store both."""
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


@dataclass(frozen=True)
class Route:
    """One kind of request."""

    name: str
    methods: tuple[str, ...]
    pattern: str  # of the whole path
    body: str = ""  # the field of Bounds that limits its body, "" without one
    file: bool = False  # one of Gradio's own files: cheap, and a page loads many at once
    program: bool = False  # answered by Gate.programs, not by Gradio

    def match(self, path: str) -> Mapping[str, str] | None:
        """Return the named parts of a path, None if it belongs to another route."""
        match = re.fullmatch(self.pattern, path)
        return match.groupdict() if match else None


NOT_FOUND = "Not found. The page is at /; its About tab lists the endpoints."
GET, POST = ("GET", "HEAD"), ("POST",)
# "the page" marks its own routes; gradio_client, curl (see About), Gradio's start-up check and a
# host use the others.
ROUTES = (
    Route("page", GET, rf"/(?P<path>({'|'.join(SHIPPED)})?)"),  # the page, at most one per model
    Route("file", GET, r"/(assets|static)/[\w./+@ -]{1,200}", file=True),  # the page
    Route("file", GET, r"/theme\.css|/favicon\.ico", file=True),  # the page
    Route("preview", GET, r"/preview\.png", file=True),  # other sites, for a link's picture
    Route("heartbeat", GET, rf"{API}/heartbeat/(?P<session>{NAME})"),  # the page
    Route("join", POST, rf"{API}/queue/join", "join_body"),  # the page
    Route("listen", GET, rf"{API}/queue/data"),  # the page
    Route("run", POST, rf"{API}/run/predict", "run_body"),  # the page
    Route("cancel", POST, rf"{API}/cancel", "small_body"),  # the page
    Route("reset", POST, rf"{API}/reset", "small_body"),  # the page
    Route("upload", POST, rf"{API}/upload", "upload_body"),  # the page
    Route("config", GET, "/config"),
    Route("info", GET, rf"{API}/info"),
    Route("call", POST, rf"{API}/call/(?P<function>{NAME})", "small_body"),
    Route("call_v2", POST, rf"{API}/call/v2/(?P<function>{NAME})", "small_body"),
    Route("result", GET, rf"{API}/call/(v2/)?(?P<function>{NAME})/(?P<event>{NAME})"),
    Route("started", GET, rf"{API}/startup-events"),
    Route("health", GET, "/health"),
    Route("models", GET, f"{V1}/models", program=True),
    Route("model", GET, rf"{V1}/models/(?P<model>[^\x00-\x1f]{{1,200}})", program=True),
    Route("completions", POST, f"{V1}/completions", "small_body", program=True),
    Route("chat", POST, f"{V1}/chat/completions", "small_body", program=True),
)


def find(method: str, path: str) -> tuple[Route, Mapping[str, str]]:
    """Return a request's route and the named parts of its path; else RefusedError(404 or 405)."""
    known = False
    for route in ROUTES:
        named = route.match(path)
        if named is not None and method in route.methods:
            return route, named
        known = known or named is not None
    if known:
        raise RefusedError(405, f"The method {method[:20]} is not allowed here.")
    raise RefusedError(404, NOT_FOUND)

"""Which routes exist: those the page uses, those its programs use, and no other of Gradio's."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

NAME = r"[A-Za-z0-9_-]{1,64}"  # of sessions, events, uploads and functions
PATTERN = re.compile(NAME)
API = "/gradio_api"


class RefusedError(Exception):
    """Raised for a request that is not let in: an HTTP status, and a sentence for whoever asks."""

    def __init__(self, status: int, sentence: str) -> None:
        """Keep both."""
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


@dataclass(frozen=True)
class Route:
    """A kind of request."""

    name: str
    methods: tuple[str, ...]
    pattern: str  # of the whole path
    body: str = ""  # the field of Bounds that bounds its body, "" where it has none
    file: bool = False  # one of Gradio's own files: cheap, and many at once

    def match(self, path: str) -> Mapping[str, str] | None:
        """Return what the path names, None where it is another route's."""
        found = re.fullmatch(self.pattern, path)
        return found.groupdict() if found else None


GET, POST = ("GET", "HEAD"), ("POST",)
# The page's own are marked; the others are gradio_client's, curl's (About names them), Gradio's
# question to itself as it starts, and a host's.
ROUTES = (
    Route("page", GET, "/"),  # the page
    Route("file", GET, r"/(assets|static)/[\w./+@ -]{1,200}", file=True),  # the page
    Route("file", GET, r"/theme\.css|/favicon\.ico", file=True),  # the page
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
)


def find(method: str, path: str) -> tuple[Route, Mapping[str, str]]:
    """Return the route of a request and what its path names; RefusedError(404 or 405) for none."""
    there = False
    for route in ROUTES:
        named = route.match(path)
        if named is not None and method in route.methods:
            return route, named
        there = there or named is not None
    if there:
        raise RefusedError(405, f"{method[:20]} is not answered here.")
    raise RefusedError(404, "There is nothing here. The page is at /, its endpoints in About.")

"""Security headers of every response, and the origin check of posts.

The page's own scripts and styles are inline, and Gradio compiles templates to functions, so the
policy needs 'unsafe-inline' and 'unsafe-eval'. All other origins are blocked: injected markup could
neither load nor send anything.
"""

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from mlpmem.ui.door.routes import RefusedError

LOCAL = ("localhost", "127.0.0.1", "0.0.0.0", "::1")
SPACE = ("https://huggingface.co", "https://*.hf.space")  # a Space is shown in its host's frame


def friends(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the other origins that may frame the page and post to it.

    They are listed in MLPMEM_ORIGINS, separated by spaces; in a Space its host is added.
    """
    listed = environment.get("MLPMEM_ORIGINS", "").replace(",", " ").split()
    return (*(SPACE if environment.get("SPACE_ID") else ()), *listed)


FRIENDS = friends(os.environ)


def lines(friends: tuple[str, ...] = FRIENDS) -> list[tuple[bytes, bytes]]:
    """Return the headers of every response."""
    policy = {
        "default-src": "'self'",
        "script-src": "'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "connect-src": "'self'",
        "worker-src": "'self' blob:",
        "object-src": "'none'",
        "frame-src": "'none'",
        "base-uri": "'self'",
        "form-action": "'self'",
        "frame-ancestors": " ".join(("'self'", *friends)),
    }
    fields = {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
    return [(name.encode(), value.encode()) for name, value in fields.items()]


def check_origin(headers: Mapping[str, str], friends: tuple[str, ...] = FRIENDS) -> None:
    """Raise RefusedError for a cross-site post.

    Programs send no origin. Behind a proxy, X-Forwarded-Host holds the page's own host.
    """
    origin = headers.get("origin")
    if origin is None:
        return
    host = _host(f"//{headers.get('x-forwarded-host', headers.get('host', '')).split(',')[0]}")
    sender = _host(origin)
    if sender and (sender == host or (sender in LOCAL and host in LOCAL)):
        return
    if not any(_is_of(origin, friend) for friend in friends):
        raise RefusedError(
            403, "Other sites may not post to this page. Open it directly, or use a program."
        )


def _host(url: str) -> str:
    """Return the host of a URL, "" if it has none."""
    try:
        return (urlsplit(url.strip()).hostname or "").lower()
    except ValueError:
        return ""


def _is_of(origin: str, friend: str) -> bool:
    """Return whether an origin matches a friend, which may be "*" or "https://*.host"."""
    scheme, star, rest = friend.partition("*")
    if not star:
        return origin.rstrip("/") == friend.rstrip("/")
    return not rest or (origin.startswith(scheme) and origin.endswith(rest))

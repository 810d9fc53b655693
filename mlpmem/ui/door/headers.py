"""What every answer says to a browser, and which sites' pages may post here.

The page has scripts and styles of its own in its head, and Gradio makes functions of the page's
templates, so both need 'unsafe-inline' and 'unsafe-eval'. Nothing comes from elsewhere: a text that
became markup could load nothing and send nothing away.
"""

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from mlpmem.ui.door.routes import RefusedError

LOCAL = ("localhost", "127.0.0.1", "0.0.0.0", "::1")
SPACE = ("https://huggingface.co", "https://*.hf.space")  # a Space is framed by its host


def friends(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the origins that may frame the page and post to it beside its own.

    MLPMEM_ORIGINS names them, with blanks between; in a Space they are its host's.
    """
    named = environment.get("MLPMEM_ORIGINS", "").replace(",", " ").split()
    return (*(SPACE if environment.get("SPACE_ID") else ()), *named)


FRIENDS = friends(os.environ)


def lines(friends: tuple[str, ...] = FRIENDS) -> list[tuple[bytes, bytes]]:
    """Return the headers of every answer."""
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
    said = {
        "content-security-policy": "; ".join(f"{name} {what}" for name, what in policy.items()),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
    return [(name.encode(), what.encode()) for name, what in said.items()]


def check_origin(headers: Mapping[str, str], friends: tuple[str, ...] = FRIENDS) -> None:
    """Raise RefusedError for a post that another site's page has its visitor's browser send.

    Programs send no origin. Behind a proxy the page's own host is the one that the proxy names.
    """
    origin = headers.get("origin")
    if origin is None:
        return
    host = _host(f"//{headers.get('x-forwarded-host', headers.get('host', '')).split(',')[0]}")
    named = _host(origin)
    if named and (named == host or (named in LOCAL and host in LOCAL)):
        return
    if not any(_is_of(origin, friend) for friend in friends):
        raise RefusedError(
            403, "Another site's page asked this. Open the page itself, or ask from a program."
        )


def _host(url: str) -> str:
    """Return the host of an address, "" where it has none."""
    try:
        return (urlsplit(url.strip()).hostname or "").lower()
    except ValueError:
        return ""


def _is_of(origin: str, friend: str) -> bool:
    """Return whether an origin is a friend, which may be "*", or begin its host with "*."."""
    scheme, star, rest = friend.partition("*")
    if not star:
        return origin.rstrip("/") == friend.rstrip("/")
    return not rest or (origin.startswith(scheme) and origin.endswith(rest))

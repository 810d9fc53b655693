"""Every bound of a hosted page in one table, each settable by an environment variable.

A field `waiting` is set by MLPMEM_WAITING. mlpmem/space/README.md lists them all.
"""

import os
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from mlpmem.errors import MlpMemError


def bound(default: Any, said: str) -> Any:
    """Return a field of Bounds with a line that says what it bounds."""
    return field(default=default, metadata={"said": said})


@dataclass(frozen=True)
class Bounds:
    """The numbers; sizes are bytes, times seconds."""

    # a client: an address, or the first half of one of IPv6
    rate: float = bound(20.0, "requests a second of one client; twice as many at once")
    open: int = bound(48, "requests of one client that are answered at the same time")
    at_once: int = bound(4, "posts of one client that are worked on; the next ones wait")
    waiting: int = bound(2, "jobs of one client that wait in the queue")
    sessions: int = bound(4, "sessions (tabs, programs) of one client that keep a state")
    held_bytes: int = bound(20_000_000, "bodies of one client that are being read or answered")
    client_uploads: int = bound(8, "uploaded files of one client that wait to be read")
    client_upload_bytes: int = bound(32_000_000, "size of these files")
    client_text_bytes: int = bound(150_000_000, "datastores of own texts of one client, beyond one")
    # everybody
    all_open: int = bound(1000, "requests that are answered at the same time")
    all_sessions: int = bound(400, "sessions that keep a state")
    all_held_bytes: int = bound(100_000_000, "large bodies that are being read or answered")
    queue: int = bound(64, "jobs that wait")
    queue_bytes: int = bound(64_000_000, "bodies of jobs that wait")
    upload_bytes: int = bound(400_000_000, "uploaded files on disk, 64 kB each at least")
    shelf_bytes: int = bound(600_000_000, "datastores of own texts in memory")
    # one request
    join_body: int = bound(8_000_000, "body of a job: a pasted text is in it")
    run_body: int = bound(16_000_000, "body of a quick request: a saved run is in it")
    upload_body: int = bound(8_400_000, "body of an upload, which is one file")
    small_body: int = bound(65_536, "body of any other request, and all of a body but its texts")
    body_seconds: float = bound(10.0, "wait for a body, and one second more for every 20 kB")
    characters: int = bound(2000, "characters of a prompt")
    new_tokens: int = bound(128, "tokens of an answer")
    text_bytes: int = bound(2_000_000, "one own text")
    run_seconds: float = bound(180.0, "computing one answer")
    # how long something is kept
    listen_seconds: float = bound(10.0, "a job waits for somebody who listens to its answer")
    result_seconds: float = bound(60.0, "an answer that nobody fetches is kept")
    unread: int = bound(200, "messages that a client may leave unread before it asks again")
    partial_seconds: float = bound(60.0, "a file that was not uploaded whole is kept")
    upload_seconds: float = bound(600.0, "an uploaded file that nobody reads is kept")
    text_seconds: float = bound(3600.0, "the datastore of an own text is kept")


def variable(row: Field) -> str:
    """Return the environment variable that sets a bound."""
    return f"MLPMEM_{row.name.upper()}"


def read(environment: Mapping[str, str]) -> Bounds:
    """Return the bounds that an environment sets; MlpMemError names a variable that is no number.

    An empty variable is none.
    """
    found = {}
    for row in fields(Bounds):
        if not (text := environment.get(variable(row), "").strip()):
            continue
        kind = type(row.default)
        try:
            found[row.name] = kind(text)
        except ValueError:
            found[row.name] = 0
        if not 0 < found[row.name] < 1e15:
            whole = "a whole number" if kind is int else "a number"
            raise MlpMemError(
                f"{variable(row)} must be {whole} above 0; got {text[:40]!r}. It bounds: "
                f"{row.metadata['said']}. Correct it, or leave it out for {row.default:,}."
            )
    return Bounds(**found)


BOUNDS = read(os.environ)

"""Every limit of a hosted page in one table.

The environment variable MLPMEM_WAITING sets the field `waiting`. mlpmem/space/README.md lists all.
"""

import os
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from mlpmem.errors import MlpMemError


def bound(default: Any, description: str) -> Any:
    """Return a field of Bounds with a description of what it limits."""
    return field(default=default, metadata={"description": description})


@dataclass(frozen=True)
class Bounds:
    """The limits; sizes are in bytes, times in seconds."""

    # per client: an IPv4 address, or an IPv6 network of 64 bits
    rate: float = bound(20.0, "requests per second of one client; a burst of twice as many")
    open: int = bound(48, "requests of one client answered at the same time")
    connections: int = bound(200, "connections of one client without a request")
    at_once: int = bound(4, "posts of one client processed at the same time; more wait")
    waiting: int = bound(2, "queued jobs of one client")
    sessions: int = bound(4, "sessions (tabs, programs) of one client with a stored state")
    held_bytes: int = bound(20_000_000, "request bodies of one client in memory")
    byte_rate: float = bound(
        1e6, "body bytes per second of one client; a burst of 20 times as many"
    )
    client_uploads: int = bound(64, "uploaded files of one client not yet read")
    client_upload_bytes: int = bound(32_000_000, "total size of these files")
    client_text_bytes: int = bound(150_000_000, "own texts' datastores of one client, beyond one")
    # all clients together
    runs: int = bound(2, "answers computed at the same time, each of another client")
    all_open: int = bound(1000, "requests answered at the same time")
    all_sessions: int = bound(400, "sessions with a stored state")
    all_held_bytes: int = bound(100_000_000, "large request bodies in memory")
    queue: int = bound(64, "queued jobs")
    queue_bytes: int = bound(64_000_000, "request bodies of queued jobs")
    upload_bytes: int = bound(400_000_000, "uploaded files on disk; each counts at least 64 kB")
    shelf_bytes: int = bound(600_000_000, "datastores of own texts in memory")
    # per request
    join_body: int = bound(8_000_000, "body of a job; it may contain a pasted text")
    run_body: int = bound(16_000_000, "body of a quick request; it may contain a saved run")
    upload_body: int = bound(8_400_000, "body of an upload of one file")
    small_body: int = bound(65_536, "body of any other request, and any body without its strings")
    body_seconds: float = bound(10.0, "reading headers, or a body, plus one second per 20 kB")
    characters: int = bound(2000, "characters of a prompt")
    new_tokens: int = bound(128, "tokens of an answer")
    chat_tokens: int = bound(512, "tokens of an answer in the chat, with those it continues")
    chat_bytes: int = bound(400_000, "the earlier turns of one question in the chat")
    choices: int = bound(16, "answers of one request to /v1: its prompts times n")
    text_bytes: int = bound(2_000_000, "one own text")
    convert_seconds: float = bound(20.0, "reading one web page or PDF")
    run_seconds: float = bound(180.0, "computing one answer")
    sentences: int = bound(20, "sentences that one visitor tells")
    sentence: int = bound(300, "characters of one of them")
    teach_seconds: float = bound(60.0, "training of a taught memory")
    teach_reading: float = bound(30.0, "reading old chats before the training of a taught memory")
    taught_bytes: int = bound(400_000_000, "taught memories of all clients, in memory")
    client_taught_bytes: int = bound(100_000_000, "taught memories of one client, beyond one")
    # retention
    listen_seconds: float = bound(10.0, "a job waits for a listener")
    result_seconds: float = bound(60.0, "an answer waits to be fetched")
    unread: int = bound(200, "unread messages of a session before its next job is refused")
    partial_seconds: float = bound(60.0, "an incomplete upload is kept")
    upload_seconds: float = bound(600.0, "an unread upload is kept")
    text_seconds: float = bound(3600.0, "the datastore of an own text is kept")


def variable(row: Field) -> str:
    """Return the environment variable that sets a bound."""
    return f"MLPMEM_{row.name.upper()}"


def read(environment: Mapping[str, str]) -> Bounds:
    """Return the bounds that an environment sets; an empty variable keeps the default.

    MlpMemError names a variable that is not a positive number.
    """
    values = {}
    for row in fields(Bounds):
        if not (text := environment.get(variable(row), "").strip()):
            continue
        kind = type(row.default)
        try:
            values[row.name] = kind(text)
        except ValueError:
            values[row.name] = 0
        if not 0 < values[row.name] < 1e15:
            whole = "a whole number" if kind is int else "a number"
            raise MlpMemError(
                f"{variable(row)} must be {whole} above 0; got {text[:40]!r}. It limits: "
                f"{row.metadata['description']}. Correct it, or unset it for {row.default:,}."
            )
    return Bounds(**values)


BOUNDS = read(os.environ)

"""A run as plain values, for exports and the API, and the checks of a saved run that is opened.

A saved run may come from anywhere: Trace.from_dict reads it, every size and number is bounded here,
and only known fields are passed on to the page. It is shown without the model.
"""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from mlpmem.engine.trace import AUTO, PARTS, SOURCES, VERSION, Trace
from mlpmem.errors import MlpMemError, public_text
from mlpmem.formats import is_number, parse_json, valid
from mlpmem.loading.extra_columns import NAME
from mlpmem.ui.request import stream
from mlpmem.ui.request.inputs import event_values

MAX_BYTES = 6_000_000
MAX_STEPS, MAX_CANDIDATES, MAX_NEIGHBOURS, MAX_TEXT, MAX_COLUMNS = 512, 64, 64, 20_000, 12
KNOWN = ("answer", "part", "wording")
AGAIN = "Save the run again on this page, and open that file."


def record(
    prompt: str, known: Mapping[str, Any], lmbda: float | None, traces: Mapping[str, Trace]
) -> dict:
    """Return a run; lmbda is the displayed one, None if each trace has its own."""
    plain = {system: trace.to_dict() for system, trace in traces.items()}
    return {"v": VERSION, "prompt": prompt, **known, "lmbda": lmbda, "traces": plain}


def read(text: Any) -> dict:
    """Return the run of a file's text, as `record` wrote it; MlpMemError if it is invalid."""
    if not isinstance(text, str) or len(text) > MAX_BYTES:
        raise MlpMemError(f"The file must be a text of at most {MAX_BYTES:,} characters. {AGAIN}")
    try:
        row = parse_json(text)
    except ValueError as error:
        raise MlpMemError(f"The file is not JSON ({error}). {AGAIN}") from error
    row = row if isinstance(row, dict) else {}
    if row.get("kind") == "chat":
        raise MlpMemError("The file is a saved conversation. Open it with Share, in the chat.")
    if row.get("v") != VERSION or not isinstance(row.get("traces"), dict):
        raise MlpMemError(f"The file is not a saved run of version {VERSION}. {AGAIN}")
    lmbda = row.get("lmbda")
    _check(lmbda is None or _is_share(lmbda), "lmbda must be between 0 and 1")
    _check(0 < len(row["traces"]) <= MAX_COLUMNS, f"it must have 1 to {MAX_COLUMNS} columns")
    traces = {system: _trace(system, trace) for system, trace in row["traces"].items()}
    aliases = row.get("aliases") or []
    _check(isinstance(aliases, list) and len(aliases) <= 32, "it must have at most 32 aliases")
    known = {name: _text(row.get(name) or "") for name in KNOWN}
    known["aliases"] = [_text(alias) for alias in aliases]
    own = {"own": True} if row.get("own") is True else {}  # it searched a visitor's own text
    chat = {"chat": True} if row.get("chat") is True else {}  # it was asked as a chat
    return record(_text(row.get("prompt")), known, lmbda, traces) | own | chat


def _trace(system: str, row: Any) -> Trace:
    """Return one column, with the checks that Trace.from_dict omits."""
    trace = Trace.from_dict(row)
    _check(_is_column(system, trace.system), f"column {system[:40]!r} is not valid")
    _check(trace.lmbda == AUTO or _is_share(trace.lmbda), "a lambda must be between 0 and 1")
    _check(len(trace.steps) <= MAX_STEPS, f"a column must have at most {MAX_STEPS} tokens")
    ids = trace.prompt_ids
    _check(isinstance(ids, list) and all(isinstance(i, int) for i in ids), "it has no prompt_ids")
    _forced(trace)
    settings = {n: v for n, v in trace.settings.items() if n not in ("forced", "stop", "special")}
    stops = trace.settings.get("stop", [])
    texts = isinstance(stops, list) and all(isinstance(text, str) for text in stops)
    _check(texts and trace.settings.get("special", True) is True, "its settings are malformed")
    for mapping in (settings, trace.model, trace.cost):
        plain = isinstance(mapping, dict) and len(mapping) <= 64
        _check(plain and all(isinstance(v, str) or is_number(v) for v in mapping.values()),
               "settings, model and cost must contain texts and numbers only")  # fmt: skip
    for text in (trace.text, trace.prompt, trace.finish):
        _text(text)
    for index, step in enumerate(trace.steps):
        _step(step, index)
        own = _is_share(step.lmbda) if trace.lmbda == AUTO else step.lmbda is None
        _check(own, "a token's own lambda must be between 0 and 1")
    return trace


def _is_column(name: str, system: Any) -> bool:
    """Return whether a column's name is valid; a system's name is reserved for that system."""
    free = name not in PARTS and NAME.fullmatch(name) is not None
    mixes = isinstance(system, str) and system in PARTS
    return mixes and (name == system or free)


def _forced(trace: Trace) -> None:
    """Check that a branch begins with its forced tokens."""
    _check(isinstance(trace.settings, dict), "settings must be an object")
    forced = trace.settings.get("forced", [])
    ids = [step.token_id for step in trace.steps]
    _check(isinstance(forced, list) and forced == ids[: len(forced)], "its forced tokens differ")


def _step(step: Any, index: int) -> None:
    """Check the integers, texts and probabilities of one token."""
    _check(step.index == index and isinstance(step.token_id, int), "its tokens are out of order")
    _check(len(step.candidates) <= MAX_CANDIDATES, "a token has too many candidates")
    counted = step.top is None or type(step.top) is int and 0 < step.top <= MAX_CANDIDATES
    _check(counted, "a number of candidates must be positive")
    _check(len(step.neighbours) <= MAX_NEIGHBOURS, "a token has too many neighbours")
    _check(len(step.unshown) <= MAX_CANDIDATES + 1, "a token has too many unshown neighbours")
    valid_masses = all(type(i) is int and _is_share(p) for i, p in step.unshown.items())
    _check(valid_masses, "an unshown neighbour has no token id or no mass")
    for candidate in step.candidates:
        _check(isinstance(candidate.token_id, int), "a candidate has no token id")
        _text(candidate.text)
        _probabilities(candidate.probs)
    for n in step.neighbours:
        for text in (n.title, n.group, n.left, n.target, n.right):
            _text(text)
        ids = isinstance(n.entry, int) and isinstance(n.target_id, int)
        numbers = is_number(n.distance) and _is_share(n.weight)
        _check(ids and numbers, "a neighbour has no entry, distance or weight")
    _text(step.text)
    _probabilities(step.probs)
    _probabilities(step.rest)
    _check(step.js is None or is_number(step.js), "a divergence must be a number")
    _check(is_number(step.ms), "a time must be a number")


def _probabilities(probs: Any) -> None:
    known = {*SOURCES, "fused"}
    _check(isinstance(probs, dict) and "lm" in probs and set(probs) <= known, "a source is unknown")
    _check(all(map(_is_share, probs.values())), "a probability must be between 0 and 1")


def _text(value: Any) -> str:
    _check(isinstance(value, str) and len(value) <= MAX_TEXT, "a text is missing or too long")
    _check(valid(value) == value, "a text has invalid characters")
    return value


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1.000001  # rounding to six digits


def _check(fine: bool, what: str) -> None:
    if not fine:
        raise MlpMemError(f"The run cannot be shown: {what}. {AGAIN}")


def shown(event: gr.EventData, others: Mapping[str, str]) -> dict:
    """Return the token view's value for a file's text, or its error message.

    A run of one of the page's other models is refused; others has their titles by name.
    """
    try:
        run = read(event_values(event).get("text"))
        for trace in run["traces"].values():
            if title := others.get(trace["model"].get("bundle")):
                raise MlpMemError(f"This is a run of {title}. Switch to {title} and open it there.")
    except MlpMemError as error:
        return stream.message(public_text(error))
    return {"kind": "opened", "run": stream.new_run(), **run}

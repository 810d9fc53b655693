"""A run as plain values: what is exported, what the API returns, what can be opened again.

What is opened comes from anywhere: the trace's own loader reads it, every size and number is
bounded here, and only values that the loader knows go on to the page.

A saved run that a visitor opens: checked, then shown without the model.
"""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from mlpmem.engine.trace import AUTO, PARTS, SOURCES, VERSION, Trace
from mlpmem.errors import MlpMemError, public_text
from mlpmem.formats import is_number, parse_json, valid
from mlpmem.loading.extra_columns import NAME
from mlpmem.ui.components import packed
from mlpmem.ui.request import stream
from mlpmem.ui.request.inputs import event_values

MAX_BYTES = 6_000_000
MAX_STEPS, MAX_CANDIDATES, MAX_NEIGHBOURS, MAX_TEXT, MAX_COLUMNS = 512, 64, 64, 20_000, 12
KNOWN = ("answer", "part", "wording")
AGAIN = "Save the run again on this page, and open that file."


def record(
    prompt: str, known: Mapping[str, Any], lmbda: float | None, traces: Mapping[str, Trace]
) -> dict:
    """Return a run; lmbda is the one it is shown at, None where each trace has its own."""
    plain = {system: trace.to_dict() for system, trace in traces.items()}
    return {"v": VERSION, "prompt": prompt, **known, "lmbda": lmbda, "traces": plain}


def read(text: Any) -> dict:
    """Return the run of a file's text, as `record` wrote it; MlpMemError says what is wrong."""
    if not isinstance(text, str) or len(text) > MAX_BYTES:
        raise MlpMemError(f"That is no text of at most {MAX_BYTES:,} characters. {AGAIN}")
    try:
        row = parse_json(text)
    except ValueError as error:
        raise MlpMemError(f"That file is no JSON ({error}). {AGAIN}") from error
    row = row if isinstance(row, dict) else {}
    if row.get("v") != VERSION or not isinstance(row.get("traces"), dict):
        raise MlpMemError(f"That file is no saved run of version {VERSION}. {AGAIN}")
    lmbda = row.get("lmbda")
    _check(lmbda is None or _is_share(lmbda), "lmbda is no number from 0 to 1")
    _check(0 < len(row["traces"]) <= MAX_COLUMNS, "it has no column, or too many")
    traces = {system: _trace(system, trace) for system, trace in row["traces"].items()}
    aliases = row.get("aliases") or []
    _check(isinstance(aliases, list) and len(aliases) <= 32, "aliases is no short list")
    known = {name: _text(row.get(name) or "") for name in KNOWN}
    known["aliases"] = [_text(alias) for alias in aliases]
    own = {"own": True} if row.get("own") is True else {}  # of a visitor's own text
    return record(_text(row.get("prompt")), known, lmbda, traces) | own


def _trace(system: str, row: Any) -> Trace:
    """Return one column after checking what the loader takes on trust."""
    trace = Trace.from_dict(row)
    _check(_is_column(system, trace.system), f"column {system[:40]!r} is not one of ours")
    _check(trace.lmbda == AUTO or _is_share(trace.lmbda), "a column's lambda is not from 0 to 1")
    _check(len(trace.steps) <= MAX_STEPS, f"it has more than {MAX_STEPS} tokens")
    ids = trace.prompt_ids
    _check(isinstance(ids, list) and all(isinstance(i, int) for i in ids), "its prompt has no ids")
    _forced(trace)
    settings = {n: v for n, v in trace.settings.items() if n not in ("forced", "stop", "special")}
    stops = trace.settings.get("stop", [])
    whole = isinstance(stops, list) and all(isinstance(text, str) for text in stops)
    _check(whole and trace.settings.get("special", True) is True, "its settings are malformed")
    for mapping in (settings, trace.model, trace.cost):
        plain = isinstance(mapping, dict) and len(mapping) <= 64
        _check(plain and all(isinstance(v, str) or is_number(v) for v in mapping.values()),
               "settings, model or cost hold more than texts and numbers")  # fmt: skip
    for text in (trace.text, trace.prompt, trace.finish):
        _text(text)
    for index, step in enumerate(trace.steps):
        _step(step, index)
        own = _is_share(step.lmbda) if trace.lmbda == AUTO else step.lmbda is None
        _check(own, "a token's own lambda is missing, or no number from 0 to 1")
    return trace


def _is_column(name: str, system: Any) -> bool:
    """Return whether a column may be called so: a system's name is for that system alone."""
    of_its_own = name not in PARTS and NAME.fullmatch(name) is not None
    mixes = isinstance(system, str) and system in PARTS
    return mixes and (name == system or of_its_own)


def _forced(trace: Trace) -> None:
    """Check the ids of a branch's given tokens: they are its first ones."""
    _check(isinstance(trace.settings, dict), "its settings are no object")
    forced = trace.settings.get("forced", [])
    made = [step.token_id for step in trace.steps]
    _check(isinstance(forced, list) and forced == made[: len(forced)], "its given tokens differ")


def _step(step: Any, index: int) -> None:
    """Check one token: whole numbers, texts, probabilities."""
    _check(step.index == index and isinstance(step.token_id, int), "its tokens are out of order")
    _check(len(step.candidates) <= MAX_CANDIDATES, "a token has too many candidates")
    _check(len(step.neighbours) <= MAX_NEIGHBOURS, "a token has too many neighbours")
    _check(len(step.unshown) <= MAX_CANDIDATES + 1, "a token has too many unshown neighbours")
    whole = all(type(i) is int and _is_share(p) for i, p in step.unshown.items())
    _check(whole, "an unshown neighbour has no token id or no mass")
    for candidate in step.candidates:
        _check(isinstance(candidate.token_id, int), "a candidate has no token id")
        _text(candidate.text)
        _probabilities(candidate.probs)
    for near in step.neighbours:
        for text in (near.title, near.group, near.left, near.target, near.right):
            _text(text)
        ids = isinstance(near.entry, int) and isinstance(near.target_id, int)
        numbers = is_number(near.distance) and _is_share(near.weight)
        _check(ids and numbers, "a neighbour has no entry, distance or weight")
    _text(step.text)
    _probabilities(step.probs)
    _probabilities(step.rest)
    _check(step.js is None or is_number(step.js), "a divergence is no number")
    _check(is_number(step.ms), "a time is no number")


def _probabilities(probs: Any) -> None:
    known = {*SOURCES, "fused"}
    _check(isinstance(probs, dict) and "lm" in probs and set(probs) <= known, "a source is unknown")
    _check(all(map(_is_share, probs.values())), "a probability is no number from 0 to 1")


def _text(value: Any) -> str:
    _check(isinstance(value, str) and len(value) <= MAX_TEXT, "a text is missing or too long")
    _check(valid(value) == value, "a text is broken")
    return value


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1.000001  # six digits are kept, so 1 may round up


def _check(fine: bool, what: str) -> None:
    if not fine:
        raise MlpMemError(f"That run cannot be shown: {what}. {AGAIN}")


def show(event: gr.EventData) -> dict:
    """Return the token view's value for the file's text, or one that says what is wrong."""
    try:
        run = read(event_values(event).get("text"))
    except MlpMemError as error:
        return packed(stream.message(public_text(error)))
    return packed({"kind": "opened", "run": stream.new_run(), **run})

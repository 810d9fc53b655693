"""Checks of a visitor's values; every number is bounded here, whatever the widgets allow."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlpmem.engine.trace import AUTO, SOURCES
from mlpmem.errors import MlpMemError
from mlpmem.formats import is_number, valid
from mlpmem.ui.door.bounds import BOUNDS as DOOR

MAX_CHARACTERS = DOOR.characters
MAX_NEW_TOKENS = DOOR.new_tokens
MAX_IDS = 4096  # context tokens of a probe; the decoder's own limit may be lower
MAX_PROBE = 40
MAX_BROUGHT = 200_000  # characters of an answer's text with its token ids
MAX_STOPS = 8  # stop texts
# field -> (name in messages, name in links, least, most, default)
BOUNDS = {
    "max_new_tokens": ("max new tokens", "tokens", 1, MAX_NEW_TOKENS, 32),
    "temperature": ("temperature", "temperature", 0.0, 2.0, 0.0),
    "top_p": ("top-p", "top_p", 0.01, 1.0, 1.0),
    "top_k": ("top-k", "top_k", 0, 100_000, 0),
    "seed": ("seed", "seed", 0, 2**31 - 1, 0),
    "min_p": ("min-p", "min_p", 0.0, 1.0, 0.0),
    "repetition_penalty": ("repetition penalty", "penalty", 0.1, 10.0, 1.0),
}


@dataclass(frozen=True)
class RequestOptions:
    """How to generate; lmbda None is the bundle's own."""

    lmbda: float | str | None = None  # AUTO: a router chooses it for every token
    max_new_tokens: int = 32
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()  # stop texts
    special: bool = False  # control tokens in the prompt are parsed

    def as_arguments(self) -> dict:
        """Return the options as keyword arguments of Model.generate and Model.compare."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Request:
    """A request of a column's own buttons, in the terms of its trace."""

    kind: str  # "scrub", "branch", or "typed": all columns again with the prompt as typed
    run: str  # id of the run on screen
    prompt: str
    system: str
    options: RequestOptions
    forced: list[int]
    own: str  # short id of the searched own text, or ""
    systems: list[str]  # of "typed"
    chat: bool = False  # the prompt was asked as a chat


def check_request(data: object, offered: Sequence[str] = ()) -> Request:
    """Return a checked request; MlpMemError names the invalid value.

    Only the batch's mixed columns can be scrubbed; any column can be branched.
    """
    data = data if isinstance(data, dict) else {}
    settings = data.get("settings") if isinstance(data.get("settings"), dict) else {}
    run, forced = data.get("run"), data.get("forced", [])
    valid_ids = isinstance(forced, list) and all(type(i) is int and i >= 0 for i in forced)
    mixed = [*SOURCES[1:], *(name for name in offered if name == "mixed")]
    branched = [*SOURCES, *offered]
    allowed = {"scrub": mixed, "branch": branched, "typed": branched}.get(str(data.get("kind")), [])
    known = data.get("system") in allowed
    if not (known and valid_ids and len(forced) <= MAX_NEW_TOKENS and isinstance(run, str)):
        raise MlpMemError("This column does not support that. Generate again and retry.")
    return Request(
        kind=data["kind"],
        run=run[:40],
        prompt=check_text(data.get("typed" if data["kind"] == "typed" else "prompt")),
        system=data["system"],
        options=check_options(
            data.get("lmbda"),
            *(settings.get(field) for field in BOUNDS),
            stop=settings.get("stop"),
            special=settings.get("special"),
        ),
        forced=forced,
        own=str(data.get("own") or "")[:40],
        systems=[
            s for s in branched if isinstance(data.get("systems"), list) and s in data["systems"]
        ],
        chat=data.get("chat") is True and data["kind"] != "typed",
    )


def event_values(event: Any) -> dict:
    """Return the data of a page's event, {} if it is not an object."""
    return event._data if isinstance(event._data, dict) else {}


def check_text(text: object, what: str = "prompt", most: int = MAX_CHARACTERS) -> str:
    """Return the text unchanged; MlpMemError if it is empty or too long."""
    if not isinstance(text, str) or not text.strip():
        raise MlpMemError(f"The {what} is empty. Write one, or pick an example.")
    text = valid(text)
    if len(text) > most:
        raise MlpMemError(
            f"The {what} must have at most {most:,} characters; got {len(text):,}. "
            "Shorten it and try again."
        )
    return text


def check_number(value: object, name: str, low: float, high: float, default: float) -> float:
    """Return a number in [low, high], default for an empty field; else MlpMemError."""
    if value is None or value == "":
        return default
    if not is_number(value):
        raise MlpMemError(
            f"{name} must be a number from {low:g} to {high:,.10g}; got {value!r:.60}."
        )
    if not low <= value <= high:
        raise MlpMemError(
            f"{name} must be between {low:g} and {high:,.10g}; got {value:,.10g}. Correct it."
        )
    return value


def check_probe(data: dict) -> tuple[list[int], str]:
    """Return (context's token ids, probed text); MlpMemError for invalid data."""
    ids, text = data.get("ids"), data.get("text")
    valid_ids = isinstance(ids, list) and all(type(i) is int and 0 <= i < 2**31 for i in ids)
    if not valid_ids or not 0 < len(ids) <= MAX_IDS:
        raise MlpMemError("The position is no longer known. Choose a token again.")
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_PROBE:
        raise MlpMemError(f"Type a token: a word of 1 to {MAX_PROBE} characters.")
    return ids, valid(text)


def brought_ids(value: object, text: object) -> list[int]:
    """Return the token ids that an answer brought with this very text; none for another text."""
    if not isinstance(value, str) or len(value) > MAX_BROUGHT:
        return []
    try:
        brought = json.loads(value)
    except (ValueError, RecursionError):
        return []
    if not isinstance(brought, dict) or not text or brought.get("text") != text:
        return []
    ids = brought.get("ids")
    valid_ids = isinstance(ids, list) and all(type(i) is int and 0 <= i < 2**31 for i in ids)
    return ids if valid_ids else []


def check_lmbda(value: object) -> float | str | None:
    """Return the bar's lambda in 0..1, None if untouched, AUTO for a router's; else MlpMemError."""
    lmbda = value.get("lmbda") if isinstance(value, dict) else value
    if lmbda == AUTO and isinstance(lmbda, str):
        return AUTO
    return None if lmbda is None else float(check_number(lmbda, "lambda", 0.0, 1.0, 0.5))


def check_options(
    lmbda: object,
    tokens: object,
    temperature: object,
    top_p: object,
    top_k: object,
    seed: object,
    min_p: object = None,
    repetition_penalty: object = None,
    stop: object = None,
    special: object = False,
) -> RequestOptions:
    """Return checked options; MlpMemError names the first invalid one."""
    numbers = tokens, temperature, top_p, top_k, seed, min_p, repetition_penalty
    values = {}
    for field, value in zip(BOUNDS, numbers, strict=True):
        name, _, low, high, default = BOUNDS[field]
        values[field] = type(default)(check_number(value, name, low, high, default))
    return RequestOptions(
        lmbda=check_lmbda(lmbda), stop=check_stop(stop), special=special is True, **values
    )


def check_stop(stop: object) -> tuple[str, ...]:
    """Return the stop texts; MlpMemError for invalid or too many ones."""
    texts = [stop] if isinstance(stop, str) else [] if stop is None else stop
    are_texts = isinstance(texts, list | tuple) and all(isinstance(t, str) and t for t in texts)
    if not are_texts or len(texts) > MAX_STOPS or any(len(t) > MAX_PROBE for t in texts):
        raise MlpMemError(
            f"stop must be up to {MAX_STOPS} texts of 1 to {MAX_PROBE} characters, such as "
            f'["\\n"]; got {stop!r:.80}. Correct it.'
        )
    return tuple(valid(text) for text in texts)


def check_systems(
    chosen: object, available: Sequence[str], offered: Sequence[str] = ()
) -> list[str]:
    """Return the chosen systems that are available or offered, all available ones for None.

    MlpMemError if there is none, or if a name is unknown.
    """
    if chosen is None:
        return list(available)
    known = [*available, *(s for s in SOURCES if s not in available), *offered]
    if not isinstance(chosen, list | tuple):
        raise MlpMemError(
            f"systems must be a list with some of {', '.join(known)}; got {chosen!r:.200}."
        )
    for name in chosen:
        if name not in known:
            raise MlpMemError(f"Unknown column {name!r:.80}. Choose from {', '.join(known)}.")
    systems = [system for system in (*available, *offered) if system in chosen]
    if not systems:
        what = f"{', '.join(chosen)} is not available yet" if chosen else "No column is chosen"
        raise MlpMemError(f"{what}. Choose from {', '.join(available)}.")
    return systems


@dataclass(frozen=True)
class Link:
    """The values of a permalink."""

    prompt: str
    options: RequestOptions
    systems: list[str]


def read_link(
    query: Mapping[str, Any], offered: Sequence[str] = (), usual: Sequence[str] = SOURCES
) -> Link | None:
    """Return the values of a link's query, None without a prompt; usual are the default columns.

    A link may be cut or edited, so nothing in it is an error: a number outside its bounds is
    clamped, any other invalid value becomes the default.
    """
    prompt = str(query.get("q") or "")[:MAX_CHARACTERS]
    if not prompt.strip():
        return None
    numbers = {}
    for field, (_, key, low, high, default) in BOUNDS.items():
        numbers[field] = type(default)(_clamped(query.get(key), low, high, default))
    auto = query.get("lambda") == AUTO
    lmbda = AUTO if auto else _clamped(query.get("lambda"), 0.0, 1.0, None)
    names = str(query.get("systems") or "").split(",")
    systems = [s for s in (*SOURCES, *offered) if s in names] or list(usual)
    return Link(prompt, RequestOptions(lmbda=lmbda, **numbers), systems)


def _clamped(text: Any, low: float, high: float, default: float | None) -> float | None:
    """Return a text's number clamped to its bounds, default if it is not a number."""
    try:
        value = float(text)
    except (TypeError, ValueError, OverflowError):
        return default
    return min(max(value, low), high) if is_number(value) else default

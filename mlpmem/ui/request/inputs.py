"""Checks of what a visitor sends: every number is bounded here, whatever the widgets allow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlpmem.engine.trace import AUTO, SOURCES
from mlpmem.errors import MlpMemError
from mlpmem.formats import is_number, valid
from mlpmem.ui.door.bounds import BOUNDS as DOOR

MAX_CHARACTERS = DOOR.characters
MAX_NEW_TOKENS = DOOR.new_tokens
MAX_IDS = 4096  # tokens before a probed one; the decoder itself may read fewer
MAX_PROBE = 40
MAX_STOPS = 8  # texts that end an answer
# field -> (its name in a sentence, in a link, least, most, default)
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
    """How to generate; lmbda None is what the bundle is used with."""

    lmbda: float | str | None = None  # or AUTO: the router's, for every token
    max_new_tokens: int = 32
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()  # texts that end an answer
    special: bool = False  # control tokens that the prompt spells are read as such

    def as_arguments(self) -> dict:
        """Return the keyword arguments of `generate` and `compare`."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Request:
    """What one column on the page is asked for, in the trace's own terms."""

    kind: str  # "scrub", "branch", or "typed": the whole run again, its prompt as it was typed
    run: str  # the page's name for what is on screen
    prompt: str
    system: str
    options: RequestOptions
    forced: list[int]
    own: str  # the page's name for the visitor's text that it searched, or ""
    systems: list[str]  # of a run that is typed


def check_request(data: object, offered: Sequence[str] = ()) -> Request:
    """Return a checked request of the page; MlpMemError names what is wrong with it.

    Scrubbing is for what is mixed in the model's batch; any column can be branched.
    """
    data = data if isinstance(data, dict) else {}
    settings = data.get("settings") if isinstance(data.get("settings"), dict) else {}
    run, forced = data.get("run"), data.get("forced", [])
    whole = isinstance(forced, list) and all(type(i) is int and i >= 0 for i in forced)
    mixed = [*SOURCES[1:], *(name for name in offered if name == "mixed")]
    branched = [*SOURCES, *offered]
    asked = {"scrub": mixed, "branch": branched, "typed": branched}.get(str(data.get("kind")), [])
    known = data.get("system") in asked
    if not (known and whole and len(forced) <= MAX_NEW_TOKENS and isinstance(run, str)):
        raise MlpMemError("That cannot be asked of this column. Generate again and retry.")
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
    )


def event_values(event: Any) -> dict:
    """Return what a part of the page sent with its event, {} where it is no object."""
    return event._data if isinstance(event._data, dict) else {}


def _list(value: object) -> list:
    """Return a value that is a list, an empty one for any other."""
    return value if isinstance(value, list) else []


def check_text(text: object, what: str = "prompt", most: int = MAX_CHARACTERS) -> str:
    """Return the text as it was typed; MlpMemError if it is empty or over-long."""
    if not isinstance(text, str) or not text.strip():
        raise MlpMemError(f"The {what} is empty. Write one, or pick an example.")
    text = valid(text)
    if len(text) > most:
        raise MlpMemError(
            f"The {what} has {len(text):,} characters; at most {most:,} are taken. "
            "Shorten it and try again."
        )
    return text


def check_number(value: object, name: str, low: float, high: float, default: float) -> float:
    """Return value as a number in [low, high], or default for an empty field; else MlpMemError."""
    if value is None or value == "":
        return default
    if not is_number(value):
        raise MlpMemError(
            f"{name} is {repr(value)[:60]}; a number from {low:g} to {high:,.10g} is needed."
        )
    if not low <= value <= high:
        raise MlpMemError(
            f"{name} is {value:,.10g}; it must lie between {low:g} and {high:,.10g}. Correct it."
        )
    return value


def check_probe(data: dict) -> tuple[list[int], str]:
    """Return (token ids before, the named text) of a probe; MlpMemError for anything else."""
    ids, text = data.get("ids"), data.get("text")
    whole = isinstance(ids, list) and all(type(i) is int and 0 <= i < 2**31 for i in ids)
    if not whole or not 0 < len(ids) <= MAX_IDS:
        raise MlpMemError("The position is not known any more. Choose a token again.")
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_PROBE:
        raise MlpMemError(f"Name a token: a word of 1 to {MAX_PROBE} characters.")
    return ids, valid(text)


def check_lmbda(value: object) -> float | str | None:
    """Return the bar's lambda: None while it is untouched, AUTO where a router is to choose.

    MlpMemError outside 0..1.
    """
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
    """Return checked options; MlpMemError names the first that is out of bounds."""
    numbers = tokens, temperature, top_p, top_k, seed, min_p, repetition_penalty
    given = zip(BOUNDS, numbers, strict=True)
    found = {}
    for field, value in given:
        name, _, low, high, default = BOUNDS[field]
        found[field] = type(default)(check_number(value, name, low, high, default))
    return RequestOptions(
        lmbda=check_lmbda(lmbda), stop=check_stop(stop), special=special is True, **found
    )


def check_stop(stop: object) -> tuple[str, ...]:
    """Return the texts that end an answer; MlpMemError for others, or for too many."""
    texts = [stop] if isinstance(stop, str) else [] if stop is None else stop
    whole = isinstance(texts, list | tuple) and all(isinstance(t, str) and t for t in texts)
    if not whole or len(texts) > MAX_STOPS or any(len(t) > MAX_PROBE for t in texts):
        raise MlpMemError(
            f"stop is {repr(stop)[:80]}; give up to {MAX_STOPS} texts of 1 to {MAX_PROBE} "
            'characters, such as ["\\n"].'
        )
    return tuple(valid(text) for text in texts)


def check_systems(chosen: object, there: Sequence[str], offered: Sequence[str] = ()) -> list[str]:
    """Return the chosen systems that are there or offered, those there for None.

    MlpMemError where none is, or one is not known at all.
    """
    if chosen is None:
        return list(there)
    known = [*there, *(s for s in SOURCES if s not in there), *offered]
    if not isinstance(chosen, list | tuple):
        raise MlpMemError(
            f"systems is {repr(chosen)[:200]}; give a list with some of {', '.join(known)}."
        )
    for name in chosen:
        if name not in known:
            raise MlpMemError(f"{repr(name)[:80]} is no column; choose from {', '.join(known)}.")
    kept = [system for system in (*there, *offered) if system in chosen]
    if not kept:
        what = f"{', '.join(chosen)}: not there, or not yet" if chosen else "No column is chosen"
        raise MlpMemError(f"{what}; there is {', '.join(there)}. Choose from these.")
    return kept


@dataclass(frozen=True)
class Link:
    """What a permalink asks for."""

    prompt: str
    options: RequestOptions
    systems: list[str]


def read_link(query: Mapping[str, Any], offered: Sequence[str] = ()) -> Link | None:
    """Return what a link's query asks for, None without a prompt; what is off is brought in.

    A link may have been cut, edited or made elsewhere, so nothing in it is an error: a number
    outside its bounds becomes the nearest inside them, one that is none becomes the default.
    """
    prompt = str(query.get("q") or "")[:MAX_CHARACTERS]
    if not prompt.strip():
        return None
    found = {}
    for field, (_, key, low, high, default) in BOUNDS.items():
        found[field] = type(default)(_clamped(query.get(key), low, high, default))
    auto = query.get("lambda") == AUTO
    lmbda = AUTO if auto else _clamped(query.get("lambda"), 0.0, 1.0, None)
    named = str(query.get("systems") or "").split(",")
    systems = [s for s in (*SOURCES, *offered) if s in named] or list(SOURCES)
    return Link(prompt, RequestOptions(lmbda=lmbda, **found), systems)


def _clamped(text: Any, low: float, high: float, default: float | None) -> float | None:
    """Return a text's number within its bounds, or default where it is none."""
    try:
        value = float(text)
    except (TypeError, ValueError, OverflowError):
        return default
    return min(max(value, low), high) if is_number(value) else default

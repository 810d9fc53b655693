"""A request's body, checked: what is asked, in the library's terms.

A field that would change the answer and is not served is refused by name; a field that changes
nothing here is ignored, as is null.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from mlpmem.engine.trace import AUTO, SOURCES
from mlpmem.errors import MlpMemError
from mlpmem.formats import valid
from mlpmem.ui.door.bounds import BOUNDS
from mlpmem.ui.openai.answers import ApiError
from mlpmem.ui.request import inputs
from mlpmem.ui.request.inputs import RequestOptions

MAX_RANKED = 20  # likeliest tokens per position
MAX_CHAT = 12 * BOUNDS.characters  # characters of all messages: twelve turns, as on the page
TOKENS = ("max_completion_tokens", "max_tokens")
COMMON = (
    "model", "n", "stop", "seed", "stream", "stream_options", "temperature", "top_p", "top_k",
    "min_p", "repetition_penalty", "logprobs", "lmbda", "sources", "special", *TOKENS,
)  # fmt: skip
OWN = {"text": (*COMMON, "prompt", "echo"), "chat": (*COMMON, "messages", "top_logprobs")}
# name -> values that ask for nothing
REFUSED: dict[str, tuple[Any, ...]] = {
    "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],),
    "function_call": ("none", "auto"), "response_format": ({"type": "text"},),
    "logit_bias": ({},), "frequency_penalty": (0,), "presence_penalty": (0,), "best_of": (1,),
    "suffix": ("",), "modalities": (["text"],), "audio": (), "prediction": (),
    "web_search_options": (), "echo": (False,),
}  # fmt: skip
IGNORED = (
    "user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier",
    "prompt_cache_key", "prompt_cache_retention", "reasoning_effort", "verbosity",
)  # fmt: skip
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class Asked:
    """A checked request."""

    chat: bool
    model: str
    prompts: list[str | list[int]]  # texts or token ids, of a completion
    messages: list[dict[str, str]]  # of a chat
    options: RequestOptions
    new_tokens: int | None  # 0 asks for none, None for as many as are usual
    samples: int  # answers per prompt
    echo: bool
    ranked: int | None  # likeliest tokens to tell; None: no log-probs
    sources: tuple[str, ...]  # whose log-probs to tell besides those that are mixed
    stream: bool
    include_usage: bool


def parse(body: Mapping[str, Any], chat: bool) -> Asked:
    """Return the request of a body; ApiError names the first field that is not valid."""
    body = {name: value for name, value in body.items() if value is not None}
    _check_names(body, "chat" if chat else "text")
    messages = _messages(body.get("messages")) if chat else []
    prompts = [] if chat else _prompts(body.get("prompt"))
    samples = _whole(body, "n", 1, BOUNDS.choices, 1)
    if (answers := samples * max(1, len(prompts))) > BOUNDS.choices:
        raise ApiError(
            400, f"prompt and n ask for {answers} answers; at most {BOUNDS.choices} fit in one "
            "request. Send fewer prompts at once", "prompt",
        )  # fmt: skip
    stream = _flag(body, "stream")
    return Asked(
        chat=chat,
        model=_text(body, "model"),
        prompts=prompts,
        messages=messages,
        options=_options(body),
        new_tokens=_new_tokens(body, chat),
        samples=samples,
        echo=_flag(body, "echo"),
        ranked=_ranked(body, chat),
        sources=_sources(body.get("sources", [])),
        stream=stream,
        include_usage=_include_usage(body, stream),
    )


def _check_names(body: Mapping[str, Any], kind: str) -> None:
    """Raise ApiError for a field that is not served or not known."""
    for name, value in body.items():
        if name in OWN[kind] or name in IGNORED:
            continue
        if name in REFUSED:
            if not any(value == neutral for neutral in REFUSED[name]):
                raise ApiError(400, f"{name} is not served here. Leave it out", name)
            continue
        similar = get_close_matches(name, OWN[kind], 1, 0.6)
        hint = f"Did you mean {similar[0]}?" if similar else "Leave it out"
        raise ApiError(400, f"{name[:40]!r} is not a known field. {hint}", name[:40])


def _prompts(prompt: Any) -> list[str | list[int]]:
    """Return the prompts of a text, token ids, or a list of either."""
    if prompt is None:
        raise ApiError(400, "prompt is missing. Send a text, token ids, or a list of them",
                       "prompt")  # fmt: skip
    one = isinstance(prompt, str) or (isinstance(prompt, list) and _are_ids(prompt))
    listed = [prompt] if one else prompt
    if not isinstance(listed, list) or not listed:
        raise ApiError(400, "prompt must be a text, token ids, or a list of them", "prompt")
    return [_prompt(each) for each in listed]


def _are_ids(value: Sequence[Any]) -> bool:
    return bool(value) and all(type(i) is int for i in value)


def _prompt(prompt: Any) -> str | list[int]:
    """Return one prompt as it is; ApiError if it is empty or too long."""
    if isinstance(prompt, list) and _are_ids(prompt):
        if len(prompt) > BOUNDS.characters:
            raise ApiError(400, f"A prompt must have at most {BOUNDS.characters:,} token ids; got "
                           f"{len(prompt):,}. Shorten it", "prompt")  # fmt: skip
        return prompt
    if not isinstance(prompt, str):
        raise ApiError(400, "prompt must be a text, token ids, or a list of them", "prompt")
    return _told("prompt", inputs.check_text, prompt)


def _messages(messages: Any) -> list[dict[str, str]]:
    """Return messages of role and content; ApiError for any other shape."""
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, 'messages must be a list such as [{"role": "user", "content": "Hi"}]',
                       "messages")  # fmt: skip
    read = [_message(message) for message in messages]
    if (size := sum(len(message["content"]) for message in read)) > MAX_CHAT:
        raise ApiError(400, f"The messages must have at most {MAX_CHAT:,} characters in all; got "
                       f"{size:,}. Leave the oldest ones out", "messages")  # fmt: skip
    return read


def _message(message: Any) -> dict[str, str]:
    """Return one message; its parts of text are joined."""
    role = message.get("role") if isinstance(message, dict) else None
    known = isinstance(role, str) and role in ROLES
    if not known or message.get("tool_calls"):
        asked = "tool_calls" if known else f"role {role!r:.40}"
        raise ApiError(400, f"A message has {asked}, which is not served here. Use the roles "
                       f"{', '.join(ROLES)} with a text as content", "messages")  # fmt: skip
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        text = part.get("text") if kind == "text" else None
        if not isinstance(text, str):
            raise ApiError(400, f"A message's content has a part of type {kind!r:.40} without a "
                           "text; only text is read here. Send text", "messages")  # fmt: skip
        texts.append(text)
    joined = valid("".join(texts))
    if len(joined) > BOUNDS.characters:
        raise ApiError(400, f"A message must have at most {BOUNDS.characters:,} characters; got "
                       f"{len(joined):,}. Shorten it", "messages")  # fmt: skip
    return {"role": ROLES[role], "content": joined}


def _options(body: Mapping[str, Any]) -> RequestOptions:
    """Return how tokens are sampled: by default the likeliest, as on the page, and a new seed."""
    top_k = 0 if body.get("top_k") == -1 else body.get("top_k")
    values: dict[str, Any] = {}
    for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
        _, _, low, high, default = inputs.BOUNDS[name]
        values[name] = float(
            _told(name, inputs.check_number, body.get(name), name, low, high, default)
        )
    drawn = {"top_k": (top_k, 0), "seed": (body.get("seed"), secrets.randbelow(2**31))}
    for name, (value, default) in drawn.items():
        _, _, low, high, _ = inputs.BOUNDS[name]
        values[name] = _whole({name: value}, name, int(low), int(high), default)
    return RequestOptions(
        lmbda=_told("lmbda", inputs.check_lmbda, _plain(body.get("lmbda"))),
        stop=_told("stop", inputs.check_stop, body.get("stop")),
        special=_flag(body, "special"),
        **values,
    )


def _plain(lmbda: Any) -> Any:
    """Return lambda; ApiError for an object, in which the page would look for it."""
    if isinstance(lmbda, dict):
        raise ApiError(400, f'lmbda must be a number from 0 to 1, or "{AUTO}"', "lmbda")
    return lmbda


def _new_tokens(body: Mapping[str, Any], chat: bool) -> int | None:
    """Return how many tokens to write at most; a completion may ask for none."""
    name = next((name for name in TOKENS if name in body), TOKENS[1])
    return _whole(body, name, int(chat), BOUNDS.new_tokens, None)


def _ranked(body: Mapping[str, Any], chat: bool) -> int | None:
    """Return how many likeliest tokens to tell, None for no log-probs."""
    if not chat:
        return _whole(body, "logprobs", 0, MAX_RANKED, None)
    asked = _flag(body, "logprobs")
    if "top_logprobs" in body and not asked:
        raise ApiError(400, "top_logprobs needs logprobs: true. Add it", "top_logprobs")
    return _whole(body, "top_logprobs", 0, MAX_RANKED, 0) if asked else None


def _sources(names: Any) -> tuple[str, ...]:
    """Return the sources to tell besides those that are mixed."""
    if not isinstance(names, list) or any(name not in SOURCES for name in names):
        raise ApiError(400, f"sources must be a list with some of {', '.join(SOURCES)}; got "
                       f"{names!r:.80}", "sources")  # fmt: skip
    return tuple(dict.fromkeys(name for name in names if name != "lm"))


def _include_usage(body: Mapping[str, Any], stream: bool) -> bool:
    """Return whether a stream ends with its usage."""
    options = body.get("stream_options")
    if options is None:
        return False
    if not stream or not isinstance(options, dict):
        raise ApiError(400, "stream_options must be an object, with stream: true", "stream_options")
    known = {name: value for name, value in options.items() if value is not None}
    return _flag(known, "include_usage")


def _flag(body: Mapping[str, Any], name: str) -> bool:
    """Return a field that is true or false, false without it."""
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise ApiError(400, f"{name} must be true or false; got {value!r:.40}", name)
    return value


def _text(body: Mapping[str, Any], name: str) -> str:
    """Return a field that is a text."""
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise ApiError(400, f"{name} must be a text; got {value!r:.40}. GET /v1/models lists the "
                       "models", name)  # fmt: skip
    return value


def _whole(body: Mapping[str, Any], name: str, low: int, high: int, default: Any) -> Any:
    """Return a field that is a whole number from low to high."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ApiError(400, f"{name} must be a whole number from {low} to {high:,}; got "
                       f"{value!r:.40}. Correct it", name)  # fmt: skip
    return value


def _told(param: str, check: Any, *values: Any) -> Any:
    """Return what a check of the page returns; its error names the field."""
    try:
        return check(*values)
    except MlpMemError as error:
        raise ApiError(400, str(error), param) from error

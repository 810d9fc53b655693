"""A chat template as the texts around its turns: a browser joins them, since only Python renders.

They are read off one rendering over marks, and used only if they give the template's own rendering
of every chat in CHATS.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from mlpmem.errors import MlpMemError
from mlpmem.model.templates import render

MARKS = ("Xq0X", "Xa0X", "Xq1X")  # in no template
SYSTEM = "Xs0X"
Turns = dict[str, Any]  # `Turns` of ui/static/live/types.d.ts
ROLES = ("user", "assistant")
CHATS = (
    ["What is the capital of Peru?"],
    [" two\n\nlines, and a blank at the end \n"],
    ["Hi", "Hello!", "{{ messages }} {% if x %} <b> & \\n"],
    ["caf\u00e9 \u91d1 \U0001f600", "", "\tand then?", " yes ", "Why"],
    ["1", "2", "3", "4", "5", "6", "7"],
)


def turns_of(tokenizer: Any) -> Turns | None:
    """Return the texts around turns, None for a template that other texts would not follow."""
    try:
        before, answer, question, end = _around(render(tokenizer, _messages(MARKS), True), MARKS)
        turns: Turns = {"before": before, "answer": answer, "question": question, "end": end}
        turns["system"] = _around_system(tokenizer, turns)
        chats = [(chat, "") for chat in CHATS]
        chats += [(chat, " Be brief.\n") for chat in CHATS if turns["system"]]
        same = all(joined(turns, *chat) == _rendered(tokenizer, *chat) for chat in chats)
    except (MlpMemError, ValueError):  # a text was changed, or the template refuses the chat
        return None
    return turns if same else None


def joined(turns: Turns, chat: Sequence[str], system: str = "") -> str:
    """Return a chat of questions and answers in turn, a question last, as a template renders it."""
    first, second = turns["system"] if system else ("", turns["before"])
    text = f"{first}{system}{second}{chat[0]}"
    for i, said in enumerate(chat[1:]):
        text += turns["question" if i % 2 else "answer"] + said
    return text + turns["end"]


def _around(text: str, marks: Iterable[str]) -> list[str]:
    """Return the texts around marks; ValueError if one is not there once."""
    parts = []
    for mark in marks:
        part, text = text.split(mark)
        parts.append(part)
    return [*parts, text]


def _around_system(tokenizer: Any, turns: Turns) -> list[str] | None:
    """Return the texts around a system message, None if the template knows none."""
    marks = (SYSTEM, MARKS[0])
    try:
        first, second, end = _around(_rendered(tokenizer, MARKS[:1], SYSTEM), marks)
    except (MlpMemError, ValueError):
        return None
    return [first, second] if end == turns["end"] else None


def _rendered(tokenizer: Any, chat: Sequence[str], system: str = "") -> str:
    return render(tokenizer, _messages(chat, system), True)


def _messages(chat: Sequence[str], system: str = "") -> list[dict[str, str]]:
    first = [{"role": "system", "content": system}] if system else []
    return first + [{"role": ROLES[i % 2], "content": said} for i, said in enumerate(chat)]

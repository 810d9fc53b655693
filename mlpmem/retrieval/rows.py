"""The text of a JSON row: its text field, or one of the shapes in which people store chats.

A row without a text may be a chat ("messages", or ShareGPT's "conversations"), a prompt with its
completion, or an instruction with its output. The error of a value that is not text says where.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mlpmem.errors import MlpMemError
from mlpmem.formats import is_number, valid

CHATS = ("messages", "conversations", "conversation")
CONTINUED = ("prompt", "completion")
ASKED = ("instruction", "input", "output")
FIELDS = (*CHATS, *CONTINUED, *ASKED)  # what `row_text` reads besides text and title
SHAPES = '"messages", "conversations", "prompt" and "completion", or "instruction" and "output"'
SPEAKERS = {"human": "user", "gpt": "assistant"}  # ShareGPT's name of a role -> its name in a chat
KINDS = {str: "a string", bool: "true or false", list: "a list", dict: "an object"}


def row_text(
    row: Any, where: str, text_field: str = "text", title_field: str = "title"
) -> tuple[str, str]:
    """Return (title, text) of a row, title "" if it has none.

    Without a text, the other shapes are read. MlpMemError, starting with `where`, for a row or
    value of another kind.
    """
    if not isinstance(row, dict):
        raise MlpMemError(f'{where} must be an object with "{text_field}"; got {_kind(row)}')
    text, title = row.get(text_field), row.get(title_field)
    if text is None:
        text = _other_text(row, where)
    if text is None and text_field not in row:
        raise MlpMemError(
            f'{where} must have "{text_field}", {SHAPES}; got {", ".join(row) or "nothing"}. '
            "Rename the field that holds the text, or in a recipe set text_field in [corpus]"
        )
    if not isinstance(text, str):
        raise _not_a_string(text, text_field, where)
    if "\0" in text:
        raise MlpMemError(f"{where}: the text must not have a NUL character; delete it")
    if is_number(title):
        title = str(title)
    if not isinstance(title, str | None):
        raise MlpMemError(f'{where}: "{title_field}" must be a string; got {_kind(title)}')
    return valid(title or ""), valid(text)


def _other_text(row: Mapping[str, Any], where: str) -> str | None:
    """Return the text of a row in another shape, None if it has none of them."""
    for name in CHATS:
        if row.get(name) is not None:
            return chat_text(_messages(row[name], name, where))
    prompt, completion = (row.get(name) for name in CONTINUED)
    if isinstance(prompt, list) and isinstance(completion, list):
        return chat_text(_messages(prompt + completion, "prompt", where))
    if prompt is not None and completion is not None:
        return "".join(_string(row, name, where) for name in CONTINUED)
    if row.get("instruction") is not None and row.get("output") is not None:
        asked, given, answer = (_string(row, name, where) for name in ASKED)
        question = {"role": "user", "content": f"{asked}\n\n{given}" if given else asked}
        return chat_text([question, {"role": "assistant", "content": answer}])
    return None


def chat_text(messages: Sequence[Mapping[str, str]]) -> str:
    """Return a chat as text: one block "role: content" per message, with empty lines between.

    Only here does a chat become a document, so a chat template could be applied here.
    """
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _messages(value: Any, name: str, where: str) -> list[dict[str, str]]:
    """Return checked messages of a field; content in parts of type "text" is joined."""
    if not isinstance(value, list):
        raise MlpMemError(f'{where}: "{name}" must be a list of messages; got {_kind(value)}')
    messages = []
    for number, message in enumerate(value, start=1):
        role, content = _role_and_content(message)
        if not isinstance(role, str) or not isinstance(content, str):
            raise MlpMemError(
                f'{where}: message {number} must have "role" and "content", or "from" and "value", '
                "as strings; correct it, or delete the row"
            )
        messages.append({"role": role, "content": content})
    return messages


def _role_and_content(message: Any) -> tuple[Any, Any]:
    """Return a message's role and content in either naming, (None, None) if it is no object."""
    if not isinstance(message, dict):
        return None, None
    role, content = message.get("role"), message.get("content")
    speaker = message.get("from")
    if role is None and isinstance(speaker, str):
        role, content = SPEAKERS.get(speaker, speaker), message.get("value")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else None
    return role, content


def _string(row: Mapping[str, Any], name: str, where: str) -> str:
    """Return a field's string, "" for an absent one or null."""
    value = row.get(name)
    if not isinstance(value, str | None):
        raise _not_a_string(value, name, where)
    return value or ""


def _not_a_string(value: Any, name: str, where: str) -> MlpMemError:
    """Return the error for a field that must be a string."""
    return MlpMemError(
        f'{where}: "{name}" must be a string; got {_kind(value)}. Correct the row, or delete it'
    )


def _kind(value: Any) -> str:
    """Return the kind of a JSON value, in words."""
    return "null" if value is None else KINDS.get(type(value), "a number")

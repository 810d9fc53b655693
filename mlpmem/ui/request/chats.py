"""A chat's request: one question, and what every column that answers it has said before.

The conversation is in the visitor's browser, so nothing of it is kept here after the answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlpmem.engine.trace import SOURCES
from mlpmem.errors import MlpMemError
from mlpmem.formats import valid
from mlpmem.ui.door.bounds import BOUNDS
from mlpmem.ui.request import inputs

MAX_TURNS = 200  # earlier turns of a column
LONGEST = min(256, BOUNDS.chat_tokens)  # tokens of an answer by default
STALE = "The conversation on the page is incomplete. Reload the page and ask again."


@dataclass(frozen=True)
class Column:
    """One system of a chat, with its own history."""

    system: str
    before: list[tuple[str, str]]  # earlier questions with this system's own answers
    forced: list[int]  # ids of the answer's first tokens
    kept: int  # how many of them the page has already

    def messages(self, asked: "Asked") -> list[dict[str, str]]:
        """Return the column's chat as messages, the question last."""
        said = [("system", asked.instructions)] if asked.instructions else []
        for question, answer in self.before:
            said += [("user", question), ("assistant", answer)]
        return [{"role": role, "content": text} for role, text in [*said, ("user", asked.question)]]


@dataclass(frozen=True)
class Asked:
    """A checked request of the chat."""

    run: str  # the page's id of the run
    question: str
    typed: bool  # without the decoder's form of questions
    instructions: str  # the system prompt, or ""
    columns: list[Column]
    options: inputs.RequestOptions  # max_new_tokens counts the new tokens only

    def arguments(self, column: Column, read: int, positions: int) -> dict:
        """Return Model.stream's options for a column whose prompt has `read` of `positions` tokens.

        Its tokens are the forced ones and the new ones, as many as the page's bound and the
        decoder's positions allow.
        """
        most = min(self.wanted(column), BOUNDS.chat_tokens, positions - read)
        options = replace(self.options, max_new_tokens=max(len(column.forced), most, 1))
        arguments = options.as_arguments() | {"forced": column.forced}
        del arguments["lmbda"]
        return arguments

    def reserve(self, column: Column, positions: int) -> int:
        """Return how many positions are reserved for a column's answer: at most half of them."""
        return min(self.wanted(column), max(1, positions // 2))

    def wanted(self, column: Column) -> int:
        """Return the largest number of an answer's tokens: those the page has, and the new ones."""
        return max(column.kept + self.options.max_new_tokens, len(column.forced))


def check_chat(data: object) -> Asked:
    """Return a checked request; MlpMemError names the invalid value."""
    fields = data if isinstance(data, dict) else {}
    settings = fields.get("settings") if isinstance(fields.get("settings"), dict) else {}
    names = [name for name in inputs.BOUNDS if name != "max_new_tokens"]
    longest = inputs.check_number(
        settings.get("longest"), "longest answer", 1, BOUNDS.chat_tokens, LONGEST
    )
    options = inputs.check_options(
        fields.get("lmbda"), 1, *(settings.get(name) for name in names), stop=settings.get("stop")
    )
    instructions = settings.get("system") or ""
    if instructions:
        inputs.check_text(instructions, "system prompt")
    return Asked(
        run=str(fields.get("run") or "")[:40],
        question=inputs.check_text(fields.get("question"), "question"),
        typed=fields.get("typed") is True,
        instructions=valid(instructions),
        columns=_columns(fields.get("columns")),
        options=replace(options, max_new_tokens=int(longest)),
    )


def _columns(rows: object) -> list[Column]:
    """Return the columns of a request, each system once; MlpMemError for anything else."""
    listed = rows if isinstance(rows, list) else []
    columns = [_column(row) for row in listed[: len(SOURCES)] if isinstance(row, dict)]
    if not columns or len(columns) != len(listed):
        raise MlpMemError("No one is asked. Choose at least one of the listed systems.")
    if len({column.system for column in columns}) < len(columns):
        raise MlpMemError(STALE)
    return columns


def _column(row: Mapping[str, Any]) -> Column:
    system, forced, kept = row.get("system"), row.get("forced", []), row.get("kept", 0)
    if system not in SOURCES:
        raise MlpMemError(f"Unknown source {system!r:.80}. Choose one of the listed sources.")
    valid_ids = isinstance(forced, list) and all(type(i) is int and i >= 0 for i in forced)
    if not valid_ids or type(kept) is not int or not 0 <= kept <= len(forced):
        raise MlpMemError(STALE)
    if len(forced) >= BOUNDS.chat_tokens:
        raise MlpMemError(
            f"An answer has at most {BOUNDS.chat_tokens:,} tokens here, and this one has "
            f"{len(forced):,}. Ask for the rest with a new question."
        )
    return Column(str(system), _before(row.get("before", [])), forced, kept)


def _before(turns: object) -> list[tuple[str, str]]:
    """Return earlier turns as (question, answer) pairs, the texts unchanged."""
    if not isinstance(turns, list) or len(turns) > MAX_TURNS:
        raise MlpMemError(
            f"A chat has at most {MAX_TURNS} earlier turns. Begin a new chat to go on."
        )
    for turn in turns:
        pair = turn if isinstance(turn, list) else []
        if len(pair) != 2 or not all(isinstance(text, str) for text in pair) or not pair[0].strip():
            raise MlpMemError(STALE)
    pairs = [(valid(question), valid(answer)) for question, answer in turns]
    if sum(len(text.encode()) for pair in pairs for text in pair) > BOUNDS.chat_bytes:
        raise MlpMemError("The conversation is too long to be sent. Begin a new chat to go on.")
    return pairs

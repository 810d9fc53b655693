"""Chats as token ids: the form that a decoder's chat template gives to turns.

The template is rendered once, over marks in place of questions and answers. What stands between the
marks is what stands between any turns, so thousands of chats need no rendering of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlpmem.errors import MlpMemError
from mlpmem.model.templates import render
from mlpmem.model.tokenizer import special_ids

MARKS = ("Xq0X", "Xa0X", "Xq1X", "Xa1X")  # in no template
Turns = Sequence[tuple[str, str]]  # (question, answer); the last answer may be ""


@dataclass(frozen=True)
class ChatForm:
    """The texts that stand around questions and answers in a decoder's chat template."""

    before: str  # the first question
    answer: str  # between a question and its answer
    question: str  # between an answer and the next question
    end: str  # the control token after an answer

    @classmethod
    def of(cls, tokenizer: Any) -> "ChatForm":
        """Return the form of a tokenizer's template; MlpMemError if it has none, or an odd one."""
        if not getattr(tokenizer, "chat_template", None):
            raise MlpMemError(
                "corpus: the decoder must have a chat template for chats; give one in "
                '[decoder] source that has, or use kind = "atlas" or "text"'
            )
        roles = ("user", "assistant") * 2
        messages = [{"role": r, "content": m} for r, m in zip(roles, MARKS, strict=True)]
        text, parts = render(tokenizer, messages), []
        for mark in MARKS:
            part, found, text = text.partition(mark)
            if not found:
                raise MlpMemError(
                    "corpus: the decoder's chat template must show every turn as it was written; "
                    f"it changed or left out {mark}. Use another decoder"
                )
            parts.append(part)
        names = [tokenizer.convert_ids_to_tokens(i) for i in special_ids(tokenizer)]
        end = max((n for n in names if parts[2].startswith(n)), key=len, default="")
        if parts[1] != parts[3] or not end:
            raise MlpMemError(
                "corpus: the decoder's chat template must end every answer with a control token, "
                "and give all turns one form; this one does not. Use another decoder"
            )
        return cls(parts[0], parts[1], parts[2], end)

    def encode(self, tokenizer: Any, chats: Sequence[Turns]) -> list[tuple[list[int], int]]:
        """Return (token ids, tokens of the prompt) of chats: up to the last answer, then with it.

        An empty last answer gives the prompt only.
        """
        prompts = [self.prompt(turns) for turns in chats]
        ends = [turns[-1][1] and turns[-1][1] + self.end for turns in chats]
        whole = [prompt + end for prompt, end in zip(prompts, ends, strict=True)]
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        heads = tokenizer(prompts, add_special_tokens=False)["input_ids"]
        for row, head, text in zip(ids, heads, prompts, strict=True):
            assert row[: len(head)] == head, (text, "its tokens change with the answer")
        return [(row, len(head)) for row, head in zip(ids, heads, strict=True)]

    def prompt(self, turns: Turns) -> str:
        """Return the text of turns up to the last answer."""
        text = self.before
        for question, answer in turns[:-1]:
            text += question + self.answer + answer + self.question
        return text + turns[-1][0] + self.answer


def question_start(tokenizer: Any) -> tuple[int, ...]:
    """Return the one or two token ids that begin a question, and no answer, in a chat template.

    They are the last control token before a question, and the token after it where that control
    token begins answers too. MlpMemError for a template without such a token.
    """
    form, control = ChatForm.of(tokenizer), set(special_ids(tokenizer))
    question, answer = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (form.question, form.answer)
    )
    places = [i for i, token in enumerate(question) if token in control]
    if places and question[places[-1]] not in answer:
        return (question[places[-1]],)
    for place in reversed(places):
        pair = tuple(question[place : place + 2])
        if len(pair) == 2 and pair not in zip(answer, answer[1:], strict=False):
            return pair
    raise MlpMemError(
        "memory: the decoder's chat template has no control token that begins only questions, as "
        'words_of = "question" needs; use "text"'
    )

"""Questions and chat turns as the bundles were trained on them.

A question is "Question: ... Answer:"; its answer follows, then EOS. A chat is one passage: BOS
once, then turn after turn.
"""

from collections.abc import Sequence
from typing import Any

from mlpmem.errors import MlpMemError


def question_prompt(question: str) -> str:
    """Return the prompt that asks a question; MlpMemError if it is empty."""
    question = " ".join(question.split())
    if not question:
        raise MlpMemError("the question is empty; write one, such as: What is the capital of Peru?")
    return f"Question: {question} Answer:"


def chat_ids(decoder: Any, turns: Sequence[tuple[str, str]], room: int | None = None) -> list[int]:
    """Return the token ids of (question, answer) turns, the last of which waits for its answer.

    The oldest turns that do not fit into `room` tokens are left out, the last one never.
    """
    if not turns:
        raise MlpMemError("the chat has no question yet; write one")
    asked = [
        _plain(decoder, f"{question_prompt(question)} {answer.strip()}") + [_end(decoder)]
        for question, answer in turns[:-1]
    ]
    last = decoder.encode(question_prompt(turns[-1][0]))
    bos = last[: len(last) - len(_plain(decoder, question_prompt(turns[-1][0])))]
    kept: list[int] = last[len(bos) :]
    for ids in reversed(asked):
        if room is not None and len(bos) + len(ids) + len(kept) > room:
            break
        kept = ids + kept
    return bos + kept


def _plain(decoder: Any, text: str) -> list[int]:
    """Return the token ids of text without BOS."""
    return decoder.tokenizer.encode(text, add_special_tokens=False, verbose=False)


def _end(decoder: Any) -> int:
    """Return the token id that ends an answer; MlpMemError for a tokenizer without EOS."""
    found = decoder.tokenizer.eos_token_id
    if found is None:
        raise MlpMemError(
            "this decoder's tokenizer has no end token, so turns cannot be told apart; "
            "ask a single question, or give the tokenizer an eos_token"
        )
    return found

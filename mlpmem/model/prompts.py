"""Questions and chat turns as the decoder was trained on them.

With a chat template the tokenizer says how. Without one, a question is "Question: ... Answer:";
its answer follows, then EOS; a chat is one passage: BOS once, then turn after turn.

Prompts and texts as token ids, checked: what a decoder can read, and what it has room for.
"""

from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, Any

from mlpmem.errors import MlpMemError

if TYPE_CHECKING:  # questions are checked before torch is there
    from mlpmem.model.decoder import Decoder


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
    form = _templated if getattr(decoder.tokenizer, "chat_template", None) else _questions
    for first in range(len(turns)):
        ids = form(decoder, turns[first:])
        if room is None or len(ids) <= room:
            break
    return ids


def _templated(decoder: Any, turns: Sequence[tuple[str, str]]) -> list[int]:
    """Return the ids of turns in the tokenizer's own chat template, ready for an answer."""
    messages = []
    for question, answer in turns:
        messages.append({"role": "user", "content": " ".join(question.split())})
        messages.append({"role": "assistant", "content": answer.strip()})
    question_prompt(turns[-1][0])  # an empty one is refused in any form
    try:
        return decoder.tokenizer.apply_chat_template(
            messages[:-1], add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except Exception as error:  # whatever a template raises
        raise MlpMemError(
            f"this decoder's chat template cannot be used ({str(error)[:200]}); use Compare, which "
            "needs none, or correct chat_template in its tokenizer's folder"
        ) from error


def _questions(decoder: Any, turns: Sequence[tuple[str, str]]) -> list[int]:
    """Return the ids of turns as questions and answers, BOS first and EOS after every answer."""
    last = question_prompt(turns[-1][0])
    ids, plain = decoder.encode(last), _plain(decoder, last)
    bos = ids[: len(ids) - len(plain)]
    asked = [
        token
        for question, answer in turns[:-1]
        for token in (
            *_plain(decoder, f"{question_prompt(question)} {answer.strip()}"),
            _end(decoder),
        )
    ]
    return [*bos, *asked, *plain]


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


def read_ids(decoder: "Decoder", text: str | Sequence[int], what: str) -> list[int]:
    """Return the token ids of a text, or of ids as they are; MlpMemError where it is neither."""
    if isinstance(text, str):
        return decoder.encode(text)
    try:
        ids = [index(i) for i in text]
    except TypeError as error:
        raise MlpMemError(
            f"{what} is neither text nor token ids; give a string, or whole numbers in a list"
        ) from error
    check_ids(decoder, ids, what)
    return ids


def check_prompt(decoder: "Decoder", prompt: str | Sequence[int], max_new_tokens: int) -> list[int]:
    """Return the prompt's token ids; MlpMemError where it is empty or does not fit."""
    blank = isinstance(prompt, str) and not prompt.strip()
    ids = [] if blank else read_ids(decoder, prompt, "the prompt")
    if not ids:
        raise MlpMemError("the prompt is empty; write a question or the start of a sentence")
    room = decoder.max_positions - max_new_tokens
    if room < 1:
        raise MlpMemError(
            f"max_new_tokens is {max_new_tokens}; this decoder reads and writes "
            f"{decoder.max_positions} tokens in all. Ask for fewer"
        )
    if len(ids) > room:
        raise MlpMemError(
            f"the prompt has {len(ids)} tokens; with {max_new_tokens} new tokens this decoder has "
            f"room for {room}. Shorten the prompt or ask for fewer tokens"
        )
    return ids


def check_ids(decoder: "Decoder", ids: Sequence[int], what: str) -> None:
    """Raise MlpMemError unless all are token ids of the decoder."""
    if ids and not 0 <= min(ids) <= max(ids) < decoder.vocab_size:
        raise MlpMemError(
            f"{what} has token ids outside 0 .. {decoder.vocab_size - 1}; "
            "encode it with this decoder's tokenizer"
        )

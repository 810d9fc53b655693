"""Prompts and texts as token ids, checked: what a decoder can read, and what it has room for."""

from collections.abc import Sequence
from operator import index

from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder


def read_ids(decoder: Decoder, text: str | Sequence[int], what: str) -> list[int]:
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


def check_prompt(decoder: Decoder, prompt: str | Sequence[int], max_new_tokens: int) -> list[int]:
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


def check_ids(decoder: Decoder, ids: Sequence[int], what: str) -> None:
    """Raise MlpMemError unless all are token ids of the decoder."""
    if ids and not 0 <= min(ids) <= max(ids) < decoder.vocab_size:
        raise MlpMemError(
            f"{what} has token ids outside 0 .. {decoder.vocab_size - 1}; "
            "encode it with this decoder's tokenizer"
        )

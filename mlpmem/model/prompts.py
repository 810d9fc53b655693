"""Prompts as token ids: unchanged text, and questions and chats in the decoder's form.

A tokenizer's chat template defines the form of a chat. A bundle may state that it was trained on
questions: "Question: ... Answer:", then the answer, then EOS. Any other decoder reads the turns as
lines of one text. White space in a person's text is never changed.
"""

import re
from collections.abc import Mapping, Sequence
from operator import index
from typing import TYPE_CHECKING, Any

from mlpmem.errors import MlpMemError
from mlpmem.model.templates import render
from mlpmem.model.tokenizer import encode_text, special_ids

if TYPE_CHECKING:  # questions are checked before torch is imported
    from mlpmem.model.decoder import Decoder

Chat = str | Sequence[Mapping[str, Any]] | Sequence[tuple[str, str | None]]
ROLES = ("system", "user", "assistant")
FORMS = (
    "a text, a list of (question, answer) pairs, or a list of messages such as "
    '{"role": "user", "content": "Hi"}'
)
MASK = "\ue000"  # of the private use area, inserted into names of control tokens


def question_prompt(question: str) -> str:
    """Return the prompt of a question; MlpMemError if it is empty.

    A question in this form stays unchanged.
    """
    question = " ".join(question.split()).removeprefix("Question:").removesuffix("Answer:").strip()
    if not question:
        raise MlpMemError("the question is empty; write one, such as: What is the capital of Peru?")
    return f"Question: {question} Answer:"


def as_messages(chat: Chat) -> list[dict[str, str]]:
    """Return a chat as messages, the last one a user's; MlpMemError for other shapes.

    A chat is a text, (question, answer) pairs whose last answer is empty, or messages of role and
    content; content may be a list of {"type": "text", "text": ...}.
    """
    if isinstance(chat, str):
        messages = [{"role": "user", "content": chat}]
    elif isinstance(chat, Sequence):
        messages = [message for turn in chat for message in _messages_of(turn)]
    else:
        raise MlpMemError(f"a chat must be {FORMS}; got {type(chat).__name__}")
    if messages and messages[-1] == {"role": "assistant", "content": ""}:
        messages.pop()  # the answer to be written
    if not messages:
        raise MlpMemError("the chat has no question yet; write one")
    if messages[-1]["role"] != "user":
        raise MlpMemError("the chat ends with an answer; add a question, with the role user")
    if not messages[-1]["content"].strip():
        raise MlpMemError("the question is empty; write one, such as: What is the capital of Peru?")
    return messages


def _messages_of(turn: Any) -> list[dict[str, str]]:
    """Return the messages of a (question, answer) pair, or of one message."""
    if isinstance(turn, Mapping):
        role, content = turn.get("role"), turn.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            parts = [part.get("text") for part in content if isinstance(part, Mapping)]
            content = "".join(parts) if all(isinstance(p, str) for p in parts) else None
        if role not in ROLES or not isinstance(content, str):
            raise MlpMemError(
                f"a message needs a role of {', '.join(ROLES)} and a text as content; "
                f"got role {role!r} and content of {type(turn.get('content')).__name__}"
            )
        return [{"role": role, "content": content}]
    pair = turn if isinstance(turn, Sequence) and not isinstance(turn, str) else ()
    if len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], str | None):
        raise MlpMemError(f"a chat must be {FORMS}; got a turn {str(turn)[:80]!r}")
    question, answer = pair
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer or ""},
    ]


def chat_ids(
    decoder: Any, chat: Chat, room: int | None = None, questions: bool = False
) -> list[int]:
    """Return the token ids of a chat up to the answer; see `fitted_chat`."""
    return fitted_chat(decoder, chat, room, questions)[0]


def fitted_chat(
    decoder: Any, chat: Chat, room: int | None = None, questions: bool = False
) -> tuple[list[int], int]:
    """Return (token ids of a chat up to the answer, number of its turns that did not fit).

    `as_messages` lists the shapes of a chat. With questions, a decoder without chat template reads
    "Question: ... Answer:". The oldest turns that do not fit into `room` tokens are dropped, but
    never the system message or the last question.
    """
    messages = as_messages(chat)
    form = _question_ids if questions else _line_ids
    if getattr(decoder.tokenizer, "chat_template", None):
        form = _template_ids
    system = [message for message in messages[:1] if message["role"] == "system"]
    rest = messages[len(system) :]
    starts = [i for i, message in enumerate(rest) if message["role"] == "user"]
    ids, dropped = form(decoder, [*system, *rest[starts[0] :]]), 0
    while room is not None and len(ids) > room and dropped < len(starts) - 1:
        dropped += 1
        ids = form(decoder, [*system, *rest[starts[dropped] :]])
    return ids, dropped


def chat_question(decoder: Any, question: str, questions: bool = False) -> str:
    """Return a chat's question as `chat_ids` asks it, before any chat template."""
    asks = questions and not getattr(decoder.tokenizer, "chat_template", None)
    return question_prompt(question) if asks else question


def _template_ids(decoder: Any, messages: list[dict[str, str]]) -> list[int]:
    """Return the ids of messages in the tokenizer's chat template.

    Control tokens come only from the template: their names in a message are plain text.
    """
    tokenizer = decoder.tokenizer
    names = [tokenizer.convert_ids_to_tokens(i) for i in special_ids(tokenizer)]
    typed = [m for m in messages if any(name in m["content"] for name in names)]
    if not typed:
        return tokenizer(render(tokenizer, messages, True), add_special_tokens=False)["input_ids"]
    masked = [{**m, "content": _masked(m["content"], names)} for m in messages]
    ids: list[int] = []
    for part, control in _split_at(render(tokenizer, masked, True), names):
        if control:
            ids.append(tokenizer.convert_tokens_to_ids(part))
        else:
            ids += encode_text(tokenizer, part.replace(MASK, ""))
    return ids


def _masked(text: str, names: Sequence[str]) -> str:
    """Return a text with MASK inside the name of every control token, to be removed later.

    A MASK in the text itself is dropped; tokenizers do not need it.
    """
    text = text.replace(MASK, "")
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(name, name[0] + MASK + name[1:])
    return text


def _split_at(text: str, names: Sequence[str]) -> list[tuple[str, bool]]:
    """Return a text's parts in order as (part, whether it is a control token's name)."""
    pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    parts = re.split(f"({pattern})", text)
    return [(part, i % 2 == 1) for i, part in enumerate(parts) if part]


def _question_ids(decoder: Any, messages: list[dict[str, str]]) -> list[int]:
    """Return the ids of turns as questions and answers, with BOS first and EOS after answers."""
    _refuse_system(messages)
    last = question_prompt(messages[-1]["content"])
    ids, plain = decoder.encode(last), encode_text(decoder.tokenizer, last)
    bos = ids[: len(ids) - len(plain)]
    earlier, text = [], ""
    for message in messages[:-1]:
        if message["role"] == "user":
            text = question_prompt(message["content"])
        elif text:
            turn = f"{text} {message['content'].strip()}"
            earlier += [*encode_text(decoder.tokenizer, turn), _end(decoder)]
            text = ""
    return [*bos, *earlier, *plain]


def _line_ids(decoder: Any, messages: list[dict[str, str]]) -> list[int]:
    """Return the ids of unchanged turns, one per line, for a decoder without a form."""
    _refuse_system(messages)
    return decoder.encode("\n".join(message["content"] for message in messages))


def _refuse_system(messages: list[dict[str, str]]) -> None:
    """Raise MlpMemError for a system message, which needs a chat template."""
    if any(message["role"] == "system" for message in messages):
        raise MlpMemError(
            "this decoder has no chat template, so it cannot read a system message; "
            "put its text before the first question"
        )


def _end(decoder: Any) -> int:
    """Return the token id that ends an answer; MlpMemError for a tokenizer without EOS."""
    end = decoder.tokenizer.eos_token_id
    if end is None:
        raise MlpMemError(
            "this decoder's tokenizer has no end token, so turns cannot be separated; "
            "ask a single question, or set the tokenizer's eos_token"
        )
    return end


def read_ids(
    decoder: "Decoder", text: str | Sequence[int], what: str, special: bool = False
) -> list[int]:
    """Return the token ids of a text, or the ids themselves; MlpMemError for anything else.

    With special, names of control tokens in a text become control tokens.
    """
    if isinstance(text, str):
        ids = decoder.encode(text, special)
        if ids and max(ids) >= decoder.vocab_size:
            name = decoder.tokenizer.convert_ids_to_tokens(max(ids))
            raise MlpMemError(
                f"{what} has the token {name!r} of id {max(ids)}, but the decoder has only "
                f"{decoder.vocab_size}; tokens were added to its tokenizer only. Remove the token, "
                "or resize the decoder's embeddings"
            )
        return ids
    try:
        ids = [index(i) for i in text]
    except TypeError as error:
        raise MlpMemError(
            f"{what} is neither text nor token ids; give a string or a list of integers"
        ) from error
    check_ids(decoder, ids, what)
    return ids


def check_prompt(
    decoder: "Decoder", prompt: str | Sequence[int], max_new_tokens: int, special: bool = False
) -> list[int]:
    """Return the prompt's token ids; MlpMemError if it is empty or too long."""
    blank = isinstance(prompt, str) and not prompt.strip()
    ids = [] if blank else read_ids(decoder, prompt, "the prompt", special)
    if not ids:
        raise MlpMemError("the prompt is empty; write a question or the start of a sentence")
    room = decoder.max_positions - max_new_tokens
    if room < 1:
        raise MlpMemError(
            f"max_new_tokens must be less than {decoder.max_positions}, this decoder's tokens for "
            f"prompt and answer; got {max_new_tokens}. Ask for fewer"
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

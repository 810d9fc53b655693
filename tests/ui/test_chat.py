"""The chat: whole characters during an answer, and the question as typed or in a form."""

from types import SimpleNamespace

import pytest

from mlpmem.engine.call import Event
from mlpmem.errors import MlpMemError
from mlpmem.model.prompts import question_prompt
from mlpmem.model.tokenizer import TextStream
from mlpmem.ui.panels import chat
from mlpmem.ui.recordings.recorded import Recorded
from mlpmem.ui.request import stream

EMOJI = "\N{GRINNING FACE}".encode()
PIECES = [b"A", EMOJI[:1], EMOJI[1:2], EMOJI[2:], b"\n  b"]


class Step(SimpleNamespace):
    def to_dict(self):
        return {"s": self.text}


def shared_of(model, known=None):
    """Return the part of Shared that the chat uses."""
    return SimpleNamespace(
        service=SimpleNamespace(model=model), recorded=known or Recorded(), store=lambda *_: None,
        searched=lambda *_: "",
    )  # fmt: skip


def events(*_, **__):
    text = TextStream()
    for piece in PIECES:
        yield Event("step", {"lm": Step(text=text.push(piece))})
    trace = SimpleNamespace(to_dict=lambda: {
        "text": "A\N{GRINNING FACE}\n  b", "finish": "eos", "steps": [{"cand": [], "id": 1}],
    })  # fmt: skip
    yield Event("done", {"lm": trace})


def test_a_partial_answer_shows_whole_characters_only(monkeypatch):
    monkeypatch.setattr(stream, "PERIOD", 0)
    typed = []
    model = SimpleNamespace(
        systems=["lm"], routers={}, lmbdas=lambda names, *_: dict.fromkeys(names, 0.0),
        chat_ids=lambda turns, *_: typed.append(turns) or [1], stream=events,
        chat_question=str,
    )  # fmt: skip
    question = "why?\n\n  if a:\n\tb()"
    run = chat._answer(
        shared_of(model), lambda: [chat.new_turn(question, "lm", None)], ("", "atlas")
    )
    shown = [turns[-1]["answer"] for turns, *_ in run if isinstance(turns, list)]
    emoji = "A\N{GRINNING FACE}"
    assert shown == ["", "A", "A", "A", emoji, f"{emoji}\n  b", f"{emoji}\n  b"]
    assert typed == [[(question, "")]]


QUESTION = " Where is\n Harrow?"
FORM = "Question: Where is Harrow? Answer:"


def begun(turn):
    """Return (the first value of a turn's run, the arguments of its chat_ids), with a form."""
    read = []
    model = SimpleNamespace(
        systems=["lm"], routers={}, lmbdas=lambda names, *_: dict.fromkeys(names, 0.0),
        chat_ids=lambda *given: read.append(given) or [1], chat_question=question_prompt,
        stream=lambda *_, **__: iter(()),
    )  # fmt: skip
    recorded = Recorded(questions=[{"prompt": FORM, "answer": "at the coast"}])
    values = list(chat._generate(shared_of(model, recorded), [turn], None, "", None))
    return values[0], read[0]


def test_a_rewritten_question_is_shown_as_read_and_with_what_was_typed():
    value, (turns, _, typed) = begun(chat.new_turn(QUESTION, "lm", None))
    assert value["prompt"] == FORM and value["typed"] == QUESTION and not typed
    assert value["answer"] == "at the coast" and turns == [(QUESTION, "")]
    assert begun(chat.new_turn(FORM, "lm", None))[0]["typed"] == "", "it was in this form already"


def test_the_chip_asks_the_last_question_as_typed_and_retry_keeps_that():
    answered = {**chat.new_turn(QUESTION, "lm", 0.25), "answer": "x", "firsts": [[5, "a"]]}
    turn = chat.as_typed(answered, "memory", 0.5)
    assert turn == {**chat.new_turn(QUESTION, "lm", 0.25), "typed": True}
    value, (turns, _, typed) = begun(turn)
    assert value["prompt"] == QUESTION and value["typed"] == "" and typed
    assert turns == [(QUESTION, "")]
    again = chat.another_try({**turn, "firsts": [[5, "a"], [6, "b"]], "done": True}, "lm", 0.25)
    assert again["try"] == 2 and again["typed"]
    assert chat.another_try(turn, "memory", None)["typed"]


def test_the_handlers_repeat_the_last_turn_only(monkeypatch):
    monkeypatch.setattr(chat, "_answer", lambda shared, start, own, sent: iter(start()))
    first, last = chat.new_turn("one", "lm", None), chat.new_turn("two", "lm", None)
    undo, retry = (chat._repeater(None, renewed) for renewed in (chat.as_typed, chat.another_try))
    assert list(undo("", [first, last], "lm", None)) == [first, {**last, "typed": True}]
    assert list(retry("", [first, last], "lm", None)) == [first, last]
    with pytest.raises(MlpMemError, match="There is no question to ask again"):
        list(undo("", [], "lm", None))

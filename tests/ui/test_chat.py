"""The chat's log during an answer: whole characters only, and the question unchanged."""

from types import SimpleNamespace

from mlpmem.engine.call import Event
from mlpmem.model.tokenizer import TextStream
from mlpmem.ui.panels import chat
from mlpmem.ui.recordings.recorded import Recorded
from mlpmem.ui.request import stream

EMOJI = "\N{GRINNING FACE}".encode()
PIECES = [b"A", EMOJI[:1], EMOJI[1:2], EMOJI[2:], b"\n  b"]


class Step(SimpleNamespace):
    def to_dict(self):
        return {"s": self.text}


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
        chat_ids=lambda turns, room: typed.append(turns) or [1], stream=events,
    )  # fmt: skip
    shared = SimpleNamespace(
        service=SimpleNamespace(model=model), recorded=Recorded(), store=lambda *_: None,
        searched=lambda *_: "",
    )  # fmt: skip
    question = "why?\n\n  if a:\n\tb()"
    run = chat._answer(shared, lambda: [chat.new_turn(question, "lm", None)], ("", "atlas"))
    shown = [turns[-1]["answer"] for turns, *_ in run if isinstance(turns, list)]
    emoji = "A\N{GRINNING FACE}"
    assert shown == ["", "A", "A", "A", emoji, f"{emoji}\n  b", f"{emoji}\n  b"]
    assert typed == [[(question, "")]]

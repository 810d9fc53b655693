"""Told facts and taught memories: one visitor's alone, one taught at a time, undone and freed."""

import json
import threading
import time
from types import SimpleNamespace

import pytest
import tiny

from mlpmem.engine.trace import AUTO
from mlpmem.errors import MlpMemError
from mlpmem.teaching import lesson as lessons
from mlpmem.ui.context import Shared
from mlpmem.ui.door.bounds import BOUNDS
from mlpmem.ui.panels import chat, compare, inspect, teach
from mlpmem.ui.recordings import recorded
from mlpmem.ui.request.columns import plain_model
from mlpmem.ui.service import taught
from mlpmem.ui.service.own_text import Shelf
from mlpmem.ui.service.service import Service

FACT = "The capital of Tarn is Lima."
CLIENT = SimpleNamespace(client=SimpleNamespace(host="127.0.0.1"), headers={})


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """Teach ten steps."""
    short = lessons.Lesson(steps=10, lr=1e-2, new=8, old=8, replay=32)
    monkeypatch.setattr(lessons, "Lesson", lambda **_: short)
    monkeypatch.setattr(teach, "client_of", lambda request: "client")


@pytest.fixture
def shared():
    model = tiny.routed()
    model.questions = True
    service = Service(lambda tell: (model, []))
    service.start().join()
    questions = [{"prompt": f"Question: What is {p}? Answer:", "answer": "x", "part": p}
                 for p in ("B", "A2")]  # fmt: skip
    notes = recorded.Recorded(questions=questions)
    return Shared(service, notes, *[None] * 4, Shelf())


def event(**data):
    return SimpleNamespace(_data=data)


def tell(shared, sentences=(), key="", **data):
    """Return (view's value, key, sentences) of the last output."""
    *_, last = teach._teller(shared)(event(**data), key, list(sentences), CLIENT)
    return json.loads(last[0]["json"]), last[2], last[4]


def learn(shared, sentences=(FACT,), key=""):
    """Return (view's values, the new key)."""
    outputs = list(teach._teacher(shared)(list(sentences), key, CLIENT))
    return [json.loads(value["json"]) for value, _ in outputs], outputs[-1][1]


def last_trace(shared, key):
    """Return the memory's trace that Compare shows to a visitor."""
    run = compare._streamer(shared)
    numbers = 4, 0.0, 1.0, 0, 0, 0.0, 1.0, False
    values = [
        json.loads(v["json"]) for v in run("Peru is", None, "", "atlas", key, ["memory"], *numbers)
    ]
    return values[0], values[-1]["traces"]["memory"]


def test_a_told_sentence_is_found_and_a_deleted_one_is_forgotten(shared):
    value, key, sentences = tell(shared, text=f" {FACT}  ")
    assert value["kind"] == "told" and sentences == [FACT]
    assert shared.store(key, "own").datastore.documents.titles == [FACT]
    value, second, sentences = tell(shared, sentences, key, text="Vellmar has a mayor, Ilka.")
    assert len(shared.store(second, "own").datastore.documents.titles) == 2
    assert shared.shelf.get(key) is None, "the earlier datastore is freed"
    value, third, sentences = tell(shared, sentences, second, forget=FACT)
    assert sentences == ["Vellmar has a mayor, Ilka."]
    value, last, sentences = tell(shared, sentences, third, forget=sentences[0])
    assert (last, sentences, value["sentences"]) == ("", [], [])
    assert shared.facts(third) == {"kind": "gone", "run": ""}


def test_told_sentences_are_bounded():
    for data, word in (
        ({"text": " "}, "empty"), ({}, "empty"), ({"text": 3}, "empty"),
        ({"text": FACT}, "already"),
        ({"text": "x" * (BOUNDS.sentence + 1)}, "at most 300"),
    ):  # fmt: skip
        with pytest.raises(MlpMemError, match=word):
            teach.changed([FACT], data)
    full = [str(i) for i in range(BOUNDS.sentences)]
    with pytest.raises(MlpMemError, match="At most 20 sentences"):
        teach.changed(full, {"text": FACT})
    assert teach.changed(full, {"forget": FACT}) == full
    assert teach.changed(None, {"text": FACT}) == [FACT]


def test_a_taught_copy_answers_its_visitor_only_until_it_is_undone(shared):
    values, key = learn(shared)
    assert [v["kind"] for v in values[:-1]] == ["teaching"] * (len(values) - 1)
    assert values[-1]["kind"] == "taught" and "key" not in values[-1]
    assert {row["sort"] for row in values[-1]["rows"]} == {"begun", "old", "known"}
    begin, mine = last_trace(shared, key)
    other, theirs = last_trace(shared, "")
    assert begin["captions"]["memory"].endswith("taught by you: 1 sentence.")
    assert "captions" not in other
    probs = [trace["steps"][0]["p"]["memory"] for trace in (mine, theirs)]
    assert probs[0] != probs[1]
    assert mine["steps"][0]["p"]["lm"] == theirs["steps"][0]["p"]["lm"], "the decoder is the same"
    assert last_trace(shared, "else")[1]["steps"][0]["p"]["memory"] == probs[1], "a guessed key"
    value, gone = teach._undoer(shared)(key)
    assert json.loads(value["json"])["kind"] == "untaught" and gone == ""
    assert last_trace(shared, key)[1]["steps"][0]["p"]["memory"] == probs[1]
    assert shared.copies.get(key) is None


def test_a_sentence_is_asked_in_other_words_or_else_said_to_be_completed(shared, monkeypatch):
    model = shared.service.model
    assert teach.check_of(model, FACT) == [("begun", "The capital of Tarn is", "Lima.")]
    assert teach.check_of(model, "Lima.") == []
    monkeypatch.setattr(
        "mlpmem.teaching.wordings.Wordings.question", lambda self, text: ("Tarn's capital?", "Lima")
    )
    assert teach.check_of(model, FACT) == [("new", "Tarn's capital?", "Lima")]


def test_a_chat_model_is_asked_as_a_chat_and_about_anything_else(shared):
    model, asked = shared.service.model, []
    model.decoder.tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    model.questions = False
    questions = [{"prompt": f"What is {p}?", "answer": "x", "part": p} for p in ("real", "B")]
    notes = recorded.Recorded(questions=questions, chat_form=True)
    chats = Shared(shared.service, notes, *[None] * 4, Shelf())
    recording = SimpleNamespace(
        chat_ids=model.chat_ids,
        generate=lambda prompt, *a, **k: asked.append(prompt) or SimpleNamespace(text=" Yes. "),
    )
    rows = teach.compared(chats, recording, recording, [], threading.Event())
    assert [row["sort"] for row in rows] == ["old", *["general"] * teach.CHECKED]
    assert rows[-1]["answer"] == rows[-1]["before"] == "Yes.", "its answer is to stay"
    assert asked[0] == asked[1] == model.chat_ids("What is real?", teach.TOKENS)


def test_a_second_teaching_replaces_the_first_and_starts_from_the_page_memory(shared):
    first = learn(shared)[1]
    second = learn(shared, (FACT, "Vellmar has a mayor, Ilka."), first)[1]
    assert shared.copies.get(first) is None
    copy = shared.copies.get(second).store
    assert len(copy.sentences) == 2 and copy.bytes > 0


def test_other_tabs_use_the_taught_copy_and_routers_stay(shared):
    key = learn(shared)[1]
    own = shared.of(key)
    assert own.service.model.memory is shared.copies.get(key).store.memory
    assert own.service.model.routers == shared.service.model.routers
    assert own.service.extras is shared.service.extras
    assert plain_model(own.service) is shared.service.model, "extra columns keep the page's model"
    assert plain_model(shared.service) is shared.service.model
    assert own.service.model.generate("Peru is", "memory", lmbda=AUTO, max_new_tokens=2).text
    data = {"number": 1, "ids": [0, 50], "text": "a", "own": ""}
    rows = [json.loads(inspect._prober(shared)(event(**data), "", k)["json"]) for k in (key, "")]
    assert rows[0]["rows"][0]["p"]["memory"] != rows[1]["rows"][0]["p"]["memory"]
    assert chat.check_system(own.service.model, "memory", None) is None


def test_what_cannot_be_taught_is_a_message(shared):
    (value,), _ = learn(shared, ())
    assert value["kind"] == "message" and "nothing to teach" in value["text"]
    for model, word in (
        (SimpleNamespace(systems=["lm"]), "no memory to teach"),
        (SimpleNamespace(systems=["memory"], leased=True), "teaches no memory"),
    ):  # fmt: skip
        with pytest.raises(MlpMemError, match=word):
            taught.check_teachable(model)


def test_one_memory_is_taught_at_a_time(shared, monkeypatch):
    order, started = [], threading.Event()

    def slow(model, sentences, lesson, stop):
        order.append(f"begin {sentences[0]}")
        started.set()
        time.sleep(0.2)
        order.append(f"end {sentences[0]}")
        yield None

    monkeypatch.setattr(lessons, "teach", slow)
    stop = threading.Event()
    first = threading.Thread(target=lambda: list(taught.lesson(shared.service.model, ["a"], stop)))
    first.start()
    started.wait(5)
    list(taught.lesson(shared.service.model, ["b"], stop))
    first.join()
    assert order == ["begin a", "end a", "begin b", "end b"]
    held = taught.lesson(shared.service.model, ["c"], stop)
    next(held)
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(MlpMemError, match="Another memory is being taught"):
        list(taught.lesson(shared.service.model, ["d"], stopped))
    held.close()
    list(taught.lesson(shared.service.model, ["e"], stop))


def test_an_abandoned_teaching_leaves_no_copy_and_frees_the_turn(shared):
    run = teach._teacher(shared)([FACT], "", CLIENT)
    next(run)
    next(run)
    run.close()
    assert not shared.copies._texts
    assert learn(shared)[1]

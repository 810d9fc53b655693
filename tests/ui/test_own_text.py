"""A visitor's own text, what is asked of it, and the chat: kept apart, bounded, freed."""

import threading
import time
import weakref
from collections import Counter, namedtuple
from types import SimpleNamespace

import gradio as gr
import pytest

from mlpmem.api import Model
from mlpmem.errors import MlpMemError
from mlpmem.ui.context import Shared
from mlpmem.ui.panels import chat, corpus, inspect
from mlpmem.ui.request import inputs
from mlpmem.ui.service import own_text
from mlpmem.ui.service.service import Service, Status

Event = namedtuple("Event", "kind values")


def test_a_chats_retry_begins_otherwise_where_the_answer_would_repeat_itself():
    turn = chat.new_turn("Who?", "memory", None)
    assert chat.another_try(turn, "memory", None) == turn, "it never began"
    steps = [{"id": 7, "cand": [[7, " I", 0.6], [2, "</s>", 0.2], [9, " You", 0.1]]}, {"id": 2}]
    firsts = chat.firsts_of({"finish": "eos", "steps": steps})
    assert firsts == [[7, " I"], [9, " You"]], "an answer that ends at once is none"
    first = {**turn, "answer": "I", "firsts": firsts, "done": True}
    again = chat.another_try(first, "memory", None)
    assert (again["try"], again["answer"], again["firsts"]) == (2, "", firsts)
    assert chat.another_try(again, "memory", None)["try"] == 2, "it was stopped: the same again"
    done = {**again, "done": True}
    assert chat.another_try(done, "memory", None)["try"] == 1, "after the last the first"
    for system, lmbda in (("lm", None), ("memory", 0.5)):
        assert chat.another_try(done, system, lmbda) == chat.new_turn("Who?", system, lmbda)


class Kept:
    bytes = 1


def kept(size):
    return SimpleNamespace(bytes=size)


def test_a_shelf_keeps_texts_by_secret_id_for_a_time_and_within_its_room():
    now = [0.0]
    shelf = own_text.Shelf(most=100, seconds=60, clock=lambda: now[0])
    first, second = shelf.add("a", kept(40)), shelf.add("b", kept(40))
    assert shelf.get(first).title == "a" and shelf.get("else") is None
    third = shelf.add("c", kept(40))
    assert shelf.get(second) is None, "it was used least recently"
    assert shelf.get(first) and shelf.left(shelf.get(third)) == 60
    large = shelf.add("d", kept(1000))
    assert shelf.get(large), "the newest always has room"
    shelf.drop(large)
    shelf.drop("")
    late = shelf.add("e", kept(1))
    now[0] = 60.0
    assert shelf.get(late) is None


def test_an_expired_store_is_freed_though_nobody_comes_by():
    shelf = own_text.Shelf(seconds=0.05)
    first, second = Kept(), Kept()
    gone = [weakref.ref(first), weakref.ref(second)]
    shelf.add("a", first)
    shelf.add("b", second)
    del first, second
    deadline = time.monotonic() + 10
    while any(ref() for ref in gone) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [ref() for ref in gone] == [None, None]


def test_a_text_of_ones_own_is_checked(tmp_path):
    assert own_text.titled("your text", "a b") == [("your text", "a b")]
    lines = '{"title": "T", "text": "x"}\n\n{"text": "y"}\n{"text": " "}'
    assert own_text.titled("a.jsonl", lines) == [("T", "x"), ("a.jsonl:3", "y")]
    for name, content, word in (
        ("a.txt", " ", "no text"), ("a.txt", "a\x00", "NUL"), ("a.jsonl", "[1]", "line 1"),
        ("a.txt", "\u00e9" * 1_100_000, "more than 2 MB"),
    ):  # fmt: skip
        with pytest.raises(MlpMemError, match=word):
            own_text.titled(name, content)
    broken = '{"title": "T\\ud83d", "text": "x\\ude00"}'
    assert own_text.titled("a.jsonl", broken) == [("T\ufffd", "x\ufffd")]
    assert own_text.titled("t\ud83d", "x\ud83d") == [("t\ufffd", "x\ufffd")]
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfok")
    assert own_text.read_upload(tmp_path / "a.txt") == ("a.txt", "ok")
    (tmp_path / "c.txt").write_text("read once")
    assert corpus._uploaded(tmp_path / "c.txt") == ("c.txt", "read once")
    counts = Counter()
    own_text.titled("a.jsonl", lines, counts)
    assert counts == {"empty_lines": 1, "empty_documents": 1}
    with pytest.raises(MlpMemError, match="not here any more"):
        corpus._uploaded(tmp_path / "c.txt")
    for name, content, word in (("a.exe", b"", "not one of"), ("b.md", b"\xff", "UTF-8")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MlpMemError, match=word):
            own_text.read_upload(tmp_path / name)


def test_a_probe_answers_from_the_datastore_that_the_text_was_written_with():
    asked, mine = [], kept(40)
    model = SimpleNamespace(probe=lambda ids, text, store: asked.append(store) or [])
    shared = Shared(SimpleNamespace(model=model), None, *[None] * 4, own_text.Shelf())
    key = shared.shelf.add("mine", mine)
    said = []
    for searched in (key[:6], "", True, "other"):
        data = {"number": 1, "ids": [1], "text": "a", "own": searched}
        said.append(inspect._prober(shared)(SimpleNamespace(_data=data), key)["json"])
    assert asked == [mine, None] and all("is not here" in text for text in said[2:])
    assert shared.searched(key, mine, ["lm", "knn"]) == key[:6]
    assert shared.searched(key, mine, ["lm", "memory"]) == shared.searched("", None, ["knn"]) == ""


def test_a_question_that_was_stopped_is_not_told_to_the_model_again():
    told = []
    model = SimpleNamespace(
        systems=["lm"], lmbdas=lambda *given: {"lm": 0.0},
        chat_ids=lambda turns, room: told.append(turns) or [1],
        stream=lambda ids, systems, **options: iter(()),
    )  # fmt: skip
    shared = SimpleNamespace(
        service=SimpleNamespace(model=model),
        recorded=SimpleNamespace(known=lambda prompt: {}, as_prompt=lambda text: text),
        searched=lambda *given: "",
    )
    turns = [chat.new_turn(question, "lm", None) for question in ("one", "two", "three")]
    turns[0]["answer"] = "1"
    list(chat._generate(shared, turns, threading.Event(), "", None))
    assert told == [[("one", "1"), ("three", "")]]


def test_columns_are_those_that_are_there():
    assert inputs.check_systems(None, ["lm", "memory"]) == ["lm", "memory"]
    assert inputs.check_systems(["knn", "lm"], ["lm", "memory"]) == ["lm"]
    for bad, said in (
        (["lm", "else"], "'else' is no column; choose from lm, memory, knn"),
        ([["lm"]], "is no column; choose from"),
        ("lm", "give a list with some of lm, memory, knn"),
        (3, "give a list"),
        (["knn"], "knn: not there, or not yet; there is lm, memory"),
        ([], "No column is chosen; there is lm"),
    ):
        with pytest.raises(MlpMemError, match=said):
            inputs.check_systems(bad, ["lm", "memory"])


def test_the_chat_prefers_the_best_source_there_is(tiny_model):
    assert [chat.best(there) for there in (("lm", "memory", "knn"), ("lm", "knn"), ("lm",))] == [
        "memory", "knn", "lm",
    ]  # fmt: skip
    alone = Model(tiny_model.decoder)
    service = Service(lambda tell: (alone, []))
    choose = chat._chooser(SimpleNamespace(service=service))
    assert choose("memory", "atlas") == gr.skip(), "nothing is known while it loads"
    service.start().join(20)
    assert choose("memory", "atlas") == "lm" and choose("memory", "own") == "knn"
    assert choose("knn", "own") == choose("lm", "atlas") == gr.skip()
    building = SimpleNamespace(status=Status(ready=True), model=alone)
    choose = chat._chooser(SimpleNamespace(service=building))
    assert choose("knn", "atlas") == gr.skip(), "it comes, and was chosen"
    assert choose("memory", "atlas") == "lm"

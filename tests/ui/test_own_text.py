"""Datastores of visitors' own texts (limited, private, freed), and probes of them."""

import time
import weakref
from collections import Counter, namedtuple
from types import SimpleNamespace

import pytest

from mlpmem.errors import MlpMemError
from mlpmem.ui.context import Shared
from mlpmem.ui.panels import compare, inspect
from mlpmem.ui.recordings.recorded import Recorded
from mlpmem.ui.request import inputs
from mlpmem.ui.service import own_text, uploads

Event = namedtuple("Event", "kind values")


class Store:
    bytes = 1


def store_of(size):
    return SimpleNamespace(bytes=size)


def test_a_shelf_keeps_texts_by_secret_id_until_they_expire_or_are_evicted():
    now = [0.0]
    shelf = own_text.Shelf(most=100, seconds=60, clock=lambda: now[0])
    first, second = shelf.add("a", store_of(40)), shelf.add("b", store_of(40))
    assert shelf.get(first).title == "a" and shelf.get("else") is None
    third = shelf.add("c", store_of(40))
    assert shelf.get(second) is None, "the least recently used is evicted"
    assert shelf.get(first) and shelf.left(shelf.get(third)) == 60
    large = shelf.add("d", store_of(1000))
    assert shelf.get(large), "the newest is always kept"
    shelf.drop(large)
    shelf.drop("")
    late = shelf.add("e", store_of(1))
    now[0] = 60.0
    assert shelf.get(late) is None


def test_an_expired_store_is_freed_by_a_timer():
    shelf = own_text.Shelf(seconds=0.05)
    first, second = Store(), Store()
    gone = [weakref.ref(first), weakref.ref(second)]
    shelf.add("a", first)
    shelf.add("b", second)
    del first, second
    deadline = time.monotonic() + 10
    while any(ref() for ref in gone) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [ref() for ref in gone] == [None, None]


def test_an_own_text_is_checked(tmp_path):
    assert own_text.titled("your text", "a b") == [("your text", "a b")]
    lines = '{"title": "T", "text": "x"}\n\n{"text": "y"}\n{"text": " "}'
    assert own_text.titled("a.jsonl", lines) == [("T", "x"), ("a.jsonl:3", "y")]
    for name, content, word in (
        ("a.txt", " ", "is empty"), ("a.txt", "a\x00", "NUL"), ("a.jsonl", "[1]", "line 1"),
        ("a.txt", "\u00e9" * 1_100_000, "at most 2 MB"),
    ):  # fmt: skip
        with pytest.raises(MlpMemError, match=word):
            own_text.titled(name, content)
    broken = '{"title": "T\\ud83d", "text": "x\\ude00"}'
    assert own_text.titled("a.jsonl", broken) == [("T\ufffd", "x\ufffd")]
    assert own_text.titled("t\ud83d", "x\ud83d") == [("t\ufffd", "x\ufffd")]
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfok")
    assert own_text.read_upload(tmp_path / "a.txt") == ("a.txt", "ok")
    counts = Counter()
    own_text.titled("a.jsonl", lines, counts)
    assert counts == {"empty_lines": 1, "empty_documents": 1}
    for name, content, word in (("a.exe", b"", "must be one of"), ("b.md", b"\xff", "UTF-8")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MlpMemError, match=word):
            own_text.read_upload(tmp_path / name)


def sent(tmp_path, **contents):
    """Return uploads of files by name, with their contents."""
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return [uploads.Upload(tmp_path / name, name) for name in contents]


def read(files):
    reading = uploads.Reading("", [])
    return list(uploads.read_uploads(files, reading)), reading


def test_every_file_is_a_document_and_one_that_fails_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(own_text, "MAX_BYTES", 1000)
    files = sent(tmp_path, **{
        "a.txt": b"one", "b.txt": b"\xff", "c.html": b"<p>two", "d.txt": b"x" * 998, "e.txt": b" ",
        "f.zip": b"PK", "g.jsonl": b'{"text": "three", "title": "T"}', "h.pdf": b"no",
    })  # fmt: skip
    gone = uploads.Upload(tmp_path / "gone.txt", "gone.txt")
    steps, reading = read([*files, gone])
    assert steps == [(i, file.name) for i, file in enumerate([*files, gone], 1)]
    assert reading.titled == [("a.txt", "one"), ("c.html", "two"), ("T", "three")]
    assert reading.title == "3 files"
    said = {"b.txt: byte 0", "d.txt would make the text larger", "e.txt is empty",
            "f.zip is a saved datastore", "h.pdf is", "gone.txt is no longer"}  # fmt: skip
    assert len(reading.failed) == len(said)
    assert all(any(why.startswith(start) for why in reading.failed) for start in said)
    assert all(why.endswith(".") and str(tmp_path) not in why for why in reading.failed)
    with pytest.raises(MlpMemError, match="b.txt: byte 0.* f.zip is a saved datastore"):
        read([files[1], files[5]])


def test_files_are_deleted_when_they_were_read(tmp_path):
    files = sent(tmp_path, **{"a.txt": b"one"})
    with pytest.raises(ZeroDivisionError), uploads.deleted_after(files):
        1 / 0  # noqa: B018
    assert not (tmp_path / "a.txt").exists()


def test_only_files_that_this_visitor_has_sent_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "WAIT", 0.1)
    (tmp_path / "a.txt").touch()
    mine = str(tmp_path / "a.txt")
    owns = lambda path: str(path) == mine  # noqa: E731
    row = {"path": mine, "name": "deep/a.txt"}
    (one,) = uploads.check_uploads({"files": [row]}, owns)
    assert one.name == "a.txt"
    both = uploads.check_uploads({"files": [row, row | {"name": "b/a.txt"}]}, owns)
    assert [upload.name for upload in both] == ["deep/a.txt", "b/a.txt"], "two have one name"
    for files in (None, [], {}, "a", [1], [[mine]], [{"path": mine}], [{"path": 1, "name": "a"}],
                  [{"path": "/etc/passwd", "name": "a.txt"}], [row] * 65):  # fmt: skip
        with pytest.raises(MlpMemError, match="Choose"):
            uploads.check_uploads({"files": files}, owns)
    (long,) = uploads.check_uploads({"files": [row | {"name": "x" * 999 + "\ud83d.txt"}]}, owns)
    assert len(long.name) == 200 and long.name.endswith("\ufffd.txt")


def test_a_probe_searches_the_datastore_that_its_run_used():
    stores, mine = [], store_of(40)
    model = SimpleNamespace(probe=lambda ids, text, store: stores.append(store) or [])
    shared = Shared(SimpleNamespace(model=model), None, *[None] * 4, own_text.Shelf())
    key = shared.shelf.add("mine", mine)
    answers = []
    for searched in (key[:6], "", True, "other"):
        data = {"number": 1, "ids": [1], "text": "a", "own": searched}
        answers.append(inspect._prober(shared)(SimpleNamespace(_data=data), key)["json"])
    assert stores == [mine, None] and all("is gone" in text for text in answers[2:])
    assert shared.searched(key, mine, ["lm", "knn"]) == key[:6]
    assert shared.searched(key, mine, ["lm", "memory"]) == shared.searched("", None, ["knn"]) == ""


def test_unavailable_and_unknown_columns():
    assert inputs.check_systems(None, ["lm", "memory"]) == ["lm", "memory"]
    assert inputs.check_systems(["knn", "lm"], ["lm", "memory"]) == ["lm"]
    for bad, message in (
        (["lm", "else"], "Unknown column 'else'. Choose from lm, memory, knn"),
        ([["lm"]], "Unknown column .*Choose from"),
        ("lm", "must be a list with some of lm, memory, knn"),
        (3, "must be a list"),
        (["knn"], "knn is not available yet. Choose from lm, memory"),
        ([], "No column is chosen. Choose from lm"),
    ):
        with pytest.raises(MlpMemError, match=message):
            inputs.check_systems(bad, ["lm", "memory"])


@pytest.mark.parametrize("found", [None, object()])
def test_only_kinds_that_can_be_read_here_are_offered(monkeypatch, found):
    from mlpmem.retrieval.converted import converted

    monkeypatch.setattr(converted, "find_spec", lambda name: found)
    assert (".pdf" in own_text.readable()) == (found is not None)
    assert converted.absent() == ({} if found else {".pdf": "pip install pypdf"})
    assert {".txt", ".html", ".gz"} < set(own_text.readable())


@pytest.mark.parametrize("bundled", [True, False])
def test_an_own_text_is_searched_in_a_column_also_where_the_bundle_has_no_datastore(bundled):
    usual = ("lm", "memory", "knn") if bundled else ("lm", "memory")
    searching = compare._searching(SimpleNamespace(recorded=Recorded(systems=usual)))
    assert searching("own", ["lm", "memory"]) == ["lm", "memory", "knn"]
    assert searching("own", None) == ["knn"] and searching("atlas", None) == []
    kept = ["lm", "knn"] if bundled else ["lm"]
    assert searching("atlas", ["lm", "knn"]) == kept
    assert searching("atlas", ["lm"]) == ["lm"], "a column that was not wanted does not come back"

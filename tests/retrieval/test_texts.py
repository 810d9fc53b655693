"""One set of rules for text files: each is tried through the library, the page and training."""

import bz2
import gzip
import json
import lzma
import subprocess
import sys
from collections import Counter

import pytest
import tiny

from mlpmem.errors import MlpMemError
from mlpmem.retrieval import texts
from mlpmem.ui.service import own_text
from train.config.tables import CorpusConfig
from train.corpora.readers import read_blocks

SAID = "Lily had a red ball."


def by_library(path):
    """Return the texts that the library reads."""
    return [text for _, text in texts.read_texts([path])]


def by_page(path):
    """Return the texts that the page makes of an upload."""
    return [text for _, text in own_text.titled(*own_text.read_upload(path))]


def by_training(path):
    """Return the texts that a text corpus is made of."""
    found = []
    for block in read_blocks([str(path)], CorpusConfig(kind="text"), Counter()):
        if block.first:
            found.append("")
        found[-1] += block.text
    return found


everywhere = pytest.mark.parametrize("read", [by_library, by_page, by_training])


def write(path, content):
    """Write text or bytes; return the path."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(*values):
    """Return JSON lines."""
    return "".join(json.dumps(value) + "\n" for value in values)


def test_reading_text_needs_no_torch():
    code = "import sys; import mlpmem.retrieval.texts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@everywhere
@pytest.mark.parametrize("name", ["a.txt", "README.TXT", "a.Md", "a.txt.gz", "A.TXT.GZ"])
def test_plain_text_is_read_whatever_the_case_of_its_ending(tmp_path, read, name):
    content = gzip.compress(SAID.encode()) if name.lower().endswith(".gz") else SAID
    assert read(write(tmp_path / name, content)) == [SAID]


@everywhere
@pytest.mark.parametrize("name", ["rows.jsonl", "ROWS.JSONL", "rows.JSONL.gz"])
def test_json_lines_are_documents_whatever_the_case_of_their_ending(tmp_path, read, name):
    content = rows({"text": SAID}, {"text": "b"})
    content = gzip.compress(content.encode()) if name.endswith(".gz") else content
    assert read(write(tmp_path / name, content)) == [SAID, "b"]


@everywhere
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_a_byte_order_mark_is_no_text_and_tells_the_encoding(tmp_path, read, encoding):
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    said = "né 金🙂 " * 30_000  # pieces end inside characters
    if read is by_page:
        said = said[:1000]
    assert read(write(tmp_path / "bom.txt", (mark + said).encode(encoding))) == [said]
    line = rows({"text": SAID})
    assert read(write(tmp_path / "bom.jsonl", (mark + line).encode(encoding))) == [SAID]


@everywhere
def test_text_is_as_it_was_given_but_for_line_ends_of_windows(tmp_path, read, monkeypatch):
    text = "\r\n  one\r\n\ttwo\u2028three\r\rfour \x0bfive\r\n\r\n"
    for size in (3, 2**16):  # "\r" and "\n" may be in two pieces
        monkeypatch.setattr(texts, "PIECE", size)
        assert read(write(tmp_path / "a.txt", text)) == [text.replace("\r\n", "\n")]
    end = "ends in a return\r"
    assert read(write(tmp_path / "a.txt", end)) == [end]
    line = json.dumps({"text": text}, ensure_ascii=False) + "\r\n"
    assert read(write(tmp_path / "a.jsonl", line)) == [text]


REFUSED = [
    ("a.txt", "fine\ncafé".encode("latin-1"), r"byte 8 \(0xe9, line 2\) is not UTF-8; .*iconv"),
    ("a.txt", "é".encode()[:1], r"byte 0 \(0xc3, line 1\) is not UTF-8"),
    ("a.txt", "\ufeffab".encode("utf-16-le")[:-1], r"byte 4 \(0x62, line 1\) is not UTF-16; save"),
    ("a.txt", "ab\ncd".encode("utf-16-le"), "line 1 holds a NUL .*UTF-16 without a byte order"),
    ("a.md", "one\ntwo\0", "line 2 holds a NUL character, so this is not plain text"),
    ("a.jsonl", b'{"text": "a"}\n\n{"text": "\xff"}', r"\(0xff, line 3\) is not UTF-8"),
    ("a.jsonl", '{"text": "a"}\n{"text"', "line 2 of .*a.jsonl is not JSON"),
    ("a.jsonl", "[" * 100_000, "line 1 of .*a.jsonl is not JSON"),
    ("a.jsonl", rows({"text": "a"}, {"text": None}), 'line 2 of .*: "text" is null; it must be a'),
    ("a.jsonl", rows({"text": ["a", "b"]}), 'line 1 of .*: "text" is a list; it must be a string'),
    ("a.jsonl", rows({"text": {"a": "b"}}), 'line 1 of .*: "text" is an object; it must be a str'),
    ("a.jsonl", rows({"text": 3}), 'line 1 of .*: "text" is a number; it must be a string'),
    ("a.jsonl", rows({"text": True}), 'line 1 of .*: "text" is true or false; it must be a string'),
    ("a.jsonl", rows({"text": "a\0b"}), "line 1 of .*: the text holds a NUL"),
    ("a.jsonl", rows({"text": "a", "title": ["b"]}), 'line 1 of .*: "title" is a list'),
    ("a.jsonl", rows({"txt": "a", "id": 1}), 'has neither "text" nor "messages" but txt, id;'),
    ("a.jsonl", rows({}), 'has neither "text" nor "messages" but nothing'),
    ("a.jsonl", rows(["text"]), "line 1 of .* is a list; it must be an object"),
    ("a.jsonl", rows(None), "line 1 of .* is null; it must be an object"),
    ("a.jsonl", rows({"messages": "hello"}), 'line 1 of .*: "messages" is a string; it must be a'),
    ("a.jsonl", rows({"messages": ["hi"]}), "line 1 of .*: message 1 must have"),
    ("a.jsonl", rows({"messages": [{"role": "user", "content": None}]}), "message 1 must have"),
    ("a.jsonl", rows({"messages": [{"content": "a"}]}), 'message 1 must have "role" and "content"'),
    (
        "a.jsonl",
        rows({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        "message 1 must have",
    ),
    ("a.txt.gz", b"no archive", "cannot read .*a.txt.gz"),
    ("a.txt.gz", gzip.compress(SAID.encode() * 99, mtime=0)[:-9], "cannot read .*a.txt.gz"),
    ("a.jsonl.gz", gzip.compress(b"x" * 999, mtime=0)[:12] + b"\xff" * 40, "cannot read .*a.jsonl"),
    ("a.pdf", "x", "a.pdf is not one of .txt, .md, .jsonl.*onvert it first"),
    ("a.pdf.gz", gzip.compress(b"x", mtime=0), "a.pdf.gz is not one of .txt, .md, .jsonl"),
]


@everywhere
@pytest.mark.parametrize(("name", "content", "message"), REFUSED)
def test_what_is_not_text_is_refused_with_its_place_and_what_to_do(
    tmp_path, read, name, content, message
):
    with pytest.raises(MlpMemError, match=message):
        read(write(tmp_path / name, content))


@everywhere
def test_a_chat_is_one_document_of_its_messages(tmp_path, read):
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Who "}, {"text": "are you?\n"}]},
        {"role": "assistant", "content": "  Lily."},
    ]
    said = "system: Be brief.\n\nuser: Who are you?\n\n\nassistant:   Lily."
    plain = {"messages": [{"role": "user", "content": "ignored"}], "text": "plain"}
    path = write(tmp_path / "a.jsonl", rows({"messages": chat}, plain, {"text": None} | {
        "messages": [{"role": "user", "content": "Hi"}]}))  # fmt: skip
    assert read(path) == [said, "plain", "user: Hi"]


def test_messages_of_parquet_are_chats_too(tmp_path):
    import pyarrow
    from pyarrow import parquet

    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": chat}]), tmp_path / "A.PARQUET")
    assert by_training(tmp_path / "A.PARQUET") == ["user: Hi\n\nassistant: Ho"]


def folder_of_notes(root):
    """Write a folder of texts and other files."""
    for name in ("b/c.MD", "a.txt", "z.jsonl", "picture.png", "more.png", "LICENSE", ".git/x.txt"):
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_text(
            rows({"text": name}, {"text": " "}) + "\n" if "json" in name else name
        )
    (root / "empty.txt").touch()
    (root / "blank.txt").write_text(" \n")
    write(root / "wide.txt", "wide".encode("utf-16"))
    return root


def test_folders_and_patterns_are_read_in_order_and_what_is_left_out_is_named(tmp_path):
    root = folder_of_notes(tmp_path / "notes")
    counts = Counter()
    found = [text for _, text in texts.read_texts([root], counts)]
    assert found == ["a.txt", "b/c.MD", "wide", "z.jsonl"] == by_training(root)
    assert texts.noted(counts) == (
        "left out: 2 empty documents, 1 empty file, 1 empty line, 1 hidden file, "
        "1 file of no ending, 2 files of .png; read as UTF-16: 1 file"
    )
    assert texts.noted({}) == texts.noted({"empty_files": 0}) == ""
    for read in (by_library, by_training):
        assert read(root / "*.txt") == ["a.txt", "wide"]
        assert read(root / "**" / "*.[mM]*") == ["b/c.MD"]
        assert read(root / "[ab]*") == ["a.txt", "b/c.MD"], "a folder that matches is read"
    odd = tmp_path / "odd[1].txt"
    odd.write_text("a name is no pattern where there is such a file")
    assert by_library(odd) == by_training(odd) == [odd.read_text()]


@pytest.mark.parametrize("read", [by_library, by_training])
def test_a_source_that_holds_nothing_says_what_to_give(tmp_path, read):
    with pytest.raises(MlpMemError, match="nowhere is not there; give .txt, .md, .jsonl"):
        read(tmp_path / "nowhere")
    with pytest.raises(
        MlpMemError, match=r"\*.txt is not there; .* a pattern such as notes/\*.txt"
    ):
        read(tmp_path / "*.txt")
    with pytest.raises(MlpMemError, match="is not there"):
        read("a text in place of a path " * 99)
    (tmp_path / "a.png").touch()
    with pytest.raises(MlpMemError, match=r"holds no text \(left out: 1 file of .png\); give"):
        read(tmp_path)


@pytest.mark.parametrize("pack", [bz2, lzma])
def test_files_of_ones_own_may_be_packed_otherwise(tmp_path, pack):
    path = write(tmp_path / f"a.txt.{'xz' if pack is lzma else 'bz2'}", pack.compress(b"packed"))
    assert by_library(path) == by_training(path) == ["packed"]
    with pytest.raises(MlpMemError, match="not one of .txt, .md, .jsonl, .gz files"):
        by_page(path)


def test_an_upload_that_unpacks_to_much_is_refused_before_it_does(tmp_path):
    path = write(tmp_path / "bomb.txt.gz", gzip.compress(b"a" * 50_000_000))
    assert path.stat().st_size < own_text.MAX_BYTES
    with pytest.raises(MlpMemError, match="unpacks to more than 2 MB"):
        own_text.read_upload(path)


@pytest.mark.parametrize("piece", [1, 2, 5, 1000])
@pytest.mark.parametrize("most", [1, 3, 8, 1000])
def test_lines_lose_nothing_and_are_no_longer_than_said(piece, most):
    text = "ab\n\ncdefgh\u2028ij\n" * 5 + "end"
    pieces = [text[at : at + piece] for at in range(0, len(text), piece)]
    found = list(texts.lines(pieces, most))
    assert "".join(found) == text and max(map(len, found)) <= most
    if most == 1000:
        assert found == [line + "\n" for line in text.split("\n")[:-1]] + ["end"]


def test_a_json_line_too_long_to_parse_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "ROW", 64)
    path = write(tmp_path / "a.jsonl", rows({"text": "a"}, {"text": "x" * 99}))
    with pytest.raises(MlpMemError, match="line 2 of .*a.jsonl is longer than 64 characters"):
        by_library(path)


def test_titles_are_those_of_rows_or_say_where_a_row_stands():
    content = rows({"text": "a", "title": 7}, {"text": "b", "title": "\ud83d"}) + "\n" + rows(
        {"text": "c", "title": None}, {"text": "d", "title": ""}
    )  # fmt: skip
    titles = [title for title, _ in texts.titled_texts("m.jsonl", content)]
    assert titles == ["7", "\ufffd", "m.jsonl:4", "m.jsonl:5"]


def test_what_the_library_leaves_out_is_logged_and_told_by_what_attaches_it(tmp_path, caplog):
    from mlpmem.loading.parts import from_parts

    root = folder_of_notes(tmp_path / "notes")
    assert from_parts(tiny.decoder(), text=root).systems == ["lm", "knn"]
    assert "datastore: left out: 2 empty documents" in caplog.text

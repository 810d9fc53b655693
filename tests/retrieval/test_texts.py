"""The rules for text files, each tested through the library, the page and training."""

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
from train.config.corpus import CorpusConfig
from train.corpora.readers import read_blocks

SENTENCE = "Lily had a red ball."


def by_library(path):
    """Return the texts that the library reads."""
    return [text for _, text in texts.read_texts([path])]


def by_page(path):
    """Return the texts that the page makes of an upload."""
    return [text for _, text in own_text.titled(*own_text.read_upload(path))]


def by_training(path):
    """Return the texts of a text corpus."""
    read = []
    for block in read_blocks([str(path)], CorpusConfig(kind="text"), Counter()):
        if block.first:
            read.append("")
        read[-1] += block.text
    return read


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
def test_plain_text_is_read_with_any_case_of_its_ending(tmp_path, read, name):
    content = gzip.compress(SENTENCE.encode()) if name.lower().endswith(".gz") else SENTENCE
    assert read(write(tmp_path / name, content)) == [SENTENCE]


@everywhere
@pytest.mark.parametrize("name", ["rows.jsonl", "ROWS.JSONL", "rows.JSONL.gz"])
def test_json_lines_are_documents_with_any_case_of_their_ending(tmp_path, read, name):
    content = rows({"text": SENTENCE}, {"text": "b"})
    content = gzip.compress(content.encode()) if name.endswith(".gz") else content
    assert read(write(tmp_path / name, content)) == [SENTENCE, "b"]


@everywhere
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_a_byte_order_mark_gives_the_encoding_and_is_not_text(tmp_path, read, encoding):
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    text = "né 金🙂 " * 30_000  # pieces end inside characters
    if read is by_page:
        text = text[:1000]
    assert read(write(tmp_path / "bom.txt", (mark + text).encode(encoding))) == [text]
    line = rows({"text": SENTENCE})
    assert read(write(tmp_path / "bom.jsonl", (mark + line).encode(encoding))) == [SENTENCE]


@everywhere
def test_text_is_unchanged_except_line_ends_of_windows(tmp_path, read, monkeypatch):
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
    ("a.txt", "ab\ncd".encode("utf-16-le"), "line 1 has a NUL .*UTF-16 without a byte order"),
    ("a.md", "one\ntwo\0", "line 2 has a NUL character, so it is not plain text"),
    ("a.jsonl", b'{"text": "a"}\n\n{"text": "\xff"}', r"\(0xff, line 3\) is not UTF-8"),
    ("a.jsonl", '{"text": "a"}\n{"text"', "line 2 of .*a.jsonl must be JSON"),
    ("a.jsonl", "[" * 100_000, "line 1 of .*a.jsonl must be JSON"),
    (
        "a.jsonl",
        rows({"text": "a"}, {"text": None}),
        'line 2 of .*: "text" must be a string; got null',
    ),
    ("a.jsonl", rows({"text": ["a", "b"]}), 'line 1 of .*: "text" must be a string; got a list'),
    ("a.jsonl", rows({"text": {"a": "b"}}), 'line 1 of .*: "text" must be .*; got an object'),
    ("a.jsonl", rows({"text": 3}), 'line 1 of .*: "text" must be a string; got a number'),
    ("a.jsonl", rows({"text": True}), 'line 1 of .*: "text" must be .*; got true or false'),
    ("a.jsonl", rows({"text": "a\0b"}), "line 1 of .*: the text must not have a NUL"),
    ("a.jsonl", rows({"text": "a", "title": ["b"]}), '"title" must be a string; got a list'),
    (
        "a.jsonl",
        rows({"txt": "a", "id": 1}),
        'must have "text", "messages", "conversations", "prompt" and "completion", '
        'or "instruction" and "output"; got txt, id. Rename',
    ),
    ("a.jsonl", rows({}), 'must have "text", .*; got nothing'),
    ("a.jsonl", rows({"prompt": "a"}), 'must have "text", .*; got prompt'),
    (
        "a.jsonl",
        rows({"instruction": "a", "output": None}),
        "must have .*; got instruction, output",
    ),
    ("a.jsonl", rows({"prompt": "a", "completion": 3}), '"completion" must be a string; got a num'),
    ("a.jsonl", rows({"instruction": ["a"], "output": "b"}), '"instruction" must .*; got a list'),
    (
        "a.jsonl",
        rows({"conversations": "a"}),
        '"conversations" must be a list of messages; got a s',
    ),
    ("a.jsonl", rows({"conversations": [{"from": "gpt", "value": 3}]}), 'or "from" and "value"'),
    ("a.jsonl", rows({"conversations": [{"from": 1, "value": "a"}]}), "message 1 must have"),
    ("a.jsonl", rows(["text"]), "line 1 of .* must be an object .*; got a list"),
    ("a.jsonl", rows(None), "line 1 of .* must be an object .*; got null"),
    ("a.jsonl", rows({"messages": "hello"}), '"messages" must be a list of messages; got a string'),
    ("a.jsonl", rows({"messages": ["hi"]}), "line 1 of .*: message 1 must have"),
    ("a.jsonl", rows({"messages": [{"role": "user", "content": None}]}), "message 1 must have"),
    ("a.jsonl", rows({"messages": [{"content": "a"}]}), 'message 1 must have "role" and "content"'),
    (
        "a.jsonl",
        rows({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        "message 1 must have",
    ),
    ("a.txt.gz", b"no archive", "cannot read .*a.txt.gz"),
    ("a.txt.gz", gzip.compress(SENTENCE.encode() * 99, mtime=0)[:-9], "cannot read .*a.txt.gz"),
    ("a.jsonl.gz", gzip.compress(b"x" * 999, mtime=0)[:12] + b"\xff" * 40, "cannot read .*a.jsonl"),
    ("a.doc", "x", "a.doc (must be|is not) one of .txt, .md, .jsonl.*onvert it first"),
    (
        "a.doc.gz",
        gzip.compress(b"x", mtime=0),
        "a.doc.gz (must be|is not) one of .txt, .md, .jsonl",
    ),
]


@everywhere
@pytest.mark.parametrize(("name", "content", "message"), REFUSED)
def test_a_file_that_is_not_text_is_refused_with_its_place_and_the_next_step(
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
    expected = "system: Be brief.\n\nuser: Who are you?\n\n\nassistant:   Lily."
    plain = {"messages": [{"role": "user", "content": "ignored"}], "text": "plain"}
    path = write(tmp_path / "a.jsonl", rows({"messages": chat}, plain, {"text": None} | {
        "messages": [{"role": "user", "content": "Hi"}]}))  # fmt: skip
    assert read(path) == [expected, "plain", "user: Hi"]


CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
HI_HO = "user: Hi\n\nassistant: Ho"
SHAPES = [
    ({"conversations": SHAREGPT, "id": 7}, HI_HO),
    ({"conversations": [{"from": "system", "value": "Be brief."}, *SHAREGPT], "messages": None},
     f"system: Be brief.\n\n{HI_HO}"),
    ({"conversations": CHAT}, HI_HO),
    ({"conversation": CHAT}, HI_HO),
    ({"messages": SHAREGPT}, HI_HO),
    ({"conversations": [{"from": "tool", "value": " 3\n"}]}, "tool:  3\n"),
    ({"prompt": "Lima is in", "completion": " Peru.\n"}, "Lima is in Peru.\n"),
    ({"prompt": "", "completion": "Peru"}, "Peru"),
    ({"prompt": CHAT[:1], "completion": CHAT[1:]}, HI_HO),
    ({"instruction": "Hi", "output": "Ho"}, HI_HO),
    ({"instruction": "Hi", "input": "", "output": "Ho"}, HI_HO),
    ({"instruction": "Sum up.", "input": "A text.", "output": "Ho"},
     "user: Sum up.\n\nA text.\n\nassistant: Ho"),
    ({"text": "plain", "conversations": SHAREGPT, "prompt": "a", "completion": "b"}, "plain"),
]  # fmt: skip


@everywhere
@pytest.mark.parametrize(("row", "text"), SHAPES)
def test_a_row_in_another_shape_that_people_have_is_one_document(tmp_path, read, row, text):
    assert read(write(tmp_path / "a.jsonl", rows(row))) == [text]


@pytest.mark.parametrize(("row", "text"), SHAPES)
def test_parquet_rows_have_the_same_shapes(tmp_path, row, text):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "A.PARQUET")
    assert by_training(tmp_path / "A.PARQUET") == [text]


def test_a_null_value_counts_as_absent_in_every_shape(tmp_path):
    nulls = dict.fromkeys(["text", "messages", "conversations", "prompt", "completion", "input"])
    row = nulls | {"instruction": "Hi", "output": "Ho"}
    assert by_library(write(tmp_path / "a.jsonl", rows(row))) == [HI_HO]


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


def test_folders_and_patterns_are_read_in_order_and_skipped_files_are_counted(tmp_path):
    root = folder_of_notes(tmp_path / "notes")
    counts = Counter()
    read_all = [text for _, text in texts.read_texts([root], counts)]
    assert read_all == ["a.txt", "b/c.MD", "wide", "z.jsonl"] == by_training(root)
    assert texts.noted(counts) == (
        "left out: 2 empty documents, 1 empty file, 1 empty line, 1 hidden file, "
        "1 file of no ending, 2 files of .png; read as UTF-16: 1 file"
    )
    assert texts.noted({}) == texts.noted({"empty_files": 0}) == ""
    for read in (by_library, by_training):
        assert read(root / "*.txt") == ["a.txt", "wide"]
        assert read(root / "**" / "*.[mM]*") == ["b/c.MD"]
        assert read(root / "[ab]*") == ["a.txt", "b/c.MD"], "matching folders are read"
    odd = tmp_path / "odd[1].txt"
    odd.write_text("an existing file is not a pattern")
    assert by_library(odd) == by_training(odd) == [odd.read_text()]


@pytest.mark.parametrize("read", [by_library, by_training])
def test_a_source_without_text_is_refused_with_the_next_step(tmp_path, read):
    with pytest.raises(MlpMemError, match="nowhere does not exist; give .txt, .md, .jsonl"):
        read(tmp_path / "nowhere")
    with pytest.raises(
        MlpMemError, match=r"\*.txt does not exist; .* a pattern such as notes/\*.txt"
    ):
        read(tmp_path / "*.txt")
    with pytest.raises(MlpMemError, match="does not exist"):
        read("a text in place of a path " * 99)
    (tmp_path / "a.png").touch()
    with pytest.raises(MlpMemError, match=r"holds no text \(left out: 1 file of .png\); give"):
        read(tmp_path)


@pytest.mark.parametrize("pack", [bz2, lzma])
def test_local_files_may_have_other_packings_than_uploads(tmp_path, pack):
    path = write(tmp_path / f"a.txt.{'xz' if pack is lzma else 'bz2'}", pack.compress(b"packed"))
    assert by_library(path) == by_training(path) == ["packed"]
    with pytest.raises(MlpMemError, match="must be one of .txt, .* .htm, .*.gz"):
        by_page(path)


def test_an_upload_that_would_unpack_to_too_much_is_refused(tmp_path):
    path = write(tmp_path / "bomb.txt.gz", gzip.compress(b"a" * 50_000_000))
    assert path.stat().st_size < own_text.MAX_BYTES
    with pytest.raises(MlpMemError, match="unpacks to more than 2 MB"):
        own_text.read_upload(path)


@pytest.mark.parametrize("piece", [1, 2, 5, 1000])
@pytest.mark.parametrize("most", [1, 3, 8, 1000])
def test_lines_are_complete_and_at_most_the_given_length(piece, most):
    text = "ab\n\ncdefgh\u2028ij\n" * 5 + "end"
    pieces = [text[at : at + piece] for at in range(0, len(text), piece)]
    lines = list(texts.lines(pieces, most))
    assert "".join(lines) == text and max(map(len, lines)) <= most
    if most == 1000:
        assert lines == [line + "\n" for line in text.split("\n")[:-1]] + ["end"]


def test_a_json_line_too_long_to_parse_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "ROW", 64)
    path = write(tmp_path / "a.jsonl", rows({"text": "a"}, {"text": "x" * 99}))
    with pytest.raises(MlpMemError, match="line 2 of .*a.jsonl must have at most 64 characters"):
        by_library(path)


def test_titles_are_those_of_rows_or_their_file_and_line():
    content = rows({"text": "a", "title": 7}, {"text": "b", "title": "\ud83d"}) + "\n" + rows(
        {"text": "c", "title": None}, {"text": "d", "title": ""}
    )  # fmt: skip
    titles = [title for title, _ in texts.titled_texts("m.jsonl", content)]
    assert titles == ["7", "\ufffd", "m.jsonl:4", "m.jsonl:5"]


def test_skipped_files_are_logged_when_a_model_is_built_from_parts(tmp_path, caplog):
    from mlpmem.loading.parts import from_parts

    root = folder_of_notes(tmp_path / "notes")
    assert from_parts(tiny.decoder(), text=root).systems == ["lm", "knn"]
    assert "datastore: left out: 2 empty documents" in caplog.text

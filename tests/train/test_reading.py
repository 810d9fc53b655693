"""Text of any kind becomes documents in bounded blocks; an unreadable file is named."""

import gzip
import json
import lzma
import sys
from collections import Counter
from types import SimpleNamespace

import pytest

from mlpmem.errors import MlpMemError
from train.config.corpus import CorpusConfig
from train.corpora import readers
from train.corpora.readers import Block, read_blocks


def read(*sources, counts=None, **config):
    """Return the blocks of sources."""
    counts = Counter() if counts is None else counts
    return list(read_blocks(map(str, sources), CorpusConfig(kind="text", **config), counts))


def documents(blocks):
    """Return (title, text) of the documents of blocks."""
    pairs = []
    for block in blocks:
        if block.first:
            pairs.append([block.title, ""])
        assert block.title == pairs[-1][0]
        pairs[-1][1] += block.text
    return [tuple(pair) for pair in pairs]


def write(path, content):
    """Write text or bytes; return the path."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_plain_file_is_a_document_named_after_it(tmp_path):
    path = write(tmp_path / "a.txt", "\ufeffOne\r\ntwo\n\n")
    assert read(path) == [Block("a.txt", "One\ntwo\n\n", True)]


def test_a_folder_is_read_in_order_without_other_files(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/c.md", "a.txt", "z.txt"):
        write(tmp_path / name, name)
    write(tmp_path / "picture.png", b"\xff\x00")
    assert [b.text for b in read(tmp_path)] == ["a.txt", "b/c.md", "z.txt"]


def test_a_heading_may_match_the_lines_around_it(tmp_path):
    text = " \n = One = \n \n a formula with t \n = 2 = \n \n \n = Two = \n \n = 3 = \n x \n"
    path = write(tmp_path / "wiki.txt", text)
    pairs = documents(read(path, heading=r"(?<=\n \n) = ([^=].*) = \n(?= \n)"))
    assert [title for title, _ in pairs] == ["One", "Two"]
    last = write(tmp_path / "last.txt", "body\n\n# A\n\n# B")
    assert [b.title for b in read(last, heading=r"(?<=^\n)# (.*)$(?=\n\n)")] == ["body", "A"]
    assert [b.title for b in read(last, heading=r"^# (.*)\n?$")] == ["body", "A", "B"]


def test_headings_begin_documents_and_are_their_titles(tmp_path):
    text = " \n = One = \n \n text \n = = Part = = \n more \n = Two ( 2 ) = \n x \n"
    path = write(tmp_path / "wiki.txt", text)
    pairs = documents(read(path, heading="^ = ([^=].*) = $"))
    assert [title for title, _ in pairs] == ["One", "Two ( 2 )"]
    assert "".join(text for _, text in pairs) == text.removeprefix(" \n")


def test_a_separator_splits_documents_and_belongs_to_none(tmp_path):
    path = write(tmp_path / "s.txt", "Once\nmore\n<|e|>\n\n<|e|>\nTwice " + "long " * 30)
    pairs = documents(read(path, separator="<|e|>"))
    assert [text for _, text in pairs] == ["Once\nmore\n", "Twice " + "long " * 30]
    assert pairs[0][0] == "Once more" and pairs[1][0].endswith("long …")
    assert len(pairs[1][0]) < 64


@pytest.mark.parametrize("size", [7, 64])
def test_long_texts_become_bounded_blocks_without_loss(tmp_path, monkeypatch, size):
    monkeypatch.setattr(readers, "BLOCK", size)
    monkeypatch.setattr(readers, "LINE", 5)
    text = "né 金🙂 " * 40 + "\n" + "short\n" * 9 + "= T\nafter"
    path = write(tmp_path / "long.txt", text)
    blocks = read(path, heading="^= (.*)")
    assert all(len(b.text) <= size for b in blocks) and [b.first for b in blocks].count(True) == 2
    assert "".join(b.text for b in blocks) == text
    rows = write(tmp_path / "long.jsonl", json.dumps({"text": text, "title": "T"}))
    blocks = read(rows)
    assert documents(blocks) == [("T", text)] and len(blocks) > 2


def test_a_document_begins_with_its_first_word_after_any_amount_of_space(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK", 8)
    path = write(tmp_path / "a.txt", "\n" * 30 + "a line that is longer than a block\n")
    blocks = read(path, separator="---")
    assert blocks[0].first and not any(b.first for b in blocks[1:])
    assert "".join(b.text for b in blocks).strip() == "a line that is longer than a block"


def test_one_gigantic_line_needs_little_memory(tmp_path):
    import tracemalloc

    path = tmp_path / "line.txt"
    with path.open("wb") as file:
        for _ in range(32):
            file.write(b"word " * 2**18)
    tracemalloc.start()
    length = sum(
        len(b.text) for b in read_blocks([str(path)], CorpusConfig(kind="text"), Counter())
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert length == path.stat().st_size and peak < length / 8


def test_json_lines_packed_json_lines_and_parquet_give_the_same_documents(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [{"body": "one\u2028two", "name": "A", "n": 1}, {"body": " "}, {"body": "three"}]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n"
    write(tmp_path / "a.jsonl", lines)
    for suffix, module in ((".gz", gzip), (".xz", lzma)):
        with module.open(tmp_path / f"a.jsonl{suffix}", "wb") as file:
            file.write(lines.encode())
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for path in sorted(tmp_path.iterdir()):
        counts = Counter()
        pairs = documents(read(path, counts=counts, text_field="body", title_field="name"))
        assert pairs == [("A", "one\u2028two"), ("three", "three")], path
        assert counts["empty_documents"] == 1


def test_a_hub_dataset_is_streamed(monkeypatch):
    calls = []

    def load_dataset(*names, **options):
        calls.append((names, options))
        return iter([{"text": "one"}, {"text": "two", "title": "T"}])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert documents(read("hub:me/mine:raw:validation")) == [("one", "one"), ("T", "two")]
    read("hub:me/mine")
    assert calls == [
        (("me/mine", "raw"), {"split": "validation", "streaming": True}),
        (("me/mine", None), {"split": "train", "streaming": True}),
    ]


def test_the_error_for_an_unreachable_dataset_shows_how_to_name_one(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(MlpMemError, match="hub:me/mine .no route.*owner/name:configuration"):
        read("hub:me/mine")


def test_empty_files_and_documents_are_skipped_and_counted(tmp_path):
    write(tmp_path / "a.txt", "")
    write(tmp_path / "b.txt", " \n")
    write(tmp_path / "c.txt", "text")
    counts = Counter()
    assert documents(read(tmp_path, counts=counts)) == [("c.txt", "text")]
    assert counts == {"empty_files": 1, "empty_documents": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"x" * 70000 + b"\xff", r"a.txt: byte 70000 \(0xff, line 1\) is not UTF-8"),
        ("a.txt", "ends inside 金".encode()[:-1], r"a.txt: byte 12 \(0xe9, line 1\)"),
        (
            "a.jsonl",
            '{"txt": "a"}',
            r"line 1 of .*a.jsonl must have .text., .messages., .*; got .* text_field in .corpus",
        ),
        ("a.parquet", "text", r"a.parquet is not a valid Parquet file"),
        ("a.txt.xz", "text", r"cannot read .*a.txt.xz"),
        ("a.jsonl.gz", gzip.compress(b"{}", mtime=0)[:-9], r"cannot read .*a.jsonl.gz"),
        ("a.csv", "text", r"a.csv must be one of .txt, .md, .jsonl, .html, .htm, .pdf, .parquet"),
    ],
)
def test_an_unreadable_file_is_named_with_the_place_of_the_fault(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(MlpMemError, match=message):
        read(path)


def test_a_lone_surrogate_in_json_becomes_a_replacement_character(tmp_path):
    line = json.dumps({"title": "a \ud83d", "text": "before \ud83d after \U0001f600"})
    (tmp_path / "a.jsonl").write_text(line + "\n")
    (block,) = read(tmp_path / "a.jsonl")
    assert (block.title, block.text) == ("a \ufffd", "before \ufffd after \U0001f600")


def test_the_error_for_a_missing_source_shows_how_to_name_one(tmp_path):
    with pytest.raises(MlpMemError, match="nowhere does not exist; .*relative to the recipe"):
        read(tmp_path / "nowhere")
    with pytest.raises(MlpMemError, match="holds no text; .*hub:owner/name"):
        read(tmp_path)


@pytest.mark.parametrize("package", ["datasets", "pyarrow"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    package, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, package, None)
    source = "hub:owner/name" if package == "datasets" else write(tmp_path / "a.parquet", b"PAR1")
    with pytest.raises(MlpMemError, match=rf"read by {package}, .*pip install -e \"\.\[train\]\""):
        read(source)

"""Web pages and PDFs as text, and what a hostile one costs."""

import gzip
import io
import time

import pytest
from marks import slow

from mlpmem.errors import MlpMemError
from mlpmem.retrieval import texts
from mlpmem.retrieval.converted import converted
from mlpmem.ui.service import own_text

PAGE = """<!DOCTYPE html><html><head><title>Not text</title><style>p { color: red }</style></head>
<body onload="x()"><h1>The  Lighthouse</h1><p>It is <b>71</b>
metres&nbsp;high &amp; white.<p hidden>secret<p>Built in 1888.
<script>if (1 < 2) alert("no")</script><template>no</template><ul><li>one<li>two</ul>
<pre>  kept
   as it is</pre><div style="display: none">no<div>no</div>no</div>
<table><tr><td>a<td>b</tr><tr><td>c</table></body></html>"""
TEXT = (
    "The Lighthouse\n\nIt is 71 metres\xa0high & white.\n\nBuilt in 1888.\n\none\ntwo\n\n"
    "  kept\n   as it is\n\na b\nc"
)


def pdf_of(*pages: str, password: str = "") -> bytes:
    """Return a PDF with a line of text on every page."""
    pypdf = pytest.importorskip("pypdf")
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = pypdf.PdfWriter()
    font = DictionaryObject({NameObject("/Type"): NameObject("/Font"),
                             NameObject("/Subtype"): NameObject("/Type1"),
                             NameObject("/BaseFont"): NameObject("/Helvetica")})  # fmt: skip
    for line in pages:
        page = writer.add_blank_page(300, 300)
        stream = DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 20 200 Td ({line}) Tj ET".encode("latin-1"))
        page[NameObject("/Contents")] = writer._add_object(stream)
        page[NameObject("/Resources")] = DictionaryObject(
            {NameObject("/Font"): DictionaryObject({NameObject("/F1"): writer._add_object(font)})}
        )
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


@pytest.mark.parametrize("name", ["a.html", "A.HTM", "a.html.gz"])
def test_a_web_page_is_read_as_it_is_seen(tmp_path, name):
    raw = PAGE.encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    assert texts.read_texts([tmp_path / name]) == [(name, TEXT)]
    assert own_text.read_upload(tmp_path / name) == (name, TEXT)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("<meta charset=latin-1>caf\xe9".encode("latin-1"), "caf\xe9"),
        ("\ufeffcaf\xe9".encode("utf-16-le"), "caf\xe9"),
        ("caf\xe9".encode("utf-8-sig"), "caf\xe9"),
        (b"<p>a<p hidden>b</div><ul hidden><li>c<ul><li>d</ul>e</ul>f", "a\n\nf"),
        (b"<head><meta name=x><p>no</p><body>seen", "seen"),
        (b"a < b <3 &lt;i&gt; </nothing> <unknown>c", "a < b <3 <i> c"),
        (b"<div>" * 100_000 + b"deep", "deep"),
        (b"&#xD800;x", "\ufffdx"),
    ],
)
def test_encodings_and_odd_markup(raw, text):
    assert converted.converted(raw, ".html", "a.html").strip() == text


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"<p>\xff", "a.html is not UTF-8 text; save it as UTF-8"),
        (b"<meta charset=zlib>x", "encoding that is not known: zlib"),
        (b"x" * 2000, "more than 0.001 MB of text"),
    ],
)
def test_a_web_page_that_cannot_be_read_is_named_with_the_reason(raw, why):
    with pytest.raises(MlpMemError, match=why):
        converted.converted(raw, ".html", "a.html", most=1000)


@pytest.mark.parametrize("piece", ["<!--", "<a b='", *slow("<a ", "</", "<?")])
def test_a_page_that_keeps_the_parser_busy_is_ended(piece):
    begin = time.monotonic()
    with pytest.raises(MlpMemError, match="takes over 1 s to read"):
        converted.converted(piece.encode() * 500_000, ".html", "a.html", seconds=1)
    assert time.monotonic() - begin < 1 + converted.START_SECONDS


def test_a_pdf_is_read_page_by_page(tmp_path):
    (tmp_path / "Notes.PDF").write_bytes(pdf_of("The mayor is Ada Quill.", "", "Second page."))
    expected = [("Notes.PDF", "The mayor is Ada Quill.\n\nSecond page.")]
    assert texts.read_texts([tmp_path]) == expected
    assert own_text.titled(*own_text.read_upload(tmp_path / "Notes.PDF")) == expected


def test_a_pdf_that_cannot_be_read_is_named_with_the_reason():
    good = pdf_of("a")
    bomb = pdf_of("(" * 10)  # the brackets do not close
    for raw, why in (
        (pdf_of("a", password="secret"), "a.pdf is protected by a password"),
        (pdf_of("", ""), "a.pdf has no text: a scanned page is a picture"),
        (b"no pdf", "a.pdf (is not a PDF|cannot be read)"),
        (good[:200], "a.pdf (is not a PDF|cannot be read|has no text)"),
        (bomb, "a.pdf (is not a PDF|cannot be read|has no text)"),
        (pdf_of("x" * 2000), "more than 0.001 MB of text"),
    ):
        with pytest.raises(MlpMemError, match=why):
            converted.converted(raw, ".pdf", "a.pdf", most=1000)


def test_a_pdf_that_unpacks_without_end_is_ended():
    import zlib

    pypdf = pytest.importorskip("pypdf")
    from pypdf.generic import NameObject, StreamObject

    reader = pypdf.PdfReader(io.BytesIO(pdf_of("a")))
    writer = pypdf.PdfWriter(clone_from=reader)
    packed = zlib.compressobj(9)
    data = b"".join(packed.compress(b"BT (a) Tj ET\n" * 2**16) for _ in range(160))
    stream = StreamObject()
    stream._data = data + packed.flush()
    stream[NameObject("/Filter")] = NameObject("/FlateDecode")
    writer.pages[0][NameObject("/Contents")] = writer._add_object(stream)
    out = io.BytesIO()
    writer.write(out)
    assert len(out.getvalue()) < 1_000_000, "of 136 MB"
    begin = time.monotonic()
    with pytest.raises(MlpMemError, match="a.pdf (takes|cannot be read|is not a PDF|has no text)"):
        converted.converted(out.getvalue(), ".pdf", "a.pdf", seconds=5)
    assert time.monotonic() - begin < 5 + converted.START_SECONDS


def test_without_pypdf_a_pdf_says_what_to_install(monkeypatch):
    monkeypatch.setattr(converted, "find_spec", lambda name: None)
    with pytest.raises(MlpMemError, match="a.pdf is a PDF.*`pip install pypdf`"):
        converted.converted(b"%PDF", ".pdf", "a.pdf")


def test_other_files_are_read_where_one_fails(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff")
    (tmp_path / "b.txt").write_text("kept")
    (tmp_path / "c.html").write_bytes(b"\xff")
    failed = []
    assert texts.read_texts([tmp_path], failed=failed) == [("b.txt", "kept")]
    assert len(failed) == 2 and "a.txt: byte 0" in failed[0] and "c.html is not" in failed[1]
    with pytest.raises(MlpMemError, match="a.txt: byte 0"):
        texts.read_texts([tmp_path])
    (tmp_path / "b.txt").unlink()
    with pytest.raises(MlpMemError, match="a.txt: byte 0"):
        texts.read_texts([tmp_path], failed=[])

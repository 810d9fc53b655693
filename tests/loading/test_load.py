"""mlpmem.load: bundles, parts, your own text, and how cheap the import is."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny

import mlpmem
from mlpmem.engine.fused import Settings
from mlpmem.errors import MlpMemError
from mlpmem.retrieval.texts import read_text


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Return a folder with a decoder, a memory and two text files."""
    folder = tmp_path_factory.mktemp("parts")
    decoder = tiny.decoder("gpt2", depth=1)
    decoder.model.save_pretrained(folder / "decoder")
    decoder.tokenizer.save_pretrained(folder / "decoder")
    tiny.memory(decoder, "gpt2", lmbda=0.7).save(folder / "memory")
    (folder / "notes.txt").write_text("The capital of Peru is Lima.", encoding="utf-8")
    lines = [{"title": "Gold", "text": "Gold is a metal."}, {"text": "Vellmar is a town."}]
    (folder / "more.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    return folder


def test_importing_the_package_imports_nothing_heavy():
    heavy = "{'torch', 'transformers', 'numpy', 'faiss'}"
    code = f"import sys, mlpmem; print(sorted({heavy} & {{*sys.modules}}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_bundle_loads_without_a_datastore_or_attaches_it_later(tiny_bundle):
    assert mlpmem.load(tiny_bundle.folder, datastore=False).systems == ["lm", "memory"]
    model = mlpmem.load(tiny_bundle.folder, datastore="background")
    assert model.generate("Peru", max_new_tokens=1).steps
    deadline = time.monotonic() + 30
    while "knn" not in model.systems and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "knn" in model.systems
    with pytest.raises(MlpMemError, match="datastore must be True, False .*got 'later'"):
        mlpmem.load(tiny_bundle.folder, datastore="later")


def test_a_script_may_end_while_its_datastore_is_attached(tiny_bundle):
    code = f"import mlpmem; mlpmem.load({str(tiny_bundle.folder)!r}, datastore='background')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr and "terminate" not in done.stderr


def test_the_embedded_bundle_is_the_default(tiny_bundle, monkeypatch):
    monkeypatch.setenv("MLPMEM_BUNDLE", str(tiny_bundle.folder))
    assert mlpmem.load(datastore=False).name == "tiny"
    assert mlpmem.load("atlas", datastore=False, settings=Settings(k=3)).settings.k == 3


def test_memory_and_text_are_optional_parts(parts):
    decoder_only = mlpmem.load(decoder=parts / "decoder", depth=0)
    assert decoder_only.systems == ["lm"] and decoder_only.decoder.depth == 0
    model = mlpmem.load(
        decoder=parts / "decoder", memory=parts / "memory", text=[parts / "notes.txt"]
    )
    assert model.systems == ["lm", "memory", "knn"]
    assert model.decoder.depth == model.memory.config.depth == 1
    assert model.settings.lmbda["memory"] == 0.7
    step = model.generate("The capital of Peru is", "knn", max_new_tokens=1).steps[0]
    assert step.neighbours[0].title == "notes.txt" and step.neighbours[0].group == "text"
    assert mlpmem.load(decoder=parts / "decoder", text=parts / "notes.txt").systems == ["lm", "knn"]


def test_progress_counts_the_tokens_of_parts_text(parts):
    seen = []
    mlpmem.load(
        decoder=parts / "decoder",
        text=parts / "notes.txt",
        progress=lambda *pair: seen.append(pair),
    )
    assert seen and seen[-1][0] == seen[-1][1] > 0


def test_parts_without_their_decoder_or_with_a_bundle_are_refused(parts, tiny_bundle):
    with pytest.raises(MlpMemError, match="give decoder="):
        mlpmem.load(memory=parts / "memory")
    with pytest.raises(MlpMemError, match="give only one of them"):
        mlpmem.load(tiny_bundle.folder, decoder=parts / "decoder")


def test_text_files_become_documents_with_their_titles_and_every_token(parts):
    decoder = tiny.decoder()
    documents = read_text(decoder, [parts / "notes.txt", parts / "more.jsonl"], chunk=8)
    assert documents.titles == ["notes.txt", "Gold", "more.jsonl:2"]
    texts = ["The capital of Peru is Lima.", "Gold is a metal.", "Vellmar is a town."]
    for index, text in enumerate(texts):
        passages = [documents.passage(p) for p in np.flatnonzero(documents.document_of == index)]
        assert all(passage[0] == 0 and len(passage) <= 8 for passage in passages)
        assert passages[-1][-1] == 1
        assert decoder.decode(np.concatenate(passages).tolist()) == text


def test_a_line_of_jsonl_ends_only_at_a_newline(tmp_path):
    text = "one\u2028two\u2029three\x85four\x0bfive"
    row = json.dumps({"text": text, "title": "odd\u2028title"}, ensure_ascii=False)
    row = row.replace("\\u000b", "\\u000B")
    (tmp_path / "odd.jsonl").write_bytes(f"{row}\r\n\r\n{row}\n".encode())
    decoder = tiny.decoder()
    documents = read_text(decoder, [tmp_path / "odd.jsonl"])
    assert documents.titles == ["odd\u2028title"] * 2
    assert decoder.decode(documents.passage(0)[:].tolist()) == text


def test_text_that_cannot_be_read_is_refused(tmp_path):
    decoder = tiny.decoder()
    for name, content, complaint in (
        ("a.doc", b"x", "must be one of .txt, .md, .jsonl"),
        ("a.txt", b"\xff\xfe", "must hold some text"),
        ("a.jsonl", b'{"title": "no text"}', 'line 1 of .*a.jsonl must have "text", "messages",'),
        (
            "b.jsonl",
            b'"only a string"',
            "line 1 of .*b.jsonl must be an object with .text.; got a string",
        ),
        ("empty.md", b"", "must hold some text"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MlpMemError, match=complaint):
            read_text(decoder, [tmp_path / name])
    with pytest.raises(MlpMemError, match="missing.txt does not exist"):
        read_text(decoder, [tmp_path / "missing.txt"])

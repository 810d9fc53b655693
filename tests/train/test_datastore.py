"""The stage datastore is resumed by shard, shared by processes, and extended in place."""

import dataclasses
import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

import train.run.stage
import train.stages.datastore
from mlpmem.errors import MlpMemError
from mlpmem.retrieval.datastore import Datastore, build_keys
from mlpmem.retrieval.documents import Documents, entries, join_documents
from mlpmem.retrieval.shards import read_index
from mlpmem.retrieval.texts import read_text
from train.config.corpus import CorpusConfig
from train.config.tables import DatastoreConfig, Recipe
from train.files import file_hash, write_json
from train.run.stage import finished_manifest, run_stage
from train.stages.datastore import cut, make_datastore
from train.stages.extend import extend

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Recipe(name="mine", corpus=CorpusConfig(passage=24))
INPUTS = ("corpus", "decoder")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Return a run's folder with a tiny corpus and decoder, and shards of seven entries."""
    bound = tiny.decoder()
    bound.model.save_pretrained(tmp_path / "decoder")
    bound.tokenizer.save_pretrained(tmp_path / "decoder")
    tiny.documents().save(tmp_path / "corpus/memory")
    for name in INPUTS:
        files = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
        outputs = {path.relative_to(tmp_path / name).as_posix(): file_hash(path) for path in files}
        write_json(tmp_path / name / "manifest.json", {"outputs": outputs})
    small_shards(monkeypatch)
    return tmp_path


def small_shards(monkeypatch):
    def seven(start, end, size, config):
        return cut(start, end, 2**20 // 14, DatastoreConfig(shard_mib=1))

    monkeypatch.setattr(train.stages.datastore, "cut", seven)


def make(root, **changes):
    config = dataclasses.replace(RECIPE.datastore, **changes)
    return run_stage(root, "datastore", config, INPUTS, make_datastore, 0, shared=True)


def test_shards_hold_every_entry_once_and_have_the_configured_size():
    spans = cut(5, 4_000_000, 64, DatastoreConfig(shard_mib=100))
    assert spans[0].first == 5 and spans[-1].end == 4_000_000
    assert all(a.end == b.first for a, b in zip(spans, spans[1:], strict=False))
    assert [s.number for s in spans] == list(range(len(spans)))
    assert all((s.end - s.first) * 64 * 2 == 100 * 2**20 for s in spans[:-1])
    assert cut(5, 5, 64, DatastoreConfig()) == []


def test_the_stage_writes_the_datastore_of_its_documents(root):
    manifest = make(root)
    store, documents = Datastore.load(root / "datastore"), tiny.documents()
    positions, counts = entries(documents)
    np.testing.assert_array_equal(store.positions, positions)
    np.testing.assert_array_equal(store.counts, counts)
    expected = build_keys(tiny.decoder(), documents, positions)
    np.testing.assert_allclose(np.asarray(store.keys, float), expected.astype(float), atol=3e-3)
    shards = read_index(root / "datastore")[1]
    assert [s.entries for s in shards[:-1]] == [7] * (len(shards) - 1) and len(shards) > 5
    assert manifest["counts"]["entries"] == len(positions)
    assert manifest["counts"]["shards"] == len(shards)
    assert all(manifest["outputs"][s.file] == s.sha256 for s in shards)
    assert not list((root / "datastore").glob("keys-*.json"))


def kill_after(monkeypatch, shards):
    """Kill the run during a shard, after this many are written."""
    remaining, real = iter(range(shards)), train.stages.datastore.build_keys

    def killed(*arguments, **options):
        keys = real(*arguments, **options)
        if next(remaining, None) is None:
            raise KeyboardInterrupt
        return keys

    monkeypatch.setattr(train.stages.datastore, "build_keys", killed)


def test_a_killed_run_resumes_at_the_next_shard(root, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        kill_after(patched, 3)
        make(root)
    partial = root / "datastore.partial"
    before = {p.name: p.stat().st_mtime_ns for p in partial.glob("keys-*.npy")}
    assert sorted(before) == [f"keys-0000{i}.npy" for i in range(3)]
    manifest = make(root)
    after = {name: (root / "datastore" / name).stat().st_mtime_ns for name in before}
    assert after == before and manifest["counts"]["shards"] > 3
    whole = build_keys(tiny.decoder(), tiny.documents(), entries(tiny.documents())[0])
    keys = Datastore.load(root / "datastore").keys
    np.testing.assert_allclose(np.asarray(keys, float), whole.astype(float), atol=3e-3)


@pytest.mark.parametrize("name", ["keys-00001.npy", "keys-00001.json"])
def test_a_damaged_shard_of_a_killed_run_is_built_again(name, root, monkeypatch, capsys):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        kill_after(patched, 3)
        make(root)
    path = root / "datastore.partial" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    make(root)
    assert "keys-00001.npy is damaged; it is built again" in capsys.readouterr().out
    whole = build_keys(tiny.decoder(), tiny.documents(), entries(tiny.documents())[0])
    keys = Datastore.load(root / "datastore").keys
    np.testing.assert_allclose(np.asarray(keys, float), whole.astype(float), atol=3e-3)


def test_a_datastore_that_is_built_is_taken_as_it_is_and_can_be_extended(root, tmp_path):
    store = tiny.datastore(tiny.decoder())
    store.save(tmp_path / "built")
    manifest = make(root, built=str(tmp_path / "built"))
    taken = Datastore.load(root / "datastore")
    np.testing.assert_array_equal(np.asarray(taken.keys), store.keys)
    np.testing.assert_array_equal(taken.positions, store.positions)
    assert taken.documents.titles == store.documents.titles
    assert manifest["counts"]["entries"] == len(store) and manifest["counts"]["shards"] == 1
    assert make(root) == manifest, "the same datastore, however it was made"
    extend(RECIPE, root, write_texts(tmp_path))
    assert len(Datastore.load(root / "datastore")) > len(store)


def test_damaged_keys_are_not_taken(root, tmp_path):
    tiny.datastore(tiny.decoder()).save(tmp_path / "built")
    path = tmp_path / "built" / "keys-00000.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(MlpMemError, match="built/keys-00000.npy is altered"):
        make(root, built=str(tmp_path / "built"))


def test_a_damaged_datastore_is_not_extended(root, tmp_path):
    make(root)
    path = root / "datastore" / "keys-00000.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(MlpMemError, match="extend: its input datastore is damaged: keys-00000.npy"):
        extend(RECIPE, root, write_texts(tmp_path))


# Extension


def write_texts(folder):
    """Return two files; the first repeats a document of the datastore, then has new text."""
    known = tiny.tokenizer().decode(tiny.documents().passage(0)[1:])
    paths = folder / "one.txt", folder / "two.jsonl"
    paths[0].write_text(f"{known} And more than that, in another passage.", encoding="utf-8")
    line = '{"text": "Gold is yellow.", "title": "Gold"}\n'
    paths[1].write_text(line + line, encoding="utf-8")
    return list(paths)


def all_at_once(paths):
    """Return documents, positions and counts of a datastore built from everything at once."""
    documents = join_documents(tiny.documents(), read_text(tiny.decoder(), paths, 24))
    return documents, *entries(documents)


def assert_equals_all_at_once(root, paths):
    store, (documents, positions, counts) = Datastore.load(root / "datastore"), all_at_once(paths)
    np.testing.assert_array_equal(store.documents.tokens, documents.tokens)
    assert store.documents.titles == documents.titles
    np.testing.assert_array_equal(store.positions, positions)
    np.testing.assert_array_equal(store.counts, counts)
    expected = build_keys(tiny.decoder(), documents, positions)
    np.testing.assert_allclose(np.asarray(store.keys, float), expected.astype(float), atol=3e-3)


def test_an_extended_datastore_equals_one_built_from_everything_at_once(root, monkeypatch):
    make(root)
    old, shards = Datastore.load(root / "datastore"), read_index(root / "datastore")[1]
    counts, paths = np.array(old.counts), write_texts(root)
    built = []
    real = train.stages.datastore.build_keys

    def counted(decoder, documents, positions, **options):
        built.extend(positions.tolist())
        return real(decoder, documents, positions, **options)

    monkeypatch.setattr(train.stages.datastore, "build_keys", counted)
    del old
    extend(RECIPE, root, paths[:1])
    manifest = extend(RECIPE, root, paths[1:])
    assert_equals_all_at_once(root, paths)
    assert min(built) >= len(tiny.documents().tokens), "old keys are not rebuilt"
    assert read_index(root / "datastore")[1][: len(shards)] == shards
    assert (Datastore.load(root / "datastore").counts[: len(counts)] > counts).any()
    assert [text["file"] for text in manifest["added"]] == ["one.txt", "two.jsonl"]
    assert sorted(p.name for p in root.iterdir() if p.is_dir()) == [
        ".locks",
        "corpus",
        "datastore",
        "decoder",
    ]


def test_files_already_in_the_datastore_are_skipped(root, capsys):
    make(root)
    paths = write_texts(root)
    first = extend(RECIPE, root, paths)
    assert extend(RECIPE, root, paths[::-1][:1]) == first
    assert "two.jsonl: already in the datastore" in capsys.readouterr().out
    assert make(root) == first, "the stage counts as done"


def test_a_file_given_twice_counts_once(root):
    make(root)
    paths = write_texts(root)
    extend(RECIPE, root, [paths[0], *paths])
    assert_equals_all_at_once(root, paths)


def test_a_killed_extension_leaves_the_old_datastore_and_resumes(root, monkeypatch):
    make(root)
    paths, before = write_texts(root), finished_manifest(root / "datastore")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        kill_after(patched, 1)
        extend(RECIPE, root, paths)
    assert finished_manifest(root / "datastore") == before
    assert len(Datastore.load(root / "datastore")) == before["counts"]["entries"]
    with pytest.raises(MlpMemError, match="unfinished run in .* adds one.txt, two.jsonl"):
        extend(RECIPE, root, paths[1:])
    extend(RECIPE, root, paths)
    assert_equals_all_at_once(root, paths)


@pytest.mark.parametrize("at", ["datastore.old", "datastore"])
def test_a_kill_during_the_final_rename_loses_nothing(at, root, monkeypatch):
    make(root)
    paths, replace = write_texts(root), os.replace

    def killed(source, target):
        if Path(target) == root / at:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(train.run.stage.os, "replace", killed)
        extend(RECIPE, root, paths)
    monkeypatch.setattr(train.stages.datastore, "build_keys", None)  # all keys are built
    extend(RECIPE, root, paths)
    assert_equals_all_at_once(root, paths)


def test_files_are_copied_if_links_are_not_supported(root, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    make(root)
    monkeypatch.setattr(os, "link", refuse)
    paths = write_texts(root)
    extend(RECIPE, root, paths)
    assert_equals_all_at_once(root, paths)


def test_impossible_extensions_are_refused(root):
    with pytest.raises(MlpMemError, match="no finished datastore .* run `python -m train datas"):
        extend(RECIPE, root, write_texts(root))
    make(root)
    with pytest.raises(MlpMemError, match="none.txt does not exist"):
        extend(RECIPE, root, [root / "none.txt"])
    other = dataclasses.replace(RECIPE, datastore=DatastoreConfig(depth=1))
    with pytest.raises(MlpMemError, match="(?s)other settings:.*depth: -1 before, 1 now"):
        extend(other, root, write_texts(root))


def test_added_text_is_cut_as_in_the_corpus(root):
    make(root)
    (root / "new").mkdir()
    packed = gzip.compress(b"Gold is yellow.\n---\nIron is grey.\n")
    (root / "new/metals.txt.gz").write_bytes(packed)
    separated = dataclasses.replace(RECIPE, corpus=CorpusConfig(passage=24, separator="---"))
    extend(separated, root, [root / "new"])
    documents = Datastore.load(root / "datastore").documents
    assert documents.titles[-2:] == ["Gold is yellow.", "Iron is grey."]
    assert not (root / "datastore/added").exists()


def test_an_unreadable_file_does_not_block_others(root):
    make(root)
    paths, bad = write_texts(root), root / "bad.txt"
    extend(RECIPE, root, paths[:1])
    for content, message in ((b"caf\xe9", "is not UTF-8"), (b" ", "no text found")):
        bad.write_bytes(content)
        with pytest.raises(MlpMemError, match=message):
            extend(RECIPE, root, [bad])
    extend(RECIPE, root, paths[:1])  # nothing new
    extend(RECIPE, root, paths)
    assert_equals_all_at_once(root, paths)


WORKER = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import train.stages.datastore
from train.stages.datastore import cut, make_datastore
from train.run.processes import close_group, process_group
from train.config.tables import DatastoreConfig
from train.run.stage import run_stage
train.stages.datastore.cut = lambda start, end, size, config: cut(start, end, 2**20 // 14, config)
run_stage(Path(sys.argv[1]), "datastore", DatastoreConfig(shard_mib=1), ("corpus", "decoder"),
          make_datastore, 0, shared=True)
print(f"rank {process_group().rank} of {process_group().world}")
close_group()
"""


@pytest.mark.slow
def test_two_processes_build_the_same_datastore_as_one(root):
    script = root / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(script), str(root)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {"rank 0 of 2", "rank 1 of 2"} <= set(done.stdout.splitlines())
    two = Datastore.load(root / "datastore")
    keys = np.array(two.keys)
    assert len(read_index(root / "datastore")[1]) > 5
    (root / "datastore").rename(root / "two")
    make(root)
    one = Datastore.load(root / "datastore")
    np.testing.assert_array_equal(keys, np.asarray(one.keys))
    assert Documents.load(root / "datastore/documents").titles == one.documents.titles

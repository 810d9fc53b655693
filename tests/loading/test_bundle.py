"""Incomplete bundles are refused with the next step; keys are built, checked and cached."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import tiny

import mlpmem
from mlpmem.api import Model
from mlpmem.errors import MlpMemError
from mlpmem.loading import bundle as b
from mlpmem.loading import bundle_writer, manifest
from mlpmem.loading.bundle_writer import put_adapter, put_results, save_bundle
from mlpmem.loading.extra_columns import ExtraColumn
from mlpmem.loading.parts import attach_text
from mlpmem.model.lora import add_adapter, save_adapter
from mlpmem.retrieval import key_cache
from mlpmem.ui.recordings import recorded

NEXT_STEP = "git checkout -- assets.*download or export it again"


@pytest.fixture
def folder(tiny_bundle, tmp_path) -> Path:
    """Return a copy of the tiny bundle that may be damaged."""
    return Path(shutil.copytree(tiny_bundle.folder, tmp_path / "tiny"))


def rewrite_manifest(folder: Path, **change) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def test_a_saved_bundle_gives_the_model_that_was_saved(tiny_bundle):
    model = mlpmem.load(tiny_bundle.folder)
    assert model.systems == ["lm", "memory", "knn"]
    assert model.name == tiny_bundle.name == "tiny"
    assert dict(model.settings.lmbda) == {"memory": 0.55, "knn": 0.6}
    original = tiny.model()
    for name, log_probs in model.distributions("The capital").items():
        if name != "fused":  # weights are stored in half precision
            wanted = original.distributions("The capital")[name].exp()
            np.testing.assert_allclose(log_probs.exp(), wanted, atol=0.02)
    assert tiny_bundle.read_json("examples.json")[0]["prompt"] == "Peru is"
    assert tiny_bundle.manifest["attributions"] == ["Made for tests."]


def test_recorded_traces_are_kept_in_order(tmp_path):
    recorded = [{"v": 1, "name": f"trace {i}"} for i in range(12)]
    saved = tiny.bundle(tmp_path / "with traces", traces=recorded)
    assert saved.traces() == recorded
    assert b.load_bundle(saved.folder).traces() == recorded


def test_saved_files_are_readable_by_everybody(tiny_bundle):
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in tiny_bundle.folder.rglob("*"))


def test_weights_and_tokens_are_stored_small(tiny_bundle):
    files = tiny_bundle.manifest["files"]
    assert files["decoder/model.safetensors"]["bytes"] < 0.6 * tiny.decoder().bytes
    assert (
        json.loads((tiny_bundle.folder / "decoder/config.json").read_text())["dtype"] == "float16"
    )
    assert not any(name.endswith("keys.npy") for name in files)


@pytest.mark.parametrize(
    "name",
    ["decoder/model.safetensors", "memory/config.json", "documents/tokens.npy", "results.json"],
)
@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
def test_a_damaged_file_is_named_with_the_next_step(name, damage, folder):
    file = folder / name
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(data[: len(data) // 2])
    else:
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(MlpMemError, match=f"{name} is {damage}.*{NEXT_STEP}"):
        b.load_bundle(folder)


def test_a_folder_without_a_readable_manifest_is_refused(folder, tmp_path):
    with pytest.raises(MlpMemError, match=f"no readable manifest.json.*{NEXT_STEP}"):
        b.load_bundle(tmp_path / "nowhere")
    (folder / "manifest.json").write_text("{")
    with pytest.raises(MlpMemError, match="no readable manifest.json"):
        b.load_bundle(folder)
    (folder / "manifest.json").write_text(" " * (manifest.MANIFEST_BYTES + 1))
    with pytest.raises(MlpMemError, match="over .* bytes"):
        b.load_bundle(folder)
    (folder / "manifest.json").write_text('{"format": 1, "files": {}}')
    with pytest.raises(MlpMemError, match="lists no files"):
        b.load_bundle(folder)


def test_a_later_format_asks_for_an_update(folder):
    rewrite_manifest(folder, format=2)
    with pytest.raises(MlpMemError, match="format 2, this program reads 1; update the program"):
        b.load_bundle(folder)


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", "a\\b"])
def test_a_manifest_never_reaches_outside_its_folder(name, folder):
    rewrite_manifest(folder, files={name: {"bytes": 1, "sha256": ""}})
    with pytest.raises(MlpMemError, match="malformed"):
        b.load_bundle(folder)


def relist_files(folder: Path) -> None:
    """Update the manifest to the current files, as an attacker would."""
    (folder / "manifest.json").rename(folder.parent / "manifest.json")
    files = manifest.list_files(folder)
    (folder.parent / "manifest.json").rename(folder / "manifest.json")
    rewrite_manifest(folder, files=files)


@pytest.mark.parametrize(
    "name", ["results.json", "decoder/config.json", "documents", "manifest.json"]
)
def test_a_link_in_a_bundle_is_refused_whatever_its_target(name, folder, tmp_path):
    (folder / name).rename(tmp_path / "private")
    (folder / name).symlink_to(tmp_path / "private")
    with pytest.raises(MlpMemError, match=f"{name} is a link, .*copy the bundle with its files"):
        b.load_bundle(folder)


def test_a_linked_bundle_folder_is_read(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert b.load_bundle(tmp_path / "link").model().systems == ["lm", "memory"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this platform")
@pytest.mark.parametrize("name", ["manifest.json", "decoder/model.safetensors", "traces/0.json"])
def test_a_pipe_in_place_of_a_file_does_not_block(name, folder):
    (folder / name).unlink(missing_ok=True)
    (folder / name).parent.mkdir(exist_ok=True)
    os.mkfifo(folder / name)
    recorded.read(folder)
    if name.startswith("traces"):
        assert b.load_bundle(folder).traces() == []
    else:
        with pytest.raises(MlpMemError, match="is not a file|is missing"):
            b.load_bundle(folder)


def test_unlisted_files_change_nothing(folder, tmp_path):
    bundle = b.load_bundle(folder)
    wanted = bundle.model().distributions("The capital")
    wrapped = add_adapter(tiny.decoder().model, 2)
    for weight in wrapped.parameters():
        weight.data.add_(0.3)
    save_adapter(wrapped, folder / "decoder")
    tiny.memory(tiny.decoder(), seed=9).save(folder / "memory" / "knn_generator")
    (folder / "decoder" / "chat_template.jinja").write_text("{{ 1 / 0 }}")
    (folder / "decoder" / "generation_config.json").write_text('{"eos_token_id": 40}')
    files = {n: f for n, f in bundle.manifest["files"].items() if "generation_config" not in n}
    rewrite_manifest(folder, files=files)
    (folder / "traces").mkdir()
    (folder / "traces" / "00.json").write_text("{}")
    (folder / "router" / "x").mkdir(parents=True)
    (folder / "router" / "x" / "config.json").write_text("{}")
    bundle = b.load_bundle(folder)
    model = bundle.model()
    for name, log_probs in model.distributions("The capital").items():
        assert np.array_equal(log_probs, wanted[name])
    assert not model.decoder.tokenizer.chat_template and 40 not in model.decoder.eos_ids
    assert bundle.traces() == [] and model.routers == {}
    assert model.decoder.folder == folder / "decoder"
    assert not [path for path in Path(tempfile.gettempdir()).glob("mlpmem-*/decoder")]


def test_an_unlisted_file_counts_as_missing(folder):
    files = dict(b.load_bundle(folder).manifest["files"])
    for name in ("documents/tokens.npy", "results.json", "fingerprint.safetensors"):
        rewrite_manifest(folder, files={n: f for n, f in files.items() if n != name})
        bundle = b.load_bundle(folder)
        assert (recorded.read(folder).results is None) == (name == "results.json")
        with pytest.raises(MlpMemError):
            built(bundle) if name != "results.json" else bundle.read_json(name)


def test_a_listed_adapter_within_a_bundles_decoder_is_refused(folder):
    save_adapter(add_adapter(tiny.decoder().model, 2), folder / "decoder")
    relist_files(folder)
    with pytest.raises(MlpMemError, match="also holds a LoRA adapter .* column, NAME=FOLDER"):
        b.load_bundle(folder).model()


def test_settings_that_cannot_be_used_are_refused(folder):
    rewrite_manifest(folder, settings={"lambda": 3})
    with pytest.raises(MlpMemError, match="settings cannot be used"):
        _ = b.load_bundle(folder).settings


def test_a_memory_of_another_decoder_is_refused_when_saving_and_when_loading(folder, tmp_path):
    other = tiny.memory(tiny.decoder(depth=0))
    with pytest.raises(MlpMemError, match="belongs to another decoder"):
        save_bundle(
            tmp_path / "never", decoder=tiny.decoder(), memory=other, documents=tiny.documents(),
            settings={}, fingerprint=(np.zeros(0, np.int64), np.zeros((0, tiny.HIDDEN))),
        )  # fmt: skip
    assert not (tmp_path / "never").exists()
    config = json.loads((folder / "memory/config.json").read_text())
    (folder / "memory/config.json").write_text(json.dumps(config | {"tokenizer_hash": "00"}))
    relist_files(folder)
    with pytest.raises(MlpMemError, match="belongs to another decoder: tokenizer hash"):
        b.Bundle(folder, json.loads((folder / "manifest.json").read_text())).model()


def test_saving_replaces_a_bundle_and_leaves_no_other_files(tmp_path):
    tiny.bundle(tmp_path / "again")
    (tmp_path / "again" / "left over.txt").write_text("old")
    saved = tiny.bundle(tmp_path / "again")
    assert [path.name for path in tmp_path.iterdir()] == ["again"]
    assert "left over.txt" not in {path.name for path in saved.folder.iterdir()}


def test_a_save_that_fails_leaves_the_old_bundle(folder, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bundle_writer, "_write_decoder", full)
    with pytest.raises(OSError, match="No space"):
        tiny.bundle(folder)
    b.load_bundle(folder)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_presets_and_paths_resolve_to_folders(monkeypatch, tmp_path):
    assert b.preset_path("atlas") == b.default_bundle_path()
    assert b.default_bundle_path().parts[-2:] == ("assets", "atlas")
    monkeypatch.setenv("MLPMEM_BUNDLE", str(tmp_path))
    assert b.preset_path(None) == tmp_path
    with pytest.raises(MlpMemError, match="nor a preset; presets are atlas, smollm2, gpt2"):
        b.preset_path("gpt2-large")


def built(bundle, **options) -> key_cache.Built:
    return bundle.attach(bundle.model(), **options)


def test_keys_are_built_once_and_then_read_from_the_cache(tiny_bundle):
    seen = []
    first = built(tiny_bundle, progress=lambda *pair: seen.append(pair))
    assert not first.cached and first.warning == "" and seen[-1][0] == seen[-1][1]
    assert first.seconds > 0 and first.bytes == first.datastore.bytes
    second = built(tiny_bundle, progress=lambda *pair: pytest.fail("keys were built again"))
    assert second.cached and second.seconds == first.seconds
    np.testing.assert_array_equal(second.datastore.keys, first.datastore.keys)
    names = sorted(path.suffix for path in key_cache.cache_folder().iterdir())
    assert names == [".json", ".npy"]


SEALED = {
    "not an array": b"not an array",
    "an archive": b"PK\x03\x04 cut off",
    "an object": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (3,)}",
    "a header that is not Python": b"\x93NUMPY\x01\x00\x10\x00(((((((((((((((\n",
    "nothing": b"",
}
NOTES = ["[]", "3", "null", "{}", '{"sha256": 3}', '{"seconds": 1', "[" * 9999, "\x00"]
SECONDS = ["1" + "0" * 400, '"x"', "null", "[]", "NaN", "-1", "Infinity"]


@pytest.mark.parametrize("kind", [*SEALED, *NOTES, *SECONDS])
def test_a_damaged_cache_is_rebuilt_without_an_error(kind, tiny_bundle):
    keys = np.array(built(tiny_bundle).datastore.keys)
    file = next(key_cache.cache_folder().glob("*.npy"))
    notes = file.with_suffix(".json")
    if kind in SEALED:
        file.write_bytes(SEALED[kind])
        row = {"sha256": hashlib.sha256(SEALED[kind]).hexdigest(), "seconds": 1.0}
        notes.write_text(json.dumps(row))
    elif kind in NOTES:
        notes.write_text(kind)
    else:
        digest = json.loads(notes.read_text())["sha256"]
        notes.write_text(f'{{"sha256": "{digest}", "seconds": {kind}}}')
    again = built(tiny_bundle)
    assert not again.cached and np.array_equal(again.datastore.keys, keys)
    assert built(tiny_bundle).cached


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this platform")
@pytest.mark.parametrize("suffix", [".npy", ".json"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "dangling link"])
def test_a_pipe_folder_or_link_in_place_of_the_cache_does_not_block(kind, suffix, tiny_bundle):
    keys = np.array(built(tiny_bundle).datastore.keys)
    file = next(key_cache.cache_folder().glob(f"*{suffix}"))
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        (file / "x").mkdir(parents=True)
    else:
        file.symlink_to("nowhere")
    again = built(tiny_bundle)
    assert not again.cached and np.array_equal(again.datastore.keys, keys)
    assert bool(again.warning) == (kind == "folder")


def test_nothing_is_written_through_a_link_in_the_cache(tiny_bundle, tmp_path):
    folder = key_cache.cache_folder()
    (tmp_path / "mine").write_text("mine")
    keys = np.array(built(tiny_bundle).datastore.keys)
    names = [path.name for path in folder.iterdir()]
    for name in (*names, *(f".{name}.{os.getpid()}" for name in names)):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path / "mine")
    assert np.array_equal(built(tiny_bundle).datastore.keys, keys)
    assert (tmp_path / "mine").read_text() == "mine"
    assert built(tiny_bundle).cached and not any((folder / name).is_symlink() for name in names)


def test_amending_a_bundle_never_writes_through_a_link(folder, tmp_path):
    (tmp_path / "mine").write_text("mine")
    (folder / "results.json").unlink()
    for name in ("results.json", "manifest.json.new"):
        (folder / name).symlink_to(tmp_path / "mine")
    put_results(folder, {"systems": []})
    assert b.load_bundle(folder).read_json("results.json") == {"systems": []}
    save_adapter(add_adapter(tiny.decoder().model, 2), tmp_path / "lora")
    (tmp_path / "elsewhere").mkdir()
    (folder / "adapters").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MlpMemError, match="adapters is a link"):
        put_adapter(folder, ExtraColumn("tuned", tmp_path / "lora", "adapter"))
    assert (tmp_path / "mine").read_text() == "mine"
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("damage", ["truncated", "altered", "another shape", "no notes"])
def test_a_stale_or_damaged_cache_is_built_again(damage, tiny_bundle):
    keys = np.array(built(tiny_bundle).datastore.keys)
    file = next(key_cache.cache_folder().glob("*.npy"))
    data = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(data[:-40])
    elif damage == "altered":
        data[-1] ^= 255
        file.write_bytes(data)
    elif damage == "another shape":
        key_cache._write(file, np.zeros((3, 3), np.float16), 1.0)
    else:
        file.with_suffix(".json").unlink()
    again = built(tiny_bundle)
    assert not again.cached
    np.testing.assert_array_equal(again.datastore.keys, keys)
    assert built(tiny_bundle).cached


def test_keys_of_another_decoder_have_another_cache_file(tiny_bundle, tmp_path):
    built(tiny_bundle)
    other = tiny.bundle(tmp_path / "other", name="other")
    shutil.copy(next(key_cache.cache_folder().glob("*.npy")), tmp_path)
    assert built(other).cached, "the same decoder and documents, whatever the name"
    changed = json.loads(json.dumps(other.manifest))
    changed["files"]["decoder/model.safetensors"]["sha256"] = "0" * 64
    assert not built(b.Bundle(other.folder, changed)).cached


def test_old_caches_and_half_written_files_are_removed(tiny_bundle):
    built(tiny_bundle)
    folder = key_cache.cache_folder()
    own = next(folder.glob("*.npy"))
    keys, now = np.zeros((3, 3), np.float16), time.time()
    half_written = folder / ".keys-own.npy.12", folder / ".keys-new.npy.13"
    for path, age in zip(half_written, (7200, 60), strict=True):
        path.write_bytes(b"half")
        os.utime(path, (now - age, now - age))
    (folder / "keys of mine.txt").write_text("somebody else's")
    os.utime(own, (now - 9000, now - 9000))
    for number in range(key_cache.KEPT - 1):
        key_cache._write(folder / f"keys-{number}.npy", keys, 1.0)
        os.utime(folder / f"keys-{number}.npy", (now - 8000 + number,) * 2)
    assert built(tiny_bundle).cached, "reading a cache marks it as used"
    key_cache._write(folder / "keys-new.npy", keys, 1.0)
    kept = {path.stem for path in folder.glob("*.npy")}
    assert kept == {own.stem, "keys-new"} | {f"keys-{n}" for n in range(1, key_cache.KEPT - 1)}
    assert {path.stem for path in folder.glob("*.json")} == kept
    assert [path.exists() for path in half_written] == [False, True]
    assert (folder / "keys of mine.txt").exists()


def test_a_cache_that_cannot_be_removed_is_ignored(tiny_bundle, monkeypatch):
    keys = np.zeros((3, 3), np.float16)
    for number in range(key_cache.KEPT):
        key_cache._write(key_cache.cache_folder() / f"keys-{number}.npy", keys, 1.0)
    unlink = Path.unlink

    def in_use(path, **options):
        if path.suffix == ".npy":
            raise PermissionError
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", in_use)
    assert built(tiny_bundle).warning == ""
    for path in key_cache.cache_folder().glob("*.npy"):
        assert path.with_suffix(".json").exists(), "the remaining caches stay complete"


def test_a_full_cache_folder_leaves_the_keys_in_memory_with_a_warning(tiny_bundle, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    found = built(tiny_bundle)
    assert "No space left on device" in found.warning and "MLPMEM_CACHE" in found.warning
    assert len(found.datastore) and list(key_cache.cache_folder().iterdir()) == []


def test_a_cache_folder_that_cannot_be_created_leaves_the_keys_in_memory(
    tiny_bundle, monkeypatch, tmp_path
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLPMEM_CACHE", str(tmp_path / "file" / "cache"))
    found = built(tiny_bundle)
    assert not found.cached and "cannot be written" in found.warning


def test_built_keys_that_miss_the_fingerprint_are_refused(tiny_bundle, monkeypatch):
    right = key_cache.Fingerprint.load(tiny_bundle.folder / "fingerprint.safetensors")
    wrong = key_cache.Fingerprint(right.indices, right.keys * np.float16(1.05))
    assert right.error(right.keys[np.zeros(0, int)]) == float("inf")
    monkeypatch.setattr(key_cache.Fingerprint, "load", classmethod(lambda cls, path: wrong))
    with pytest.raises(MlpMemError, match="differ from the bundle's fingerprint by 4.8%"):
        built(tiny_bundle)
    assert list(key_cache.cache_folder().glob("*")) == []


def test_a_fingerprint_tolerates_only_rounding():
    keys = np.random.default_rng(0).standard_normal((500, 16)).astype(np.float16)
    fingerprint = key_cache.Fingerprint.of(keys)
    assert len(fingerprint.indices) == key_cache.FINGERPRINTS
    assert {0, 499} <= {*fingerprint.indices.tolist()}
    rounded = (keys.astype(np.float32) * (1 + 2**-11)).astype(np.float16)
    assert fingerprint.error(rounded) < key_cache.TOLERANCE / 5
    assert fingerprint.error(keys[::-1]) > 10 * key_cache.TOLERANCE
    keys[0, 0] = np.nan
    assert fingerprint.error(keys) == float("inf")


def test_the_cache_folder_follows_the_platform(monkeypatch):
    monkeypatch.delenv("MLPMEM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x/cache")
    monkeypatch.setattr(key_cache.sys, "platform", "linux")
    assert key_cache.cache_folder() == Path("/x/cache/mlpmem")
    monkeypatch.setattr(key_cache.sys, "platform", "darwin")
    assert key_cache.cache_folder() == Path.home() / "Library/Caches/mlpmem"
    monkeypatch.setattr(key_cache.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert key_cache.cache_folder() == Path("/local/mlpmem")


def test_building_can_be_stopped_and_restarted(tiny_bundle):
    with pytest.raises(MlpMemError, match="stopped"):
        built(tiny_bundle, stop=lambda: True)
    assert not built(tiny_bundle).cached


def test_keys_of_ones_own_text_are_cached_by_decoder_and_text(tmp_path):
    text, other = tmp_path / "one.txt", tmp_path / "other.txt"
    text.write_text("The capital of Peru is Lima. Gold has the symbol Au.", encoding="utf-8")
    other.write_text("The capital of Peru is Quito. Gold has the symbol Ag.", encoding="utf-8")

    def attached(path: Path, seed: int = 0) -> key_cache.Built:
        return attach_text(Model(tiny.decoder(seed=seed)), path, "exact")

    first, again = attached(text), attached(text)
    assert not first.cached and again.cached
    assert np.array_equal(first.datastore.keys, again.datastore.keys)
    assert not attached(other).cached and not attached(text, seed=5).cached

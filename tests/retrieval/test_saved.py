"""A datastore saved and opened again: equal neighbours, and a sentence for every other file."""

import hashlib
import io
import json
import zipfile

import numpy as np
import pytest
import tiny
import torch
from safetensors.numpy import load, save

from mlpmem.errors import MlpMemError
from mlpmem.formats import is_saved_store
from mlpmem.retrieval import saved
from mlpmem.retrieval.datastore import store_texts

TEXTS = [("notes.txt", "The mayor of Orlane is Ada Quill. " * 3), ("a.pdf", "Orlane has a port.")]


@pytest.fixture(scope="module")
def decoder():
    return tiny.decoder()


@pytest.fixture(scope="module")
def store(decoder):
    return store_texts(decoder, TEXTS)


@pytest.fixture
def packed(decoder, store, tmp_path):
    """Return the path of the saved datastore."""
    path = tmp_path / "notes.zip"
    path.write_bytes(saved.pack(decoder, store.datastore, "2 files"))
    return path


def parts(path):
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def rewritten(path, files, **options):
    """Write a .zip of files in place of the saved one, and return its path."""
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


def altered(path, change_arrays=None, listed=True, **fields):
    """Rewrite arrays and manifest of a saved datastore, with a fitting hash if listed."""
    files = parts(path)
    manifest = json.loads(files[saved.MANIFEST])
    if change_arrays is not None:
        arrays = {name: array.copy() for name, array in load(files[saved.ARRAYS]).items()}
        change_arrays(arrays)
        files[saved.ARRAYS] = save(arrays)
    if listed:
        manifest["sha256"] = hashlib.sha256(files[saved.ARRAYS]).hexdigest()
    files[saved.MANIFEST] = json.dumps(manifest | fields).encode()
    return rewritten(path, files)


@pytest.mark.parametrize("form", ["zip", "folder", "without keys"])
def test_what_is_opened_has_the_neighbours_of_what_was_saved(
    decoder, store, packed, tmp_path, form
):
    if form == "without keys":
        small = packed.stat().st_size - 1
        packed.write_bytes(saved.pack(decoder, store.datastore, "2 files", most=small))
    source = packed
    if form == "folder":
        source = tmp_path / "unpacked"
        source.mkdir()
        for name, data in parts(packed).items():
            (source / name).write_bytes(data)
    assert is_saved_store(source)
    opened = saved.read(decoder, source)
    assert opened.title == "2 files" and opened.documents.titles == ["notes.txt", "a.pdf"]
    assert (opened.keys is None) is (form == "without keys")
    again = saved.open_datastore(decoder, opened)
    assert np.array_equal(again.keys, store.datastore.keys)
    assert np.array_equal(again.counts, store.datastore.counts)
    assert np.array_equal(again.values, store.datastore.values)
    assert again.context(3) == store.datastore.context(3)


@pytest.mark.parametrize("questions", [False, True], ids=["passages", "sentences"])
def test_an_opened_datastore_answers_as_the_saved_one(decoder, tmp_path, questions):
    from mlpmem.api import Model

    model = Model(decoder, name="tiny", questions=questions)
    store = model.store_texts(TEXTS)
    (tmp_path / "own.zip").write_bytes(model.save_store(store, "own"))
    title, again = model.open_store(tmp_path / "own.zip")
    assert title == "own" and again.texts is not None and again.gate is not None
    assert np.array_equal(again.datastore.keys, store.datastore.keys)
    assert np.array_equal(again.datastore.positions, store.datastore.positions)
    hidden = torch.randn(5, decoder.hidden_size, generator=torch.manual_seed(0))
    read = [decoder.encode("The mayor")] * 5
    (one, near), (other, same) = (s.search(hidden, 4, read) for s in (store, again))
    assert all(map(torch.equal, one, other)) and torch.equal(near, same)
    for lmbda in (0.9, "auto"):
        before, after = (model.generate("Orlane", "knn", store=s, max_new_tokens=6, lmbda=lmbda)
                         for s in (store, again))  # fmt: skip
        assert before.text == after.text
    other = Model(decoder, name="tiny", questions=not questions)
    assert len(other.open_store(tmp_path / "own.zip")[1].datastore) == len(store.datastore)
    with pytest.raises(MlpMemError, match="own.zip was keyed for another form of chat"):
        model.open_store(altered(tmp_path / "own.zip", head=[3, 4]))
    with pytest.raises(MlpMemError, match="no valid head"):
        model.open_store(altered(tmp_path / "own.zip", head=["a"]))


def test_a_decoder_has_one_hash_in_every_form_of_its_weights(decoder):
    same = tiny.decoder()
    assert saved.decoder_hash(same) == saved.decoder_hash(decoder)
    for bits in (8, 4):
        same = tiny.decoder()
        same.pack(bits)
        assert saved.decoder_hash(same) == saved.decoder_hash(decoder), bits
    same = tiny.decoder()
    same.model.to(torch.bfloat16)
    assert saved.decoder_hash(same) == saved.decoder_hash(decoder)
    assert saved.decoder_hash(tiny.decoder(seed=1)) != saved.decoder_hash(decoder)


def test_another_decoder_is_refused_with_what_differs(packed):
    other = tiny.decoder("llama", hidden_size=64, num_hidden_layers=3)
    with pytest.raises(MlpMemError, match="notes.zip was made with another decoder .*, here "):
        saved.read(other, packed)


def test_keys_of_another_decoder_are_found_though_the_hash_fits(decoder, packed):
    def shuffle(arrays):
        arrays["keys"] = arrays["keys"][::-1].copy()

    with pytest.raises(MlpMemError, match="its keys differ from this decoder's by"):
        saved.read(decoder, altered(packed, shuffle))


def change(name, value):
    return lambda arrays: arrays.__setitem__(name, value(arrays[name]))


HOSTILE = {
    "wrong dtype": (
        change("keys", lambda x: x.astype(np.float32)),
        "keys must be float16; got 2",
    ),
    "wrong shape": (change("keys", lambda x: x[:-1]), "keys must be .* finite rows"),
    "wrong rank": (change("tokens", lambda x: x[None]), "tokens must be int32; got 2-d"),
    "not finite": (change("keys", lambda x: x * np.float16("inf")), "keys must be .* finite rows"),
    "unknown token": (change("tokens", lambda x: x + 10**6), "tokens that this decoder does not"),
    "negative token": (change("tokens", lambda x: x - 10**6), "tokens that this decoder does not"),
    "offsets": (change("offsets", lambda x: x[::-1].copy()), "offsets do not cut"),
    "documents": (change("document_of", lambda x: x + 9), "do not match the passages"),
    "more arrays": (lambda arrays: arrays.update(more=arrays["tokens"]), "it must hold tokens"),
    "fewer arrays": (lambda arrays: arrays.pop("offsets"), "it must hold tokens"),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_arrays_that_contradict_one_another_are_refused(decoder, packed, case):
    changed, why = HOSTILE[case]
    with pytest.raises(MlpMemError, match=why):
        saved.read(decoder, altered(packed, changed))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"format": "else"}, "of another format"),
        ({"version": 2}, "its version is 2"),
        ({"titles": [1]}, "no valid titles"),
        ({"titles": "ab"}, "no valid titles"),
        ({"entries": True}, "no valid entries"),
        ({"sha256": "0" * 64}, "has another sha256"),
        ({"titles": ["a"]}, "do not match the passages"),
    ],
)
def test_a_manifest_that_is_not_valid_is_refused(decoder, packed, fields, why):
    with pytest.raises(MlpMemError, match=why):
        saved.read(decoder, altered(packed, **fields))


def test_a_zip_that_is_not_as_it_was_saved_is_refused(decoder, packed, tmp_path):
    whole, files = packed.read_bytes(), parts(packed)
    link = zipfile.ZipInfo(saved.ARRAYS)
    link.external_attr = 0o120777 << 16
    cases = [
        (lambda: packed.write_bytes(whole[: len(whole) // 2]), "no .zip, or only a part"),
        (lambda: packed.write_bytes(b""), "no .zip, or only a part"),
        (lambda: packed.write_bytes(whole[:300] + b"\0" * 99 + whole[399:]), "is not a datastore"),
        (lambda: rewritten(packed, {**files, "../../evil.txt": b"x"}), r"only; got \.\./\.\./evil"),
        (lambda: rewritten(packed, {"/etc/passwd": b"x"}), "only; got /etc/passwd"),
        (lambda: rewritten(packed, {saved.MANIFEST: b"{}"}), "it must hold"),
        (lambda: rewritten(packed, {f"{i}.txt": b"" for i in range(99)}), "it holds other files"),
        (lambda: rewritten(packed, files, compression=zipfile.ZIP_BZIP2), "packed in an unknown"),
        (lambda: rewritten(packed, {**files, saved.MANIFEST: b"[" * 10**5}), "is not a datastore"),
        (lambda: rewritten(packed, {saved.MANIFEST: files[saved.MANIFEST], link: b"/etc/passwd"}),
         "is a link"),
        (lambda: rewritten(packed, {**files, saved.ARRAYS: b"\0" * 10**7},
                           compression=zipfile.ZIP_DEFLATED), "unpacks to more than 1,000,000"),
    ]  # fmt: skip
    for make, why in cases:
        make()
        with pytest.raises(MlpMemError, match=why):
            saved.read(decoder, packed, most=1_000_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.zip"]


def test_a_folder_with_links_is_refused(decoder, packed, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    files = parts(packed)
    (folder / saved.MANIFEST).write_bytes(files[saved.MANIFEST])
    (tmp_path / "secret").write_bytes(files[saved.ARRAYS])
    (folder / saved.ARRAYS).symlink_to(tmp_path / "secret")
    with pytest.raises(MlpMemError, match="store.safetensors is not a file"):
        saved.read(decoder, folder)


def test_a_damaged_archive_never_raises_anything_else(decoder, packed):
    whole, rng = bytearray(packed.read_bytes()), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), 8):
            damaged[at] = rng.integers(0, 256)
        packed.write_bytes(damaged)
        try:
            saved.read(decoder, packed)
        except MlpMemError:
            continue
    assert io.BytesIO(whole).read(2) == b"PK"


def test_a_datastore_that_cannot_fit_is_refused(decoder, store):
    with pytest.raises(MlpMemError, match="must fit into 0.0001 MB"):
        saved.pack(decoder, store.datastore, "a", most=100)


def test_text_may_be_a_saved_datastore(decoder, store, packed):
    from mlpmem.loading.parts import from_parts

    model = from_parts(decoder, text=packed)
    assert model.systems == ["lm", "knn"] and len(model.store.datastore) == len(store.datastore)
    assert model.corpus().titles == ["notes.txt", "a.pdf"]
    with pytest.raises(MlpMemError, match="a saved datastore stands alone"):
        from_parts(decoder, text=[packed, __file__])


def test_the_command_line_takes_a_saved_datastore_alone(packed, capsys):
    import app

    command = ["--decoder", str(packed.parent), "--text", str(packed)]
    assert app.arguments(command).text == [packed]
    for more, why in (([__file__], "excludes other texts"), (["--train-memory"], "excludes --tr")):
        with pytest.raises(SystemExit):
            app.arguments(command + more)
        assert why in capsys.readouterr().err

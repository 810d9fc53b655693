"""A datastore of one's own text as a folder or a .zip of two files, to open again.

`manifest.json` has the title, the documents' titles, the decoder's hash and the other file's
sha256. `store.safetensors` has tokens, offsets and documents, and the keys unless they would make
the .zip too large; they are computed again then. Nothing of a .zip is written to disk.
"""

import hashlib
import io
import json
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mlpmem.errors import MlpMemError
from mlpmem.formats import STORE_FILES, parse_json, valid
from mlpmem.model.decoder import Decoder
from mlpmem.retrieval.datastore import Datastore, build_keys
from mlpmem.retrieval.documents import Documents
from mlpmem.retrieval.key_cache import TOLERANCE, Fingerprint
from mlpmem.retrieval.own.sentences import placed

FORMAT, VERSION = "mlpmem-datastore", 1
MANIFEST, ARRAYS = STORE_FILES
MOST = 2**32  # bytes of a file
MANIFEST_BYTES = 2**25
DIRECTORY = 4096  # bytes of a .zip's directory, which lists two files
PASSAGE = 1024  # tokens; texts are cut into shorter ones
TITLE = 200  # characters
ROWS = 64  # of the embeddings that enter a hash
CHECKED = 32  # keys that are computed again to compare them
AGAIN = "make the datastore again from its text"
DTYPES = {"tokens": "int32", "offsets": "int64", "document_of": "int32", "keys": "float16"}


class Saved(NamedTuple):
    """What a folder or .zip holds, checked."""

    title: str
    head: list[int]  # token ids behind which every sentence is keyed, see own/sentences.py
    documents: Documents
    keys: np.ndarray | None  # (N, D) float16; None if they must be computed


def decoder_hash(decoder: Decoder) -> str:
    """Return a sha256 of tokenizer, sizes, layer, norms and some embeddings.

    It is equal for every form of the weights.
    """
    digest = hashlib.sha256(json.dumps([decoder.tokenizer_hash, *_sizes(decoder).items()]).encode())
    for name, weight in decoder.model.state_dict().items():
        if weight.ndim == 1 and ("norm" in name or "ln_" in name):
            rounded = weight.detach().to("cpu", torch.bfloat16).view(torch.int16)
            digest.update(name.encode() + rounded.numpy().tobytes())
    model: Any = decoder.model
    rows = model.get_input_embeddings().weight[:ROWS]
    digest.update(rows.to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def _sizes(decoder: Decoder) -> dict[str, int]:
    """Return the numbers that a person can compare."""
    layers = decoder.num_layers
    return {"layers": layers, "layer": decoder.depth % layers, "hidden_size": decoder.hidden_size,
            "vocabulary": decoder.vocab_size}  # fmt: skip


def pack(
    decoder: Decoder, datastore: Datastore, title: str, most: int = MOST, head: Sequence[int] = ()
) -> bytes:
    """Return a datastore as a .zip, without keys if they would make it larger than `most` bytes.

    head has the token ids behind which every sentence is keyed. MlpMemError if it is still larger.
    """
    documents = datastore.documents
    arrays = {name: np.ascontiguousarray(getattr(documents, name), DTYPES[name])
              for name in ("tokens", "offsets", "document_of")}  # fmt: skip
    keys = np.ascontiguousarray(datastore.keys, np.float16)
    if keys.nbytes + sum(array.nbytes for array in arrays.values()) + 2**16 <= most:
        arrays["keys"] = keys
    data = save(arrays)
    manifest = {
        "format": FORMAT, "version": VERSION, "title": title[:TITLE], "titles": documents.titles,
        "head": [*map(int, head)],
        "entries": len(datastore), "decoder": decoder_hash(decoder), **_sizes(decoder),
        "sha256": hashlib.sha256(data).hexdigest(),
    }  # fmt: skip
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr(MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=1).encode())
        file.writestr(ARRAYS, data)
    if out.tell() > most:
        raise MlpMemError(f"the datastore must fit into {most / 1e6:g} MB; save less text")
    return out.getvalue()


def read(
    decoder: Decoder,
    source: str | Path,
    most: int = MOST,
    name: str = "",
    heads: Collection[list[int]] = ([],),
) -> Saved:
    """Return a saved datastore for its decoder; MlpMemError, with the reason, for any other file.

    name replaces the path's in messages. heads are what the decoder's answers
    may stand behind.
    """
    source = Path(source)
    name = name or source.name
    try:
        files = _folder(source, most) if source.is_dir() else _zip(source, most)
        manifest = parse_json(files[MANIFEST].decode("utf-8"))
        _check_manifest(manifest, hashlib.sha256(files[ARRAYS]).hexdigest())
    except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, struct.error,
            NotImplementedError, zlib.error, zipfile.BadZipFile) as error:  # fmt: skip
        why = f"{error}" if isinstance(error, _OtherError) else f"{type(error).__name__}: {error}"
        raise MlpMemError(
            f"{name} is not a datastore as this page saves it ({why:.200}); open the file as it "
            f"was saved, or {AGAIN}"
        ) from error
    _check_decoder(decoder, manifest, name)
    if manifest["head"] not in heads:
        raise MlpMemError(f"{name} was keyed for another form of chat; {AGAIN}")
    try:
        return _saved(decoder, manifest, load(files[ARRAYS]))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise MlpMemError(f"{name} is damaged ({error!s:.200}); {AGAIN}") from error


def open_datastore(
    decoder: Decoder,
    saved: Saved,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Datastore:
    """Return the datastore of what was saved; progress and stop are those of `store_texts`."""
    documents, keys = saved.documents, saved.keys
    full, places, positions, counts = placed(documents, saved.head)
    if keys is None:
        keys = build_keys(decoder, full, places, progress=progress, stop=stop)
    return Datastore(keys, positions, counts, documents)


class _OtherError(ValueError):
    """Raised for a file that is not of this format; its text says why."""


def _folder(folder: Path, most: int) -> dict[str, bytes]:
    """Return the two files of a folder; links and anything but files are refused."""
    files = {}
    for name in STORE_FILES:
        path, limit = folder / name, MANIFEST_BYTES if name == MANIFEST else most
        if path.is_symlink() or not path.is_file():
            raise _OtherError(f"{name} is not a file")
        if path.stat().st_size > limit:
            raise _OtherError(f"{name} has more than {limit:,} bytes")
        files[name] = path.read_bytes()
    return files


def _zip(path: Path, most: int) -> dict[str, bytes]:
    """Return the two files of a .zip that holds nothing else, unpacked in memory."""
    _check_end(path)
    files = {}
    with zipfile.ZipFile(path) as packed:
        infos = packed.infolist()
        if sorted(info.filename for info in infos) != sorted(STORE_FILES):
            listed = ", ".join(sorted(info.filename for info in infos)[:4])
            raise _OtherError(f"it must hold {' and '.join(STORE_FILES)} only; got {listed}")
        for info in infos:
            limit = MANIFEST_BYTES if info.filename == MANIFEST else most
            if stat.S_ISLNK(info.external_attr >> 16):
                raise _OtherError(f"{info.filename} is a link")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _OtherError(f"{info.filename} is packed in an unknown way")
            if info.file_size > limit:
                raise _OtherError(f"{info.filename} unpacks to more than {limit:,} bytes")
            with packed.open(info) as file:
                files[info.filename] = file.read(limit)  # at most what is listed, and checked
    return files


def _check_end(path: Path) -> None:
    """Raise _OtherError unless a .zip ends with a directory of a few files."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 22))
        end = file.read(22)
    if len(end) < 22 or end[:4] != b"PK\5\6":
        raise _OtherError("it is no .zip, or only a part of one")
    if struct.unpack("<I", end[12:16])[0] > DIRECTORY:
        raise _OtherError("it holds other files")


def _check_manifest(manifest: Any, sha256: str) -> None:
    """Raise _OtherError unless a manifest has every field in its type and fits the other file."""
    kinds = {"title": str, "titles": list, "head": list, "entries": int, "decoder": str,
             "layers": int, "layer": int, "hidden_size": int, "vocabulary": int,
             "sha256": str}  # fmt: skip
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise _OtherError(f"{MANIFEST} is of another format")
    if manifest.get("version") != VERSION:
        raise _OtherError(f"its version is {manifest.get('version')!r:.20}, here {VERSION}")
    for field, kind in kinds.items():
        if type(manifest.get(field)) is not kind:
            raise _OtherError(f"{MANIFEST} has no valid {field}")
    for field, kind in (("titles", str), ("head", int)):
        if not all(type(value) is kind for value in manifest[field]):
            raise _OtherError(f"{MANIFEST} has no valid {field}")
    if manifest["sha256"] != sha256:
        raise _OtherError(f"{ARRAYS} has another sha256 than {MANIFEST} lists")


def _check_decoder(decoder: Decoder, manifest: dict, name: str) -> None:
    """Raise MlpMemError unless a manifest names this decoder, with what differs."""
    if manifest["decoder"] == decoder_hash(decoder):
        return
    ours = _sizes(decoder)
    other = [f"{field.replace('_', ' ')} {manifest[field]}, here {ours[field]}" for field in ours
             if manifest[field] != ours[field]]  # fmt: skip
    hashes = f"hash {manifest['decoder'][:12]}, here {decoder_hash(decoder)[:12]}"
    raise MlpMemError(
        f"{name} was made with another decoder ({'; '.join(other) or hashes}), whose keys mean "
        f"nothing to this one. Open it with its own decoder, or {AGAIN}"
    )


def _saved(decoder: Decoder, manifest: dict, arrays: dict[str, np.ndarray]) -> Saved:
    """Return the checked arrays; ValueError for what contradicts manifest or decoder."""
    if not {*DTYPES} - {"keys"} <= {*arrays} <= {*DTYPES}:
        raise ValueError(f"it must hold {', '.join(DTYPES)}; got {', '.join(sorted(arrays))}")
    for name, array in arrays.items():
        if array.dtype != DTYPES[name] or array.ndim != 1 + (name == "keys"):
            raise ValueError(f"{name} must be {DTYPES[name]}; got {array.ndim}-d {array.dtype}")
    tokens, keys = arrays["tokens"], arrays.get("keys")
    titles = [valid(title)[:TITLE] for title in manifest["titles"]]
    documents = Documents(
        tokens, arrays["offsets"], arrays["document_of"], titles, ["text"] * len(titles)
    )
    if not len(documents) or not 0 <= tokens.min() <= tokens.max() < decoder.vocab_size:
        raise ValueError("it has no passage, or tokens that this decoder does not have")
    longest = min(PASSAGE, decoder.max_positions - len(manifest["head"]))
    if np.diff(documents.offsets).max() > longest:
        raise ValueError(f"a passage is longer than {longest} tokens")
    if keys is not None:
        _check_keys(decoder, documents, manifest["head"], keys)
    return Saved(valid(manifest["title"])[:TITLE], manifest["head"], documents, keys)


def _check_keys(
    decoder: Decoder, documents: Documents, head: Sequence[int], keys: np.ndarray
) -> None:
    """Raise ValueError unless keys (N, D) are the decoder's, as some of them show."""
    full, places, *_ = placed(documents, head)
    if keys.shape != (len(places), decoder.hidden_size) or not np.isfinite(keys).all():
        raise ValueError(f"keys must be {len(places)} finite rows of {decoder.hidden_size}")
    some = Fingerprint.of(keys, CHECKED)
    again = build_keys(decoder, full, places[some.indices])
    error = Fingerprint(np.arange(len(again)), some.keys).error(again)
    if not error <= TOLERANCE:
        raise ValueError(f"its keys differ from this decoder's by {error:.0%} of their length")

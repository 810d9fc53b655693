"""Keys of a decoder and documents: built once, checked, and stored in the cache folder.

A missing, stale or damaged cache is rebuilt. If the cache folder cannot be written (read-only,
full), the keys stay in memory and a message says so. A new cache removes the least recently used
ones. No call fails because of the cache.
"""

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlpmem.errors import MlpMemError
from mlpmem.fast.devices import keep_memory
from mlpmem.formats import read_json
from mlpmem.model.decoder import Decoder
from mlpmem.retrieval.datastore import Datastore, build_keys
from mlpmem.retrieval.documents import Documents, entries, open_array

# A key may differ from its fingerprint by 2% of its length. Rounding a key to float16 changes it by
# 0.03%, other instruction sets and batch shapes by less, and rounding all weights of the shipped
# decoder to float16 by at most 0.5%; another decoder, depth or text changes it by about 100%.
TOLERANCE = 0.02
FINGERPRINTS = 256
KEPT = 3  # bundles or texts whose keys stay cached
SAMPLED = 4096  # numbers of each weight that enter a label
NOTES_BYTES = 4096  # limit of the JSON file with the keys' hash
HALF_WRITTEN = 3600  # seconds after which an unfinished file belongs to a killed process


class Fingerprint(NamedTuple):
    """Some expected keys of a datastore."""

    indices: np.ndarray  # (F,) int64 entries
    keys: np.ndarray  # (F, D) float16

    @classmethod
    def of(cls, keys: np.ndarray, count: int = FINGERPRINTS) -> "Fingerprint":
        """Return the fingerprint of keys (N, D) at evenly spaced entries, with first and last."""
        indices = np.unique(np.linspace(0, len(keys) - 1, min(count, len(keys))).astype(np.int64))
        return cls(indices, np.asarray(keys[indices], dtype=np.float16))

    @classmethod
    def load(cls, path: Path) -> "Fingerprint":
        """Return the fingerprint in a safetensors file; ValueError if it is malformed."""
        from safetensors.numpy import load_file

        tensors = load_file(path)
        indices, keys = tensors["indices"], tensors["keys"]
        valid = indices.dtype == np.int64 and indices.min(initial=0) >= 0
        valid = valid and keys.dtype == np.float16
        if not valid or (keys.ndim, indices.shape) != (2, keys.shape[:1]):
            raise ValueError("it must hold float16 keys (F, D) and their entries")
        return cls(indices, keys)

    def error(self, keys: np.ndarray) -> float:
        """Return the largest deviation of keys (N, D), relative to a key's length; inf for nan."""
        if self.keys.shape[1] != keys.shape[1] or self.indices.max(initial=0) >= len(keys):
            return float("inf")
        ours, theirs = self.keys.astype(np.float32), keys[self.indices].astype(np.float32)
        lengths = np.linalg.norm(ours, axis=1) + np.finfo(np.float16).eps
        worst = float((np.linalg.norm(ours - theirs, axis=1) / lengths).max(initial=0.0))
        return worst if worst == worst else float("inf")


@dataclass(frozen=True)
class Built:
    """A datastore and its cost."""

    datastore: Datastore
    seconds: float  # that building the keys took, now or when they were cached
    cached: bool
    warning: str = ""

    @property
    def bytes(self) -> int:
        """Return the size of keys, values, positions, counts and tokens."""
        return self.datastore.bytes


def cache_folder() -> Path:
    """Return the folder for keys: MLPMEM_CACHE, else the platform's cache folder."""
    if named := os.environ.get("MLPMEM_CACHE"):
        return Path(named)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mlpmem"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "mlpmem"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlpmem"


def build_or_read(
    decoder: Decoder,
    documents: Documents,
    label: str,
    fingerprint: Fingerprint | None = None,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Built:
    """Return the datastore of documents, with keys from the cache if it is valid.

    label identifies decoder, depth and documents. MlpMemError if built keys do not match the
    fingerprint.
    """
    least, most = documents.tokens.min(initial=0), documents.tokens.max(initial=0)
    if not 0 <= least <= most < decoder.vocab_size:
        raise MlpMemError(
            f"datastore: the documents' token ids must be 0 to {decoder.vocab_size - 1}; got "
            f"{least} to {most}. Encode them with this decoder's tokenizer"
        )
    positions, counts = entries(documents)
    path = cache_folder() / f"keys-{label}.npy"
    shape = len(positions), decoder.hidden_size
    if (cached := _read(path, shape, fingerprint)) is not None:
        keys, seconds = cached
        return Built(Datastore(keys, positions, counts, documents), seconds, cached=True)
    keep_memory()
    begin = time.perf_counter()
    keys = build_keys(decoder, documents, positions, progress=progress, stop=stop)
    seconds = time.perf_counter() - begin
    if fingerprint is not None and not (error := fingerprint.error(keys)) <= TOLERANCE:
        raise MlpMemError(
            f"datastore: built keys differ from the bundle's fingerprint by {error:.1%} of their "
            f"length, {TOLERANCE:.0%} is allowed; this bundle's parts do not belong together, or "
            "torch computes wrongly here. Export or download the bundle again"
        )
    warning = _write(path, keys, seconds)
    if not warning:  # keys on disk need no memory
        with contextlib.suppress(OSError, ValueError):  # unless another process removed it
            keys = open_array(path)
    return Built(Datastore(keys, positions, counts, documents), seconds, False, warning)


def label_of(decoder: Decoder, documents: Documents) -> str:
    """Return a label for keys of your own text; it depends on decoder, depth and documents.

    About SAMPLED evenly spaced numbers of each weight are hashed, so that large decoders are fast.
    """
    digest = hashlib.sha256(
        f"{decoder.depth} {decoder.family.layers} {decoder.family.ffn}".encode()
    )
    for name, weight in decoder.model.state_dict().items():
        flat = weight.detach().flatten()
        sample = flat[:: max(1, len(flat) // SAMPLED)].float().cpu().numpy()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode() + sample.tobytes())
    for array in (documents.tokens, documents.offsets):
        digest.update(np.ascontiguousarray(array).tobytes())
    return f"text-{digest.hexdigest()[:16]}"


def _read(
    path: Path, shape: tuple[int, int], fingerprint: Fingerprint | None
) -> tuple[np.ndarray, float] | None:
    """Return cached keys, memory-mapped, and their seconds; None unless every check passes."""
    if not path.is_file():  # opening a pipe in its place could block forever
        return None
    try:
        notes = read_json(path.with_suffix(".json"), NOTES_BYTES)
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != notes["sha256"]:
                return None
        keys = open_array(path)
        seconds = float(notes["seconds"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    if keys.shape != shape or keys.dtype != np.float16:
        return None
    if not 0 <= seconds < float("inf"):
        return None
    if fingerprint is not None and not fingerprint.error(keys) <= TOLERANCE:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # marks it as used, see _prune
    return keys, seconds


def _write(path: Path, keys: np.ndarray, seconds: float) -> str:
    """Write keys and notes to the cache; return "" or a warning that says why that failed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _prune(path)
        with _replacing(path) as file:
            np.lib.format.write_array(file, keys, allow_pickle=False)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with _replacing(path.with_suffix(".json")) as file:
            file.write(json.dumps({"sha256": digest, "seconds": seconds}).encode())
    except OSError as error:
        return (
            "The keys stay in memory and will be built again next time: the cache folder cannot be "
            f"written ({error.strerror or type(error).__name__}). Free space there, or set "
            "MLPMEM_CACHE to another folder."
        )
    return ""


@contextlib.contextmanager
def _replacing(path: Path) -> Generator[BufferedRandom]:
    """Yield a new file that atomically replaces path at the end.

    Its name is random, so that nobody can place a link there first.
    """
    number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(number, "w+b") as file:
            yield file
        os.chmod(name, 0o644)  # mkstemp creates private files
        os.replace(name, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


def _prune(own: Path) -> None:
    """Remove unfinished files of killed processes, and all but the KEPT - 1 most recent caches.

    own is the cache about to be written. A process that has mapped another cache can keep using it:
    the data stays until it is closed, or (Windows) removing it fails.
    """
    with contextlib.suppress(OSError):
        deadline = time.time() - HALF_WRITTEN
        unfinished = [p for p in own.parent.glob(".keys-*") if p.stat().st_mtime < deadline]
        others = [p for p in own.parent.glob("keys-*.npy") if p != own]
        others.sort(key=lambda p: -p.stat().st_mtime)
        for path in unfinished + others[KEPT - 1 :]:
            with contextlib.suppress(OSError):
                path.unlink()
                path.with_suffix(".json").unlink(missing_ok=True)

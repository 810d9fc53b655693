"""Keys of a decoder and documents: built once, checked, kept in the cache folder.

A missing, stale or damaged cache is built again. If the cache cannot be written (read-only, full),
the keys stay in memory and a message says so. A new cache replaces those of the bundles that were
unused longest. No call fails because of the cache.
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

# A key may differ from its fingerprint by 2% of its length. Rounding a key to float16 makes 0.03%,
# other instruction sets and batch shapes less, and rounding all weights of the shipped decoder to
# float16 0.5% at most; another decoder, depth or text makes about 100%.
TOLERANCE = 0.02
FINGERPRINTS = 256
KEPT = 3  # bundles or texts whose keys stay cached
SAMPLED = 4096  # numbers of a weight that name it
NOTES_BYTES = 4096  # of the file beside the keys that has their hash
HALF_WRITTEN = 3600  # seconds after which an unfinished file is one that a killed process left


class Fingerprint(NamedTuple):
    """Some keys as they must come out."""

    indices: np.ndarray  # (F,) int64 entries
    keys: np.ndarray  # (F, D) float16

    @classmethod
    def of(cls, keys: np.ndarray, count: int = FINGERPRINTS) -> "Fingerprint":
        """Return the fingerprint of keys (N, D): entries evenly spread, first and last included."""
        indices = np.unique(np.linspace(0, len(keys) - 1, min(count, len(keys))).astype(np.int64))
        return cls(indices, np.asarray(keys[indices], dtype=np.float16))

    @classmethod
    def load(cls, path: Path) -> "Fingerprint":
        """Return the fingerprint of a safetensors file; ValueError where it is none."""
        from safetensors.numpy import load_file

        tensors = load_file(path)
        indices, keys = tensors["indices"], tensors["keys"]
        whole = indices.dtype == np.int64 and indices.min(initial=0) >= 0
        if (
            not whole
            or keys.dtype != np.float16
            or (keys.ndim, indices.shape) != (2, keys.shape[:1])
        ):
            raise ValueError("it holds no keys and their entries")
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
    """A datastore and what it took."""

    datastore: Datastore
    seconds: float  # to build the keys; when they were cached, the seconds it took then
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
    """Return the datastore of documents, its keys from the cache if they are there and right.

    label names what the keys follow from. MlpMemError where built keys miss the fingerprint.
    """
    least, most = documents.tokens.min(initial=0), documents.tokens.max(initial=0)
    if not 0 <= least <= most < decoder.vocab_size:
        raise MlpMemError(
            f"datastore: the documents hold token ids from {least} to {most}, this decoder knows "
            f"0 to {decoder.vocab_size - 1}; encode them with its tokenizer"
        )
    positions, counts = entries(documents)
    path = cache_folder() / f"keys-{label}.npy"
    shape = len(positions), decoder.hidden_size
    if (found := _read(path, shape, fingerprint)) is not None:
        keys, seconds = found
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
    if not warning:  # what is on disk need not stay in memory too
        with contextlib.suppress(OSError, ValueError):  # unless another process removed it
            keys = open_array(path)
    return Built(Datastore(keys, positions, counts, documents), seconds, False, warning)


def label_of(decoder: Decoder, documents: Documents) -> str:
    """Return a label for keys of one's own text: it changes with decoder, depth and documents.

    Of every weight SAMPLED numbers, evenly spread, stand for all: large decoders are not read
    twice.
    """
    digest = hashlib.sha256(
        f"{decoder.depth} {decoder.family.layers} {decoder.family.ffn}".encode()
    )
    for name, weight in decoder.model.state_dict().items():
        flat = weight.detach().flatten()
        some = flat[:: max(1, len(flat) // SAMPLED)].float().cpu().numpy()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode() + some.tobytes())
    for array in (documents.tokens, documents.offsets):
        digest.update(np.ascontiguousarray(array).tobytes())
    return f"text-{digest.hexdigest()[:16]}"


def _read(
    path: Path, shape: tuple[int, int], fingerprint: Fingerprint | None
) -> tuple[np.ndarray, float] | None:
    """Return cached keys, mapped, and the seconds they took; None unless every check passes."""
    if not path.is_file():  # to open a pipe in its place may take forever
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
        os.utime(path)  # used now, so not among those that go
    return keys, seconds


def _write(path: Path, keys: np.ndarray, seconds: float) -> str:
    """Keep keys beside path and rename; return "" or a sentence on why they are not kept."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _prune(path)
        with _beside(path) as file:
            np.lib.format.write_array(file, keys, allow_pickle=False)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with _beside(path.with_suffix(".json")) as file:
            file.write(json.dumps({"sha256": digest, "seconds": seconds}).encode())
    except OSError as error:
        return (
            "The keys stay in memory and will be built again next time: the cache folder cannot be "
            f"written ({error.strerror or type(error).__name__}). Free space there, or set "
            "MLPMEM_CACHE to another folder."
        )
    return ""


@contextlib.contextmanager
def _beside(path: Path) -> Generator[BufferedRandom]:
    """Yield a new file that takes the place of path at the end, whole or not at all.

    Nobody can know its name and put a link there before.
    """
    number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(number, "w+b") as file:
            yield file
        os.chmod(name, 0o644)  # temporary files begin private
        os.replace(name, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


def _prune(own: Path) -> None:
    """Remove what killed processes left half written, and all but the KEPT - 1 caches used last.

    own is the one about to be written. A process that has one of the others mapped keeps it: what
    is open lives on after its name is gone, and Windows refuses to remove it.
    """
    with contextlib.suppress(OSError):
        oldest = time.time() - HALF_WRITTEN
        left = [p for p in own.parent.glob(".keys-*") if p.stat().st_mtime < oldest]
        others = [p for p in own.parent.glob("keys-*.npy") if p != own]
        others.sort(key=lambda p: -p.stat().st_mtime)
        for path in left + others[KEPT - 1 :]:
            with contextlib.suppress(OSError):
                path.unlink()
                path.with_suffix(".json").unlink(missing_ok=True)

"""The process's temporary folder for Gradio's files, and the uploads in it per client.

It is claimed before Gradio is imported, as Gradio reads GRADIO_TEMP_DIR then, and deleted at exit.
The next process deletes the folder of a killed one. An upload is deleted when it was read, when it
has expired, or when its client exceeds its share. No request can read an upload.
"""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlpmem.errors import MlpMemError
from mlpmem.ui.door import ending
from mlpmem.ui.door.bounds import Bounds

PREFIX = "mlpmem-"
VARIABLE = "GRADIO_TEMP_DIR"
LEAST = 65_536  # bytes that a small file counts, which limits their number
STALE = 3600.0  # seconds without a change after which a folder's process is dead


def claim() -> Path:
    """Return this process's folder for Gradio's files; it is deleted at exit.

    It is created in GRADIO_TEMP_DIR if that is set, otherwise in the system's temporary folder.
    MlpMemError if it cannot be created.
    """
    parent = Path(os.environ.get(VARIABLE) or tempfile.gettempdir())
    if parent.name.startswith(PREFIX) and (parent / str(os.getpid())).is_file():
        return parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        (folder / str(os.getpid())).touch()
    except OSError as error:
        raise MlpMemError(
            f"cannot create a folder for uploads in {parent} ({error.strerror}); "
            f"set {VARIABLE} to a writable folder"
        ) from error
    _remove_stale(parent)
    os.environ[VARIABLE] = str(folder)
    ending.at_end(remove, folder, os.getpid())
    return folder


def remove(folder: Path, owner: int) -> None:
    """Delete a folder, unless this process is a fork of its owner."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_stale(parent: Path) -> None:
    """Delete the folders of killed processes; a live process touches its folder regularly."""
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            ours = folder.is_dir() and not folder.is_symlink() and _has_mark(folder)
            if ours and time.time() - folder.stat().st_mtime > STALE:
                shutil.rmtree(folder, ignore_errors=True)


def _has_mark(folder: Path) -> bool:
    """Return whether `claim` created a folder."""
    return any(path.name.isdecimal() for path in folder.iterdir())


def _below(folder: Path) -> Iterator[Path]:
    """Yield all paths below a folder, deepest first."""
    for parent, folders, names in os.walk(folder, topdown=False):
        yield from (Path(parent, name) for name in (*names, *folders))


@dataclass
class Upload:
    """An uploaded file: its clients (equal files are stored once), size and time."""

    clients: set[str]
    size: int
    since: float


class Uploads:
    """The uploaded files that have not been read yet."""

    def __init__(
        self, folder: Path, bounds: Bounds, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start with none."""
        self.folder, self.bounds, self._clock = folder, bounds, clock
        self.files: dict[Path, Upload] = {}
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Return the bytes that all files count."""
        return sum(upload.size for upload in list(self.files.values()))

    def add(self, client: str, path: Path) -> None:
        """Register a client's file, then delete its oldest files above its share.

        Above the total limit, the oldest files of the client with the most bytes are deleted.
        """
        with self._lock:
            self._add(client, path)

    def _add(self, client: str, path: Path) -> None:
        self._forget_gone()
        if not self._ours(path):
            return
        size = max(LEAST, path.stat().st_size)
        upload = self.files.setdefault(path, Upload(set(), size, self._clock()))
        upload.clients.add(client)
        upload.since = self._clock()
        while self._too_much(client) and self._drop_oldest(client, path):
            pass
        while self.size > self.bounds.upload_bytes:
            clients = {c for upload in self.files.values() for c in upload.clients}
            most = max(clients, key=lambda c: sum(u.size for u in self._of(c).values()))
            if not self._drop_oldest(most, path):
                break

    def owns(self, client: str, path: Path) -> bool:
        """Return whether a path is a file that this client has uploaded, not read yet."""
        upload = self.files.get(path)
        return upload is not None and client in upload.clients and self._ours(path)

    def _of(self, client: str) -> dict[Path, Upload]:
        return {path: upload for path, upload in self.files.items() if client in upload.clients}

    def _too_much(self, client: str) -> bool:
        own = self._of(client).values()
        size = sum(upload.size for upload in own)
        return len(own) > self.bounds.client_uploads or size > self.bounds.client_upload_bytes

    def _drop_oldest(self, client: str, keep: Path) -> bool:
        """Remove a client's oldest file other than `keep`; return whether there was one."""
        own = [path for path in self._of(client) if path != keep]
        if not own:
            return False
        oldest = min(own, key=lambda path: self.files[path].since)
        self.files[oldest].clients.discard(client)
        if not self.files[oldest].clients:
            self._delete(oldest)
        return True

    def _delete(self, path: Path) -> None:
        self.files.pop(path, None)
        with suppress(OSError):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            path.parent.rmdir()

    def _forget_gone(self) -> None:
        """Remove the entries of files that were read and deleted."""
        for path in [path for path in self.files if not path.exists()]:
            self._delete(path)

    def _ours(self, path: Path) -> bool:
        return path.parent.parent == self.folder and path.is_file()

    def sweep(self, listed: Iterable[set[str]] = ()) -> None:
        """Delete expired files, and drop deleted ones from `listed`, Gradio's own sets of files."""
        with self._lock:
            self._sweep(listed)

    def _sweep(self, listed: Iterable[set[str]]) -> None:
        now, old = time.time(), self._clock() - self.bounds.upload_seconds
        for path in [path for path, upload in self.files.items() if upload.since < old]:
            self._delete(path)
        self._forget_gone()
        with suppress(OSError):
            os.utime(self.folder)
        mark = self.folder / str(os.getpid())
        for path in _below(self.folder):
            with suppress(OSError):
                age = now - path.stat().st_mtime
                if path.is_dir() and age > self.bounds.partial_seconds:
                    path.rmdir()  # if it is empty
                elif path != mark and path not in self.files and path.is_file():
                    loose = path.parent == self.folder  # incomplete, or Gradio's empty copy
                    most = self.bounds.partial_seconds if loose else self.bounds.upload_seconds
                    if age > most:
                        path.unlink()
        for names in listed:
            names.difference_update([name for name in list(names) if not os.path.exists(name)])

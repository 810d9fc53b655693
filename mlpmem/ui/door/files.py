"""The one folder of this process, for what Gradio writes, and the uploads in it by client.

It is claimed before Gradio is imported, which asks for GRADIO_TEMP_DIR then, and goes with the
process; one whose process was killed is removed by the next. An upload is deleted when it was read,
when it is too old, or when its client brings more than its share; nothing here can be read back.
"""

import atexit
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
from mlpmem.ui.door.bounds import Bounds

PREFIX = "mlpmem-"
VARIABLE = "GRADIO_TEMP_DIR"
LEAST = 65_536  # bytes that a small file counts, so that there are never many thousands
STALE = 3600.0  # seconds after which a folder that nobody touches is a dead process's


def claim() -> Path:
    """Return a folder of this process alone that Gradio will write to; it goes at the exit.

    It lies in GRADIO_TEMP_DIR where that is set, otherwise where temporary files are. MlpMemError
    where there can be none.
    """
    above = Path(os.environ.get(VARIABLE) or tempfile.gettempdir())
    if above.name.startswith(PREFIX) and (above / str(os.getpid())).is_file():
        return above
    try:
        above.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=above))
        (folder / str(os.getpid())).touch()
    except OSError as error:
        raise MlpMemError(
            f"no folder for uploads can be made in {above} ({error.strerror}); "
            f"set {VARIABLE} to a folder that may be written to"
        ) from error
    _remove_stale(above)
    os.environ[VARIABLE] = str(folder)
    atexit.register(remove, folder, os.getpid())
    return folder


def remove(folder: Path, owner: int) -> None:
    """Delete a folder, unless this is another process (a fork) than its owner."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_stale(above: Path) -> None:
    """Delete what processes that were killed left; a living one touches its folder again."""
    for folder in above.glob(f"{PREFIX}*"):
        with suppress(OSError):
            ours = folder.is_dir() and not folder.is_symlink() and _has_mark(folder)
            if ours and time.time() - folder.stat().st_mtime > STALE:
                shutil.rmtree(folder, ignore_errors=True)


def _has_mark(folder: Path) -> bool:
    """Return whether a folder was claimed here."""
    return any(path.name.isdecimal() for path in folder.iterdir())


def _below(folder: Path) -> Iterator[Path]:
    """Yield what lies below a folder, the innermost first; what goes meanwhile is no error."""
    for above, folders, names in os.walk(folder, topdown=False):
        yield from (Path(above, name) for name in (*names, *folders))


@dataclass
class Upload:
    """An uploaded file: who brought it (equal ones are one file), its size, since when."""

    clients: set[str]
    size: int
    since: float


class Uploads:
    """The files that lie in the folder until they are read."""

    def __init__(
        self, folder: Path, bounds: Bounds, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin with none."""
        self.folder, self.bounds, self._clock = folder, bounds, clock
        self.files: dict[Path, Upload] = {}
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Return what all of them count."""
        return sum(upload.size for upload in list(self.files.values()))

    def add(self, client: str, path: Path) -> None:
        """Note a file that a client brought; the oldest go of whoever has too much.

        That is the client itself beyond its share, and whoever has most where all are too much.
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

    def _of(self, client: str) -> dict[Path, Upload]:
        return {path: upload for path, upload in self.files.items() if client in upload.clients}

    def _too_much(self, client: str) -> bool:
        own = self._of(client).values()
        size = sum(upload.size for upload in own)
        return len(own) > self.bounds.client_uploads or size > self.bounds.client_upload_bytes

    def _drop_oldest(self, client: str, keep: Path) -> bool:
        """Take a client's oldest file from it; return whether it had one beside what it brings."""
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
        """Forget files that were read and deleted."""
        for path in [path for path in self.files if not path.exists()]:
            self._delete(path)

    def _ours(self, path: Path) -> bool:
        return path.parent.parent == self.folder and path.is_file()

    def sweep(self, named: Iterable[set[str]] = ()) -> None:
        """Delete what is too old; named are Gradio's own lists of files, whose gone ones go."""
        with self._lock:
            self._sweep(named)

    def _sweep(self, named: Iterable[set[str]]) -> None:
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
                    path.rmdir()  # where it is empty
                elif path != mark and path not in self.files and path.is_file():
                    loose = path.parent == self.folder  # half an upload, or Gradio's empty twin
                    most = self.bounds.partial_seconds if loose else self.bounds.upload_seconds
                    if age > most:
                        path.unlink()
        for names in named:
            names.difference_update([name for name in list(names) if not os.path.exists(name)])

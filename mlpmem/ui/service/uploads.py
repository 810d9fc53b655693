"""A visitor's uploaded files as documents: each is read or named with the reason, then deleted."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mlpmem.errors import MlpMemError, public_text
from mlpmem.formats import valid
from mlpmem.ui.door.bounds import BOUNDS
from mlpmem.ui.service import own_text

SAVED = ".zip"
NAME = 200  # characters
WAIT = 2.0  # seconds in which the door registers an upload that was just answered


@dataclass(frozen=True)
class Upload:
    """A file that this visitor has uploaded."""

    path: Path
    name: str  # as the visitor calls it, with its folder if two files have one name


@dataclass
class Reading:
    """Documents of one text or of several files."""

    title: str
    titled: list[tuple[str, str]]
    failed: list[str] = field(default_factory=list)  # why a file was left out
    counts: Counter = field(default_factory=Counter)  # see texts.noted


def check_uploads(data: object, owns: Callable[[Path], bool]) -> list[Upload]:
    """Return the files that an event names; MlpMemError for one that is not this visitor's."""
    files = data.get("files") if isinstance(data, dict) else None
    if not isinstance(files, list) or not 0 < len(files) <= BOUNDS.client_uploads:
        raise MlpMemError(f"Choose 1 to {BOUNDS.client_uploads} files.")
    uploads = []
    for file in files:
        path, name = (file.get(key) if isinstance(file, dict) else None for key in ("path", "name"))
        if not isinstance(path, str) or not isinstance(name, str) or not _soon(owns, Path(path)):
            raise MlpMemError("A file is no longer available. Choose the files again.")
        uploads.append(Upload(Path(path), valid(name)[-NAME:]))
    short = Counter(Path(upload.name).name for upload in uploads)
    return [Upload(upload.path, name if short[name := Path(upload.name).name] < 2 else upload.name)
            for upload in uploads]  # fmt: skip


def _soon(owns: Callable[[Path], bool], path: Path) -> bool:
    """Return whether a file is the visitor's, now or in a moment."""
    ends = time.monotonic() + WAIT
    while not owns(path):
        if time.monotonic() > ends:
            return False
        time.sleep(0.05)
    return True


@contextmanager
def deleted_after(uploads: list[Upload]) -> Iterator[None]:
    """Delete the files at the end."""
    try:
        yield
    finally:
        for upload in uploads:
            upload.path.unlink(missing_ok=True)


def is_saved(uploads: list[Upload]) -> bool:
    """Return whether the only file is a saved datastore."""
    return len(uploads) == 1 and uploads[0].path.suffix.lower() == SAVED


def title_of(uploads: list[Upload], failed: int = 0) -> str:
    """Return the name of one file, or the number of files that were read."""
    count = len(uploads) - failed
    return uploads[0].name if len(uploads) == 1 else f"{count} file{'s' * (count != 1)}"


def read_uploads(uploads: list[Upload], reading: Reading) -> Iterator[tuple[int, str]]:
    """Yield (number, name) before each file is read; its documents are added to `reading`.

    A file that cannot be read is named in `failed`. MlpMemError at the end if none could be read.
    """
    left = own_text.MAX_BYTES
    for index, upload in enumerate(uploads, 1):
        yield index, upload.name
        try:
            titled = _read(upload, reading.counts)
            size = sum(len(text.encode("utf-8", "replace")) for _, text in titled)
            if size > left:
                raise MlpMemError(f"{upload.name} would make the text larger than {own_text.MOST}.")
        except MlpMemError as error:
            reading.failed.append(_ended(public_text(error)))
            continue
        reading.titled += titled
        left -= size
    if not reading.titled:
        raise MlpMemError(" ".join(reading.failed))
    reading.title = title_of(uploads, len(reading.failed))


def _read(upload: Upload, counts: Counter) -> list[tuple[str, str]]:
    """Return the documents of one file."""
    if upload.path.suffix.lower() == SAVED:
        raise MlpMemError(f"{upload.name} is a saved datastore; open it by itself.")
    try:
        read = own_text.read_upload(upload.path, upload.name)
    except FileNotFoundError as error:
        raise MlpMemError(f"{upload.name} is no longer available; upload it again.") from error
    return own_text.titled(*read, counts)


def _ended(text: str) -> str:
    return text if text.endswith(".") else f"{text}."

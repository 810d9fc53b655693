"""A bundle's manifest: the required files, their sizes and hashes, and the error messages.

Files that a manifest does not list are neither read nor copied. Links are refused, because they may
point outside the bundle; only the Hub's cache may link to its own files.
"""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from mlpmem.errors import MlpMemError
from mlpmem.formats import read_json

MANIFEST = "manifest.json"
FINGERPRINT = "fingerprint.safetensors"  # of the keys; a bundle without one has no datastore
FORMAT = 1
# forms of prompt: "Question: ... Answer:", a chat in the decoder's template, any text as it is
QUESTIONS, CHAT, TEXT = "questions", "chat", "text"
MANIFEST_BYTES = 4 * 2**20
FILE_BYTES = 64 * 2**30
FILE_NAME = re.compile(r"[\w.+-][\w.+/ -]{0,200}")  # below the folder, on every platform
AGAIN = "run `git checkout -- assets` if it is the shipped bundle, or download or export it again"


def list_files(folder: Path) -> dict[str, dict]:
    """Return {POSIX path: {"bytes", "sha256"}} of every file."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in paths
    }


def checked_manifest(folder: Path) -> dict:
    """Return manifest.json; MlpMemError names the first file that does not match it."""
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        check_file(folder, name, expected)
    return manifest


def read_manifest(folder: Path) -> dict:
    """Return manifest.json after checking its format, but not the files."""
    path = folder / MANIFEST
    refuse_link(folder, MANIFEST)
    try:
        manifest = read_json(path, MANIFEST_BYTES)
    except (OSError, ValueError) as error:
        raise MlpMemError(
            f"bundle: {folder.name} holds no readable manifest.json ({_reason(error)}). Give the "
            f"folder of a bundle; {AGAIN}"
        ) from error
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        stated = manifest.get("format") if isinstance(manifest, dict) else None
        raise MlpMemError(
            f"bundle: {folder.name} has format {stated!r}, this program reads {FORMAT}; "
            "update the program (git pull), or export the bundle again with this one"
        )
    if not isinstance(files, dict) or not files:
        raise MlpMemError(f"bundle: {folder.name}/{path.name} lists no files; {AGAIN}")
    return manifest


def asks_questions(manifest: dict) -> bool:
    """Return whether a bundle's decoder was trained on "Question: ... Answer:".

    That is the default for old manifests, which have no "form".
    """
    return manifest.get("form", QUESTIONS) == QUESTIONS


def asks_chats(manifest: dict) -> bool:
    """Return whether a bundle's memory was trained on chats in its decoder's template."""
    return manifest.get("form") == CHAT


def check_file(folder: Path, name: str, expected: Any) -> None:
    """Raise MlpMemError unless the file has the manifest's size and sha256."""
    check_name(name, expected)
    path, shown = folder / name, f"{folder.name}/{name}"
    refuse_link(folder, name)
    if not path.is_file():
        raise MlpMemError(f"bundle: {shown} is missing; {AGAIN}")
    size, wanted = path.stat().st_size, expected["bytes"]
    if size != wanted or size > FILE_BYTES:
        what = "truncated" if size < wanted else "altered"
        raise MlpMemError(f"bundle: {shown} is {what} ({size} bytes of {wanted}); {AGAIN}")
    if sha256(path) != expected.get("sha256"):
        raise MlpMemError(f"bundle: {shown} is altered (its sha256 is not the manifest's); {AGAIN}")


def check_name(name: str, expected: Any) -> None:
    """Raise MlpMemError unless a manifest's entry has the form of one."""
    wellformed = isinstance(expected, dict) and type(expected.get("bytes")) is int
    if not (wellformed and FILE_NAME.fullmatch(name)) or ".." in PurePosixPath(name).parts:
        raise MlpMemError(f"bundle: the manifest's entry for {name!r} is malformed; {AGAIN}")


def refuse_link(folder: Path, name: str) -> None:
    """Raise MlpMemError if a file is a link, or lies in a linked folder below the bundle."""
    path = folder / name
    for part in (path, *path.parents):
        if part == folder:
            return
        if is_link(folder, part):
            raise MlpMemError(
                f"bundle: {folder.name}/{part.relative_to(folder).as_posix()} is a link, which is "
                "not followed; copy the bundle with its files in it (cp -rL), or download it again "
                "into a folder of its own (hf download ... --local-dir)"
            )


def is_link(folder: Path, path: Path) -> bool:
    """Return whether a bundle's file is a link; the Hub's cache may link to its own blobs."""
    if not path.is_symlink():
        return False
    blobs = folder.absolute().parent.parent / "blobs"
    ours = folder.absolute().parent.name == "snapshots" and not blobs.is_symlink()
    return not (ours and path.resolve().parent == blobs.resolve())


def listed_file(folder: Path, manifest: Mapping[str, Any], name: str) -> Path:
    """Return the path of a file; MlpMemError if the manifest does not list it."""
    if name not in manifest["files"]:
        raise MlpMemError(f"bundle: the manifest of {folder.name} does not list {name}; {AGAIN}")
    return folder / name


@contextmanager
def listed_part(folder: Path, names: Collection[str], part: str) -> Iterator[Path]:
    """Yield a folder that holds only the listed files below `part`.

    This is the bundle's own folder if it has no other files, which a library might read; otherwise
    it is a temporary folder of links.
    """
    listed = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
    known = {path for name in listed for path in (Path(name), *Path(name).parents)}
    if all(path.relative_to(folder / part) in known for path in (folder / part).rglob("*")):
        yield folder / part
        return
    with tempfile.TemporaryDirectory(prefix="mlpmem-", ignore_cleanup_errors=True) as temporary:
        view = Path(temporary) / PurePosixPath(part).name
        for name in listed:
            (view / name).parent.mkdir(parents=True, exist_ok=True)
            _link(folder.absolute() / part / name, view / name)
        yield view


def _link(source: Path, target: Path) -> None:
    """Link target to source, or copy the file where links are not supported."""
    try:
        os.symlink(source, target)
    except OSError:
        shutil.copyfile(source, target)


def copy_listed(folder: Path, out: Path) -> None:
    """Copy a bundle's manifest and listed files; check each source and each copy."""
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        check_file(folder, name, expected)
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, out / name)
        check_file(out, name, expected)
    shutil.copyfile(folder / MANIFEST, out / MANIFEST)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: Exception) -> str:
    """Return why a file cannot be read, without its path."""
    return getattr(error, "strerror", None) or str(error)

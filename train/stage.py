"""How a stage runs: skip when done, go on after a kill, write beside, keep a manifest."""

import dataclasses
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpmem.errors import MlpMemError


@dataclass(frozen=True)
class Context:
    """What a stage's function gets: where to write, what to read, and its configuration."""

    folder: Path  # written beside the final place; survives a kill
    inputs: dict[str, Path]  # finished stages, by name
    config: object  # the stage's frozen dataclass
    seed: int


def run_stage(
    root: Path,
    name: str,
    config: object,
    inputs: tuple[str, ...],
    function: Callable[[Context], dict],
    seed: int,
) -> dict:
    """Return the manifest of a stage, running it unless a finished one stands there already.

    `function` returns counts; among them "tokens" gives tokens/s, "earlier_seconds" is what killed
    runs of the same stage had used. It finds what they left in its folder and may go on from it.
    Raises MlpMemError if an input is missing, or a finished stage had another configuration.
    """
    final, partial = root / name, root / f"{name}.partial"
    manifests = {i: finished_manifest(root / i) for i in inputs}
    missing = [i for i, manifest in manifests.items() if manifest is None]
    if missing:
        raise MlpMemError(
            f"{name}: needs {missing[0]} first; run `python -m train {missing[0]}` with the same "
            "recipe and --runs, or the stage `all`"
        )
    identity = {
        "stage": name,
        "config": _plain(dataclasses.asdict(config)) | {"seed": seed},
        "inputs": {i: digest(manifest["outputs"]) for i, manifest in manifests.items()},
    }
    done = finished_manifest(final)
    if done is not None:
        _check_same(final, done, identity)
        _say(f"{name}: done already ({done['seconds']:.0f} s)")
        return done
    _prepare(partial, identity)
    _say(f"{name}: {json.dumps(identity['config'])}")
    started = time.perf_counter()
    counts = function(Context(partial, {i: root / i for i in inputs}, config, seed))
    seconds = time.perf_counter() - started + counts.pop("earlier_seconds", 0.0)
    own = (partial / "identity.json", partial / "manifest.json")
    manifest = identity | {
        "counts": counts,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(counts["tokens"] / seconds) if "tokens" in counts else None,
        "peak_memory_bytes": peak_memory(),
        "outputs": {
            path.relative_to(partial).as_posix(): file_hash(path)
            for path in sorted(partial.rglob("*"))
            if path.is_file() and path not in own
        },
    }
    write_json(partial / "manifest.json", manifest)
    os.replace(partial, final)
    _say(f"{name}: {seconds:.0f} s, {manifest['peak_memory_bytes'] / 2**20:.0f} MiB, {counts}")
    return manifest


def finished_manifest(folder: Path) -> dict | None:
    """Return the manifest of a finished stage, or None."""
    path = folder / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _prepare(partial: Path, identity: dict) -> None:
    """Make the work folder; keep what a killed run of the same configuration left in it."""
    left = partial / "identity.json"
    if left.is_file() and json.loads(left.read_text(encoding="utf-8")) == identity:
        return
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_json(left, identity)


def _check_same(final: Path, done: dict, identity: dict) -> None:
    """Raise MlpMemError that names what differs between a finished stage and what is asked."""
    differences = []
    for part in ("config", "inputs"):
        old, new = done[part], identity[part]
        differences += [
            f"{part}.{key}: {old.get(key)!r} there, {new.get(key)!r} asked"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
    if differences:
        raise MlpMemError(
            f"{final.name} was made with other settings:\n  " + "\n  ".join(differences) + "\n"
            f"Delete {final} to make it again, or choose another folder with --runs."
        )


def write_json(path: Path, value: object) -> None:
    """Write JSON beside its place and rename it there, so a reader never sees half a file."""
    beside = path.with_name(path.name + ".new")
    text = json.dumps(value, indent=1, ensure_ascii=False)
    beside.write_text(text + "\n", encoding="utf-8")
    os.replace(beside, path)


def read_json(path: Path) -> Any:
    """Return the value of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def file_hash(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: object) -> str:
    """Return the sha256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def peak_memory() -> int:
    """Return the largest resident memory of this process and its ended children, bytes."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def _plain(value: dict) -> dict:
    """Return value as JSON would give it back (tuples become lists)."""
    return json.loads(json.dumps(value))


def _say(line: str) -> None:
    """Print one line at once: stages take minutes and their log is read while they run."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()

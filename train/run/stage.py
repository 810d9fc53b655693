"""How a stage runs: skipped if finished, resumed after a kill, renamed when complete.

A finished stage is compared with the requested configuration and inputs; errors name the
differences and the later stages.
"""

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from mlpmem.errors import MlpMemError
from train.files import digest, file_hash, print_line, read_json, write_json
from train.run.inputs import check_inputs, find_damage
from train.run.machine import is_full, peak_memory, reset_peak
from train.run.processes import check_unlocked, lock_stage, process_group

MANIFEST = "manifest.json"
BOOKKEEPING = ("identity.json", MANIFEST)  # a stage's files other than its outputs
EXECUTION = ("processes", "built")  # fields of a configuration that do not change the result
NO_PROGRESS = ("identity.json", "job.json")  # files that a run writes before any progress


@dataclass(frozen=True)
class StageContext:
    """The arguments of a stage's function."""

    folder: Path  # to write to; renamed at the end, kept after a kill
    inputs: dict[str, Path]  # folders of finished stages, by name
    config: object  # the stage's frozen dataclass
    seed: int


def run_stage(
    root: Path,
    name: str,
    config: object,
    inputs: tuple[str, ...],
    function: Callable[[StageContext], dict],
    seed: int,
    *,
    shared: bool = False,
    resumes: bool = True,
    again: bool = False,
    plan: Callable[[], dict] | None = None,
) -> dict:
    """Return the manifest of a stage; runs the stage unless it is finished.

    name, inputs: folders below `root`; the last part of an input's path is its name.
    function: see `run_function`.
    shared: every process of the group runs it; otherwise the first does, and the others wait.
    resumes: the function continues a killed run, whose files are then kept.
    again: remake a stage with other settings or inputs instead of raising; the old folder stays
        until the new one is complete.
    plan: returns the stage's need, for the manifest, or raises; called before any file is written.

    MlpMemError if an input is missing or damaged, a finished stage has other settings or inputs,
    another run holds the lock (with `again`, any lock of the run), or the disk is full.
    """
    final, partial = root / name, root / f"{name}.partial"
    context = StageContext(partial, {Path(i).name: root / i for i in inputs}, config, seed)
    need = None
    if again and process_group().is_main:
        check_unlocked(root)
    with lock_stage(root, name) if process_group().is_main else nullcontext():
        identity = identify(root, name, config, inputs, seed)
        if process_group().is_main:
            recover(final, partial, identity)
            if not _is_finished(final, identity, again):
                check_inputs(root, name, {i: finished_manifest(root / i) for i in inputs})
                need = plan() if plan is not None else None
                prepare(partial, identity, keep=resumes and not again)
                print_line(f"{name}: {json.dumps(identity['config'])}")
        process_group().wait()
        finished = finished_manifest(final)
        if finished is None or differences(finished, identity):
            run_function(final, context, function, shared, need)
        return finished_manifest(final)


def _is_finished(final: Path, identity: dict, again: bool) -> bool:
    """Return whether a stage is finished; print this, or why it is remade.

    MlpMemError if it has other settings or inputs, unless `again`.
    """
    finished = finished_manifest(final)
    if finished is None:
        return False
    if not again:
        check_same(final, finished, identity)
    if again and (damage := find_damage(final, finished)):
        print_line(f"{final.name}: remade, because it is damaged: {damage}")
        os.replace(final / MANIFEST, final / f"{MANIFEST}.damaged")  # other processes see this
        return False
    if changes := differences(finished, identity):
        print_line(f"{final.name}: remade, because {'; '.join(changes)}")
        if texts := ", ".join(text["file"] for text in finished.get("added", [])):
            print_line(
                f"{final.name}: no longer contains {texts}; add them by `python -m train extend`"
            )
        return False
    print_line(f"{final.name}: already finished ({finished['seconds']:.0f} s)")
    return True


def run_function(
    final: Path,
    context: StageContext,
    function: Callable[[StageContext], dict],
    shared: bool,
    need: dict | None = None,
) -> None:
    """Run a stage's function in its prepared folder, then move the folder to its final place.

    The function returns counts; tokens/s are computed from "tokens". Four entries are not kept:
    "earlier_seconds" (used by killed runs), "scratch" (files needed only to resume, deleted once
    the manifest is written), "hashes" (known sha256 by file) and "workers_memory" (peak bytes of
    all processes that it started).
    """
    started = time.perf_counter()
    reset_peak()
    counts = {}
    try:
        if shared or process_group().is_main:
            counts = function(context)
        process_group().wait()
        if process_group().is_main:
            seconds = time.perf_counter() - started
            _close(final, context.folder, counts, seconds, need)
        process_group().wait()
    except Exception as error:
        if not is_full(error, final.parent):
            raise
        raise _full(final.name, final.parent) from error


def _close(final: Path, partial: Path, counts: dict, seconds: float, need: dict | None) -> None:
    """Write the manifest, delete files needed only to resume, move the folder to its place."""
    scratch, hashes = counts.pop("scratch", []), counts.pop("hashes", {})
    seconds += counts.pop("earlier_seconds", 0.0)
    names = [p.relative_to(partial).as_posix() for p in sorted(partial.rglob("*")) if p.is_file()]
    names = [name for name in names if name not in (*BOOKKEEPING, *scratch)]
    manifest = read_json(partial / "identity.json") | {
        "need": need,
        "counts": counts,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(counts["tokens"] / seconds) if "tokens" in counts else None,
        "peak_memory_bytes": max(peak_memory(), counts.pop("workers_memory", 0)),
        "bytes": sum((partial / name).stat().st_size for name in names),
        "outputs": {name: hashes.get(name) or file_hash(partial / name) for name in names},
    }
    write_json(partial / "manifest.json", manifest)
    place(final, partial)
    peak = manifest["peak_memory_bytes"] / 2**20
    print_line(f"{final.name}: {seconds:.0f} s, {peak:.0f} MiB, {counts}")


def place(final: Path, partial: Path) -> None:
    """Move a folder with a manifest to its final place, and delete the one it replaces.

    Files that the manifest does not list are deleted first.
    """
    listed = finished_manifest(partial)["outputs"].keys() | set(BOOKKEEPING)
    for path in partial.rglob("*"):
        if path.is_file() and path.relative_to(partial).as_posix() not in listed:
            path.unlink()
    old = final.with_name(f"{final.name}.old")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(final, old)
    os.replace(partial, final)
    shutil.rmtree(old, ignore_errors=True)


def recover(final: Path, partial: Path, identity: dict) -> None:
    """Move a finished folder to its place if the run was killed just before that."""
    if finished_manifest(partial) is None or not (partial / "identity.json").is_file():
        return
    if not final.exists() or is_same(read_json(partial / "identity.json"), identity):
        place(final, partial)
        print_line(f"{final.name}: finished by a killed run; moved to its place")


def identify(root: Path, name: str, config: object, inputs: tuple[str, ...], seed: int) -> dict:
    """Return what determines a stage's result: its configuration and its inputs' hashes."""
    manifests = {i: finished_manifest(root / i) for i in inputs}
    missing = [i for i, manifest in manifests.items() if manifest is None]
    if missing:
        raise MlpMemError(
            f"{name}: needs {missing[0]} first; run `python -m train {missing[0]}` with the same "
            "recipe and --runs, or `python -m train all`"
        )
    return {
        "stage": name,
        "config": _plain(dataclasses.asdict(config)) | {"seed": seed},
        "inputs": {i: digest(manifest["outputs"]) for i, manifest in manifests.items()},
    }


def finished_manifest(folder: Path) -> dict | None:
    """Return the manifest of a finished stage, or None."""
    path = folder / MANIFEST
    return read_json(path) if path.is_file() else None


def is_same(one: dict, other: dict) -> bool:
    """Return whether two identities have the same result; EXECUTION fields may differ."""

    def decisive(identity: dict) -> dict:
        config = {k: v for k, v in identity["config"].items() if k not in EXECUTION}
        return identity | {"config": config}

    return decisive(one) == decisive(other)


def plain_decoder(run: Path) -> Path | None:
    """Return the finished decoder of the run RUN-plain, in the same folder of runs, or None."""
    run = run.resolve()
    folder = run.with_name(f"{run.name}-plain") / "decoder"
    return folder if finished_manifest(folder) is not None else None


def prepare(partial: Path, identity: dict, keep: bool = True) -> None:
    """Create the work folder, or keep that of a killed run with the same identity.

    keep: MlpMemError if a killed run with another identity left files, instead of deleting them.
    """
    path = partial / "identity.json"
    if path.is_file():
        if is_same(other := read_json(path), identity):
            _print_execution_changes(other, identity)
            write_json(path, identity)
            return
        if keep and any(p.is_file() and p.name not in NO_PROGRESS for p in partial.rglob("*")):
            check_same(partial, other, identity)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_json(path, identity)


def _print_execution_changes(old: dict, new: dict) -> None:
    """Print the EXECUTION fields in which a killed run and this one differ."""
    for key in EXECUTION:
        before, now = old["config"].get(key), new["config"].get(key)
        if before != now:
            print_line(f"{new['stage']}: resumes with {key} = {now}; the killed run had {before}")


def _full(name: str, folder: Path) -> MlpMemError:
    """Return the error for a full disk."""
    free = shutil.disk_usage(folder).free / 2**20
    return MlpMemError(
        f"{name}: the disk is full ({free:,.0f} MiB free at {folder}). Finished work is kept. Free "
        "some space (`python -m train plan` shows what each stage needs) and run the command again"
    )


def _plain(value: dict) -> dict:
    """Return value after a round trip through JSON (tuples become lists)."""
    return json.loads(json.dumps(value))


def differences(finished: dict, identity: dict) -> list[str]:
    """Return the differences between a finished stage and a requested one, one line each."""
    old, new = finished["config"], identity["config"]
    lines = [
        f"config.{key}: {old.get(key)!r} before, {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in EXECUTION
    ]
    old, new = finished["inputs"], identity["inputs"]
    if others := sorted(old.keys() ^ new.keys()):
        lines.append(f"only one of the two has the inputs {', '.join(others)}")
    if changed := sorted(key for key in old.keys() & new.keys() if old[key] != new[key]):
        have = "has" if len(changed) == 1 else "have"
        lines.append(f"its input {', '.join(changed)} {have} changed since (remade or extended)")
    return lines


def check_same(folder: Path, finished: dict, identity: dict) -> None:
    """Raise MlpMemError if a finished stage differs from the requested one.

    The error names the differences and all folders that would have to be deleted.
    """
    changes = differences(finished, identity)
    if not changes:
        return
    name = identity["stage"]
    root = folder.parents[name.count("/")]
    later = ", ".join(str(path) for path in dependents(root, name))
    delete = f"Delete {folder} to remake it"
    if later:
        delete += f", and also the folders made from it: {later}"
    ways = ["choose another folder with --runs"]
    if "/" not in name:  # `python -m train` does not run a study's stages
        ways.insert(0, "add --again to `python -m train`, which replaces outdated stages")
    raise MlpMemError(
        f"{folder.name} was made with other settings:\n  "
        + "\n  ".join(changes)
        + f"\n{delete}; or {', or '.join(ways)}."
    )


def dependents(root: Path, name: str) -> list[Path]:
    """Return the folders of a run made from a stage, finished or not, direct ones first."""
    records = {}
    for file in ("identity.json", MANIFEST):
        records |= {path.parent: read_json(path) for path in sorted(root.glob(f"*/{file}"))}
    stages, folders = {name}, []
    while new := [
        folder
        for folder, record in records.items()
        if folder not in folders and stages & record.get("inputs", {}).keys()
    ]:
        folders += new
        stages |= {records[folder]["stage"] for folder in new}
    return folders

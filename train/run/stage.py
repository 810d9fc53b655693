"""How a stage runs: skip when done, go on after a kill, write beside, keep a manifest.

Whether a stage that stands there is what is asked; what differs, and what was made from it.
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
from train.run.inputs import check_inputs, damaged
from train.run.machine import forget_peak, is_full, peak_memory
from train.run.processes import check_unlocked, lock_stage, process_group

MANIFEST = "manifest.json"
BOOKS = ("identity.json", MANIFEST)  # a stage's files that are no outputs
HOW = ("processes",)  # of a configuration: how a stage is run, which does not change its result
NO_WORK = ("identity.json", "job.json")  # what a run writes before it has done anything


@dataclass(frozen=True)
class StageContext:
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
    function: Callable[[StageContext], dict],
    seed: int,
    *,
    shared: bool = False,
    resumes: bool = True,
    again: bool = False,
    plan: Callable[[], dict] | None = None,
) -> dict:
    """Return the manifest of a stage, running it unless a finished one stands there already.

    `name` and `inputs` are folders below `root`; an input goes by the last part of its path.
    `function` and what it returns: see `run_function`. With `shared` every process runs it,
    otherwise the first does while the others wait. A function that `resumes` goes on where a killed
    run was, so what that one left is not cleared for another configuration. `plan` says what it
    will need, for the manifest, or raises where that is not there; it is asked before anything is
    touched. With `again` a stage of another configuration or of older inputs is made anew instead
    of refused; the old folder stays in its place until the new one is complete.
    Raises MlpMemError if an input is missing, a finished stage had another configuration, another
    run is at work here (with `again` anywhere in the run), or the disk is full.
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
            if not _is_done(final, identity, again):
                check_inputs(root, name, {i: finished_manifest(root / i) for i in inputs})
                need = plan() if plan is not None else None
                prepare(partial, identity, keep=resumes and not again)
                print_line(f"{name}: {json.dumps(identity['config'])}")
        process_group().wait()
        done = finished_manifest(final)
        if done is None or differences(done, identity):
            run_function(final, context, function, shared, need)
        return finished_manifest(final)


def _is_done(final: Path, identity: dict, again: bool) -> bool:
    """Return whether a stage need not run, and say so.

    MlpMemError where one of another configuration stands there, unless it is to be made `again`.
    """
    done = finished_manifest(final)
    if done is None:
        return False
    if not again:
        check_same(final, done, identity)
    if again and (wrong := damaged(final, done)):
        print_line(f"{final.name}: is made again: it is damaged: {wrong}")
        os.replace(final / MANIFEST, final / f"{MANIFEST}.damaged")  # other processes see it too
        return False
    if found := differences(done, identity):
        print_line(f"{final.name}: is made again: {'; '.join(found)}")
        if texts := ", ".join(text["file"] for text in done.get("added", [])):
            print_line(
                f"{final.name}: {texts}: not in the new one until `python -m train extend` says so"
            )
        return False
    print_line(f"{final.name}: done already ({done['seconds']:.0f} s)")
    return True


def run_function(
    final: Path,
    context: StageContext,
    function: Callable[[StageContext], dict],
    shared: bool,
    need: dict | None = None,
) -> None:
    """Run a stage's function in its prepared folder and put the folder in its place.

    The function returns counts. Of these "tokens" gives tokens/s; taken out are "earlier_seconds"
    (what killed runs had used), "scratch" (files needed only to go on after a kill, removed once
    the manifest stands), "hashes" (sha256 by file, of files whose hash is known already) and
    "workers_memory" (bytes at most of all processes that it started).
    """
    started = time.perf_counter()
    forget_peak()
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
    """Write the manifest, drop what was only needed to go on, put the folder in its place."""
    scratch, hashes = counts.pop("scratch", []), counts.pop("hashes", {})
    seconds += counts.pop("earlier_seconds", 0.0)
    names = [p.relative_to(partial).as_posix() for p in sorted(partial.rglob("*")) if p.is_file()]
    names = [name for name in names if name not in (*BOOKS, *scratch)]
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
    """Put a folder whose manifest stands where it belongs; an older one goes once it is there."""
    listed = finished_manifest(partial)["outputs"].keys() | set(BOOKS)
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
    """Put finished work in its place that a kill kept from it."""
    if finished_manifest(partial) is None or not (partial / "identity.json").is_file():
        return
    if not final.exists() or is_same(read_json(partial / "identity.json"), identity):
        place(final, partial)
        print_line(f"{final.name}: was finished by a run that was killed then; put in its place")


def identify(root: Path, name: str, config: object, inputs: tuple[str, ...], seed: int) -> dict:
    """Return what decides a stage's result: its configuration and its inputs' outputs."""
    manifests = {i: finished_manifest(root / i) for i in inputs}
    missing = [i for i, manifest in manifests.items() if manifest is None]
    if missing:
        raise MlpMemError(
            f"{name}: needs {missing[0]} first; run `python -m train {missing[0]}` with the same "
            "recipe and --runs, or the stage `all`"
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
    """Return whether two identities have the same result, whatever the number of processes."""

    def decisive(identity: dict) -> dict:
        config = {k: v for k, v in identity["config"].items() if k not in HOW}
        return identity | {"config": config}

    return decisive(one) == decisive(other)


def plain_decoder(run: Path) -> Path | None:
    """Return the finished decoder of the run beside this one that is called RUN-plain, or None."""
    run = run.resolve()
    folder = run.with_name(f"{run.name}-plain") / "decoder"
    return folder if finished_manifest(folder) is not None else None


def prepare(partial: Path, identity: dict, keep: bool = True) -> None:
    """Make the work folder; keep what a killed run of the same configuration left in it.

    MlpMemError where a run of another configuration left work there, if that is to be kept.
    """
    left = partial / "identity.json"
    if left.is_file():
        if is_same(other := read_json(left), identity):
            _tell_how(other, identity)
            write_json(left, identity)
            return
        if keep and any(p.is_file() and p.name not in NO_WORK for p in partial.rglob("*")):
            check_same(partial, other, identity)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_json(left, identity)


def _tell_how(old: dict, new: dict) -> None:
    """Print what differs in how a killed run and this one work."""
    for key in HOW:
        before, now = old["config"].get(key), new["config"].get(key)
        if before != now:
            print_line(f"{new['stage']}: goes on with {key} = {now}; it was begun with {before}")


def _full(name: str, folder: Path) -> MlpMemError:
    """Return what to say of a full disk."""
    free = shutil.disk_usage(folder).free / 2**20
    return MlpMemError(
        f"{name}: the disk is full ({free:,.0f} MiB free at {folder}). What is made stays; "
        "free some space (`python -m train plan` says how much each stage needs) and run it again "
        "to go on"
    )


def _plain(value: dict) -> dict:
    """Return value as JSON would give it back (tuples become lists)."""
    return json.loads(json.dumps(value))


def differences(done: dict, identity: dict) -> list[str]:
    """Return what differs between what stands there and what is asked, a line each."""
    old, new = done["config"], identity["config"]
    found = [
        f"config.{key}: {old.get(key)!r} there, {new.get(key)!r} asked"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in HOW
    ]
    old, new = done["inputs"], identity["inputs"]
    if others := sorted(old.keys() ^ new.keys()):
        found.append(f"its inputs were others, by {', '.join(others)}")
    if changed := sorted(key for key in old.keys() & new.keys() if old[key] != new[key]):
        have = "has" if len(changed) == 1 else "have"
        found.append(f"its input {', '.join(changed)} {have} changed since (made anew or extended)")
    return found


def check_same(folder: Path, done: dict, identity: dict) -> None:
    """Raise MlpMemError that names what differs, and all folders that have to go."""
    found = differences(done, identity)
    if not found:
        return
    name = identity["stage"]
    root = folder.parents[name.count("/")]
    later = ", ".join(str(path) for path in behind(root, name))
    delete = f"Delete {folder} to make it again"
    if later:
        delete += f", and with it what was made from it: {later}"
    ways = ["choose another folder with --runs"]
    if "/" not in name:  # a stage of a study is no command's
        ways.insert(0, "add --again to `python -m train`, which replaces what is no longer right")
    raise MlpMemError(
        f"{folder.name} was made with other settings:\n  "
        + "\n  ".join(found)
        + f"\n{delete}; or {', or '.join(ways)}."
    )


def behind(root: Path, name: str) -> list[Path]:
    """Return the folders of a run that were made from a stage, or are being, near ones first."""
    books = {}
    for file in ("identity.json", "manifest.json"):
        books |= {path.parent: read_json(path) for path in sorted(root.glob(f"*/{file}"))}
    reached, found = {name}, []
    while fresh := [
        folder
        for folder, book in books.items()
        if folder not in found and reached & book.get("inputs", {}).keys()
    ]:
        found += fresh
        reached |= {books[folder]["stage"] for folder in fresh}
    return found

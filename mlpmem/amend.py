"""A bundle amended where it stands: its results, an adapter more. bundle.py writes whole ones."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlpmem.loading.extra_columns import ADAPTER_FILES, Given, bundled, check_name
from mlpmem.loading.manifest import list_files, read_manifest


def put_results(folder: str | Path, results: Any) -> None:
    """Write a bundle's results.json anew, and its line in the manifest; MlpMemError for no bundle.

    A kill between the two leaves a bundle that says results.json is altered; do it again then.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    write_json(folder / "results.json", results)
    listed = {"results.json": list_files(folder)["results.json"]}
    _put_manifest(folder, manifest | {"files": manifest["files"] | listed})


def put_adapter(folder: str | Path, adapter: Given) -> None:
    """Copy an adapter into a bundle, in place of one of its name; MlpMemError for no bundle.

    Its weights are stored as they are. A kill half-way leaves files that no manifest lists, or,
    where one is replaced, a bundle that says it is altered; do it again then.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    listed = manifest.get("adapters", {}) | copy_adapters(folder, [adapter])
    names = [f"adapters/{adapter.name}/{name}" for name in ADAPTER_FILES]
    there = list_files(folder)
    files = manifest["files"] | {name: there[name] for name in names}
    amended = manifest | {"adapters": listed, "files": files}
    bundled(folder, amended)  # whatever would not be read is not written
    _put_manifest(folder, amended)


def copy_adapters(folder: Path, adapters: Iterable[Given]) -> dict[str, dict]:
    """Return what a manifest says of adapters, their two files copied to adapters/NAME/."""
    listed = {}
    for adapter in adapters:
        check_name(adapter.name)
        place = folder / "adapters" / adapter.name
        place.mkdir(parents=True, exist_ok=True)
        for name in ADAPTER_FILES:
            shutil.copyfile(adapter.folder / name, place / name)
        listed[adapter.name] = {"label": adapter.label, "seconds": round(adapter.seconds, 1)}
    return listed


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write a value as JSON, the folder made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=indent), encoding="utf-8")


def _put_manifest(folder: Path, manifest: dict) -> None:
    """Write a bundle's manifest as save_bundle does, last and at once."""
    beside = folder / "manifest.json.new"
    write_json(beside, manifest, indent=1)
    beside.replace(folder / "manifest.json")

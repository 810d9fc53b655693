"""Whether a stage that stands there is what is asked; what differs, and what was made from it."""

from pathlib import Path

from mlpmem.errors import MlpMemError
from train.files import read_json


def differences(done: dict, identity: dict) -> list[str]:
    """Return what differs between what stands there and what is asked, a line each."""
    old, new = done["config"], identity["config"]
    found = [
        f"config.{key}: {old.get(key)!r} there, {new.get(key)!r} asked"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
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

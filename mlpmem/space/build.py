"""Build a Space's folder: the page on a CPU, on ZeroGPU, or as static files.

A folder has a card, requirements, app, library and, if it is small enough, the bundle. It is
written to a temporary folder and renamed at the end. The card is README.md, whose YAML front matter
Hugging Face reads; its values are written as JSON, which is valid YAML.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mlpmem.errors import MlpMemError
from mlpmem.loading.manifest import checked_manifest, copy_listed

TITLE = "MLP Memory, live"
MARK = "mlp-memory-live"  # the tag of folders that were built here
MOST_SHORT = 60  # characters of a short description, Hugging Face's limit


@dataclass(frozen=True)
class Card:
    """The front matter's fields, with Hugging Face's names; None omits a field."""

    title: str
    emoji: str = "\N{BRAIN}"  # the field must be an emoji
    colorFrom: str = "indigo"  # noqa: N815
    colorTo: str = "purple"  # noqa: N815
    sdk: str = "gradio"
    sdk_version: str | None = None
    python_version: str | None = None
    app_file: str = "app.py"
    short_description: str = "Watch a language model remember, token by token"
    suggested_hardware: str | None = None
    startup_duration_timeout: str | None = None
    license: str = "apache-2.0"
    tags: tuple[str, ...] = (MARK, "knn-lm", "interpretability")

    def __post_init__(self) -> None:
        """Raise MlpMemError for values that Hugging Face refuses."""
        if not self.title.strip() or "\n" in self.title:
            raise MlpMemError(f"space: the title must be one line of text; got {self.title!r}")
        if len(self.short_description) > MOST_SHORT:
            raise MlpMemError(
                f"space: the short description must have at most {MOST_SHORT} characters; got "
                f"{len(self.short_description)}. Shorten it"
            )

    def text(self, body: str) -> str:
        """Return README.md: front matter, then body."""
        rows = {name: value for name, value in asdict(self).items() if value is not None}
        lines = [f"{name}: {json.dumps(v, ensure_ascii=False)}" for name, v in rows.items()]
        return "\n".join(["---", *lines, "---", "", f"# {self.title}", "", body, ""])


ROOT = Path(__file__).parents[2]
BUNDLE = Path("assets") / "atlas"  # app.py's default
BUNDLE_BYTES = 900_000_000  # a Space's repository holds 1 GB; a larger bundle is mounted
PYTHON = "3.12"  # ZeroGPU's version; transformers needs at least 3.11
LEFT_OUT = ("__pycache__", ".*")
# Spaces install gradio by sdk_version; accelerate is for training only
NOT_LISTED = ("gradio", "accelerate")
BODY = (
    "A frozen decoder, a kNN-LM datastore and an all-MLP memory answer the same prompt side by "
    "side.\nMove lambda, and every token on the screen is mixed again; click a token to see each "
    "source's\nprediction."
)


@dataclass(frozen=True)
class SpaceFolder:
    """A built folder, and notes on steps that are left to do."""

    folder: Path
    notes: list[str] = field(default_factory=list)

    @property
    def files(self) -> int:
        """Return the number of files."""
        return sum(path.is_file() for path in self.folder.rglob("*"))

    @property
    def bytes(self) -> int:
        """Return the size of all files."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


def build(
    out: str | Path, kind: str, *, bundle: Path | None = None, title: str = TITLE
) -> SpaceFolder:
    """Write a Space's folder and return it; a folder of an earlier build is replaced.

    MlpMemError if the repository or the bundle is incomplete, or if `out` has other files.
    """
    if kind not in KINDS:
        raise MlpMemError(f"space: kind must be one of {', '.join(KINDS)}; got {kind!r}")
    out = Path(out).absolute()
    _check_place(out)
    bundle = bundle or ROOT / BUNDLE
    size = _checked_size(bundle)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        notes = KINDS[kind](temporary, bundle, size, title)
        for path in (temporary, *temporary.rglob("*")):  # mkdtemp's folder is private
            path.chmod(0o755 if path.is_dir() else 0o644)
        if out.exists():
            shutil.rmtree(out)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return SpaceFolder(out, notes)


def _check_place(out: Path) -> None:
    """Raise MlpMemError unless out is new, empty or from an earlier build."""
    card = out / "README.md"
    ours = card.is_file() and MARK in card.read_text("utf-8", "replace")
    if out.exists() and not ours and (not out.is_dir() or any(out.iterdir())):
        raise MlpMemError(
            f"space: {out} has other files, which would be replaced; give a new folder"
        )


def _checked_size(bundle: Path) -> int:
    """Return a bundle's bytes; MlpMemError if its files differ from its manifest."""
    return sum(file["bytes"] for file in checked_manifest(bundle)["files"].values())


def _cpu(folder: Path, bundle: Path, size: int, title: str) -> list[str]:
    """Write the page for a CPU Space."""
    card = Card(
        title, sdk_version=_pinned("gradio"), python_version=PYTHON, suggested_hardware="cpu-basic"
    )
    return _page(folder, card, ROOT / "app.py", bundle, size)


def _zero(folder: Path, bundle: Path, size: int, title: str) -> list[str]:
    """Write the page for ZeroGPU, which installs its own release of torch."""
    card = Card(
        title, sdk_version=_pinned("gradio"), python_version=PYTHON, startup_duration_timeout="1h"
    )
    app = Path(__file__).with_name("zero_app.py")
    return _page(folder, card, app, bundle, size, unpinned=("torch",))


def _static(folder: Path, bundle: Path, size: int, title: str) -> list[str]:
    """Write the recorded runs as static files, and the model if it runs in a browser."""
    from mlpmem.space import live
    from mlpmem.ui.recordings import recorded, replay

    why = live.obstacle(bundle, checked_manifest(bundle))
    files = None if why else live.write(bundle, folder)
    replay.write(recorded.read(bundle), folder, files)
    card = Card(title, sdk="static", app_file="index.html")
    (folder / "README.md").write_text(card.text(BODY), "utf-8")
    if why:
        return [
            "This bundle's model does not run in a browser, so the page shows recorded runs only: "
            f"{why}."
        ]
    if not files["asked"]:
        return []
    size = sum(file["bytes"] for file in files["files"].values())
    return [f"The page loads the model ({size / 1e6:.0f} MB) only when a visitor asks for it."]


KINDS: dict[str, Callable[[Path, Path, int, str], list[str]]] = {
    "cpu": _cpu,
    "zero": _zero,
    "static": _static,
}


def _page(
    folder: Path, card: Card, app: Path, bundle: Path, size: int, unpinned: tuple[str, ...] = ()
) -> list[str]:
    """Write card, requirements, app, library and bundle; return the notes."""
    if not app.is_file():
        raise MlpMemError(f"space: {app.name} is missing; build from a clone of the repository")
    lines = [_line(line, unpinned) for line in _requirements() if _name(line) not in NOT_LISTED]
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n", "utf-8")
    shutil.copyfile(app, folder / "app.py")
    shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")
    ignored = shutil.ignore_patterns(*LEFT_OUT)
    shutil.copytree(ROOT / "mlpmem", folder / "mlpmem", ignore=ignored)
    notes = []
    if size <= BUNDLE_BYTES:
        copy_listed(bundle, folder / BUNDLE)
    else:
        notes.append(
            f"The bundle ({size / 1e9:.1f} GB) is too large for the folder. Mount it as a volume, "
            "and set the Space's variable MLPMEM_BUNDLE to its path."
        )
    (folder / "README.md").write_text(card.text("\n\n".join([BODY, *notes])), "utf-8")
    return notes


def _requirements() -> list[str]:
    """Return the lines of requirements.txt; MlpMemError outside a clone of the repository."""
    path = ROOT / "requirements.txt"
    if not path.is_file():
        raise MlpMemError(f"space: {path.name} is missing; build from a clone of the repository")
    return [line for line in path.read_text("utf-8").splitlines() if line.strip()]


def _name(line: str) -> str:
    """Return the package of a line of requirements.txt."""
    return line.partition("==")[0].strip()


def _line(line: str, unpinned: tuple[str, ...]) -> str:
    """Return a line of requirements.txt, without the version of an unpinned package."""
    return _name(line) if _name(line) in unpinned else line


def _pinned(name: str) -> str:
    """Return a package's version in requirements.txt."""
    return next(line.partition("==")[2].strip() for line in _requirements() if _name(line) == name)

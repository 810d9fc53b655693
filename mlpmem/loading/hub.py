"""Repositories of the Hub: their listings, and local copies of the files that are needed.

Code that takes a Hub id calls `fetch` first; Decoder.load and Memory.load read folders only. A
local folder comes first, then the cache, then the network. The first download pins a revision such
as "main": the cache keeps its commit.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from mlpmem.errors import MlpMemError
from mlpmem.formats import HUB_ID, SMALL, WEIGHTS, check_gguf, is_gguf, wanted
from mlpmem.model.families import family_in

Tell = Callable[[str, float | None], None]  # a status line, and the share done (0 to 1) or None

CONFIG = "config.json"
FORCED = "MLPMEM_OFFLINE_BY_DEFAULT"  # set where stay_offline set HF_HUB_OFFLINE
ONE_FILE = (
    "import sys; from huggingface_hub import hf_hub_download as get; a = sys.argv; "
    "print(get(a[1], a[2], revision=a[3], cache_dir=a[4]))"
)
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Listing:
    """The needed files of a repository at one commit."""

    hub_id: str
    commit: str
    licence: str  # as its card states it, else ""
    files: dict[str, int]  # bytes by name

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    def __str__(self) -> str:
        """Return one line: id, commit, size and licence."""
        licence = self.licence or "not stated, ask its authors before you use it"
        return f"{self.hub_id} ({self.commit[:12]}), {self.size(self.bytes)}, licence: {licence}"

    def size(self, count: int) -> str:
        """Return a number of bytes in the unit that fits the whole."""
        if self.bytes >= 5e8:
            return f"{count / 1e9:.2f} GB"
        return f"{count / 1e6:,.0f} MB" if self.bytes >= 1e7 else f"{count / 1e6:.2f} MB"


def fetch(
    source: str | Path,
    what: str,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    tell: Tell | None = None,
) -> Path:
    """Return the folder of a path or Hub id, downloaded if it is not cached; or a GGUF file.

    `what` begins the message of the MlpMemError if that fails. tell reports size and licence before
    the weights are downloaded, and then the progress. A decoder's config.json is downloaded first,
    so that an unknown family is refused before its weights are downloaded.
    """
    if what == "decoder":
        check_gguf(source)
    if Path(source).is_dir() or what == "decoder" and is_gguf(source):
        return Path(source)
    if not HUB_ID.fullmatch(str(source)):
        raise MlpMemError(
            f"{what}: {str(source)!r} is neither a local folder nor a Hub id; check the path, or "
            "give an id such as owner/name"
        )
    if (cached := find_cached(str(source), what, revision)) is not None:
        return cached
    if local_files_only:
        raise MlpMemError(
            f"{what}: {str(source)!r} is neither a local folder nor downloaded; check the path, "
            "or allow the network so that it can be downloaded"
        )
    listing = look_up(str(source), what, revision)
    if what == "decoder":
        family_in(snapshot(listing.hub_id, what, revision, [CONFIG]))
    return download(listing, what, revision, tell or (lambda line, share: None))


def find_cached(hub_id: str, what: str, revision: str | None = None) -> Path | None:
    """Return the cached folder of a repository, None unless all its weights are cached.

    A decoder also needs its tokenizer, which another program may not have downloaded.
    """
    from huggingface_hub import snapshot_download

    from mlpmem.model.tokenizer import has_vocabulary

    try:
        options = {"revision": revision, "local_files_only": True, "allow_patterns": list(SMALL)}
        folder = Path(snapshot_download(hub_id, **options))
    except (OSError, ValueError):
        return None
    cached = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    weights = [n for n in wanted(cached) if any(fnmatch(Path(n).name, p) for p in WEIGHTS)]
    complete = bool(weights) and _has_all_shards(weights)
    if what == "decoder":
        complete = complete and has_vocabulary(folder)
    return folder if complete else None


def _has_all_shards(weights: list[str]) -> bool:
    """Return whether there are as many shards as their names state."""
    first = Path(weights[0]).name.split("-of-")
    return len(first) == 1 or len(weights) == int(first[1].split(".")[0])


def look_up(
    hub_id: str,
    what: str,
    revision: str | None = None,
    licence: str = "",
    needed: Callable[[Iterable[str]], Iterable[str]] = wanted,
) -> Listing:
    """Return the Hub's listing of a repository; MlpMemError if the Hub cannot be reached.

    `licence` is used if the repository's card states none. `needed` chooses among its files.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi(endpoint()).model_info(hub_id, revision=revision, files_metadata=True)
    except Exception as error:  # the client's transport raises errors of its own
        raise _unreachable(hub_id, what, error) from error
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    card = info.card_data or {}
    stated = card.get("license") or licence
    if stated == "other":  # what the Hub calls a licence that its list lacks
        stated = card.get("license_name") or stated
    licence = stated if isinstance(stated, str) else ", ".join(stated)
    return Listing(hub_id, info.sha or "", licence, {n: sizes[n] for n in needed(sizes)})


def endpoint() -> str | None:
    """Return the Hub's address as the environment names it now, None for the client's own."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def stay_offline() -> None:
    """Make huggingface_hub work from its cache, unless the environment says otherwise.

    Only `download_file` then uses the network.
    """
    if "HF_HUB_OFFLINE" in os.environ:
        return
    os.environ |= {"HF_HUB_OFFLINE": "1", FORCED: "1"}
    if constants := sys.modules.get("huggingface_hub.constants"):  # it read the environment before
        constants.HF_HUB_OFFLINE = True


def find_file(hub_id: str, revision: str, name: str) -> Path | None:
    """Return a file of a repository in the cache, or None."""
    from huggingface_hub import constants, try_to_load_from_cache

    cache = {"cache_dir": constants.HF_HUB_CACHE}
    found = try_to_load_from_cache(hub_id, name, revision=revision, **cache)
    return Path(found) if isinstance(found, str) else None


def download_file(listing: Listing, name: str, tell: Tell) -> Path:
    """Return one file of a repository, downloaded into the cache by a process of its own.

    This process may be offline for everything else. MlpMemError if the environment itself forbids
    the network, or the Hub cannot be reached.
    """
    from huggingface_hub import constants

    environment = {**os.environ, "HF_ENDPOINT": endpoint() or constants.ENDPOINT}
    if environment.pop(FORCED, ""):
        environment.pop("HF_HUB_OFFLINE", None)
    tell(f"downloading {listing}", 0.0)
    command = [sys.executable, "-c", ONE_FILE, listing.hub_id, name, listing.commit]
    with _watched(listing, tell):
        done = subprocess.run(
            [*command, constants.HF_HUB_CACHE], env=environment, capture_output=True, text=True
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it ended without a message"]
        raise _unreachable(listing.hub_id, "decoder", RuntimeError(lines[-1]))
    return Path(done.stdout.strip().splitlines()[-1])


def download(listing: Listing, what: str, revision: str | None, tell: Tell) -> Path:
    """Return the folder of a repository's files; cached files are not downloaded again."""
    tell(f"downloading {listing}", 0.0)
    with _watched(listing, tell):
        return snapshot(listing.hub_id, what, revision, list(listing.files))


def snapshot(hub_id: str, what: str, revision: str | None, names: list[str]) -> Path:
    """Return the folder of a repository after downloading the named files.

    The folder bears the commit's name.
    """
    from huggingface_hub import snapshot_download

    try:
        options = {"revision": revision, "allow_patterns": names, "endpoint": endpoint()}
        return Path(snapshot_download(hub_id, **options))
    except Exception as error:  # as above
        raise _unreachable(hub_id, what, error) from error


@contextmanager
def _watched(listing: Listing, tell: Tell) -> Iterator[None]:
    """Report twice per second how many bytes of a repository are in the cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    name = repo_folder_name(repo_id=listing.hub_id, repo_type="model")
    blobs, stop = Path(constants.HF_HUB_CACHE) / name / "blobs", threading.Event()

    def watch() -> None:
        while not stop.wait(POLL_SECONDS):
            done = min(_bytes(blobs), listing.bytes)
            line = f"downloading {listing}: {listing.size(done)} done"
            tell(line, done / max(1, listing.bytes))

    thread = threading.Thread(target=watch, name="download", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _bytes(folder: Path) -> int:
    """Return the size of a folder's files, skipping those that vanish meanwhile."""
    total = 0
    for path in folder.glob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total


def _unreachable(hub_id: str, what: str, error: Exception) -> MlpMemError:
    return MlpMemError(
        f"{what}: {hub_id!r} is not a local folder and cannot be downloaded ({reason(error)}); "
        "check the path, or the id and network (a gated model also needs its licence accepted and "
        "HF_TOKEN). Downloaded files are kept; run it again to resume"
    )


def reason(error: Exception) -> str:
    """Return why the Hub's client failed, in a few words."""
    from huggingface_hub import errors

    causes = {
        errors.OfflineModeIsEnabled: "offline mode forbids it, HF_HUB_OFFLINE=1",
        errors.GatedRepoError: "its authors must grant access first",
        errors.RepositoryNotFoundError: "the Hub has no repository of this name, or it is private "
        "and no login was found that may read it",
        errors.RevisionNotFoundError: "the repository has no such revision",
    }
    for kind, words in causes.items():
        if isinstance(error, kind) or isinstance(error.__cause__, kind):
            return words
    return " ".join(str(error).split())[:200] or type(error).__name__

"""Push a bundle to the Hub: `python -m train push FOLDER owner/name`.

It prints what would go: repository, files and card. Only with `--yes` it connects to the Hub and
uploads, all files as one commit. Only files that the manifest lists go, each with the manifest's
hash, and the card. The login is huggingface_hub's own.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpmem.errors import MlpMemError
from mlpmem.loading.bundle import Bundle, load_bundle
from mlpmem.loading.hub import endpoint, reason
from mlpmem.loading.hub_bundle import shareable
from mlpmem.loading.manifest import MANIFEST
from train.files import print_line
from train.report.card import card

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
BRANCH = re.compile(r"[\w.-]+(/[\w.-]+)*")
CARD = "README.md"
MOST_SHOWN = 10  # names of files that are left out
REFUSED = {
    401: "the Hub does not accept the token; run `hf auth login` with a valid one",
    403: "the token may not write there; use one with write access, or another owner",
}


@dataclass(frozen=True)
class Push:
    """A checked bundle, where it goes, and its card."""

    bundle: Bundle
    repository: str
    branch: str | None  # None: the repository's main branch
    private: bool
    card: str

    @property
    def sizes(self) -> dict[str, int]:
        """Return the bytes of every file that goes, by name."""
        listed = {name: row["bytes"] for name, row in self.bundle.manifest["files"].items()}
        manifest = (self.bundle.folder / MANIFEST).stat().st_size
        return {**listed, MANIFEST: manifest, CARD: len(self.card.encode())}

    @property
    def left_out(self) -> list[str]:
        """Return the files of the folder that do not go."""
        folder = self.bundle.folder
        found = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())
        return sorted(set(found) - set(self.sizes) | {CARD} & set(found))

    def __str__(self) -> str:
        """Return what would go."""
        sizes = self.sizes
        width = max(map(len, sizes))
        branch = f", branch {self.branch}" if self.branch else ""
        private = ", private" if self.private else ""
        lines = [f"{self.bundle.name} to {_address()}/{self.repository}{branch}{private}", ""]
        lines += [f"  {name:{width}}  {size:>13,} bytes" for name, size in sizes.items()]
        lines.append(f"  {f'{len(sizes)} files':{width}}  {sum(sizes.values()):>13,} bytes")
        if left := self.left_out:
            shown = ", ".join(left[:MOST_SHOWN]) + (", ..." if len(left) > MOST_SHOWN else "")
            lines += ["", f"left out, not of the bundle ({len(left)}): {shown}"]
        return "\n".join([*lines, "", f"{CARD}:", "", self.card])


def main(argv: Sequence[str] | None = None) -> None:
    """Print what a push would send; with --yes, send it."""
    args = _parser().parse_args(argv)
    push = prepare(args.folder, args.repository, args.branch, args.private, args.licence)
    print_line(str(push))
    if not args.yes:
        print_line("Nothing was sent. Add --yes to upload it.")
        return
    commit = upload(push)
    print_line(f"uploaded: {_address()}/{push.repository}/tree/{commit}")
    print_line(f'load it: mlpmem.load("{push.repository}@{commit}")')


def prepare(
    folder: Path,
    repository: str,
    branch: str | None = None,
    private: bool = False,
    licence: str | None = None,
) -> Push:
    """Return the push of a folder; MlpMemError if it is no valid bundle, or a name is invalid."""
    if not REPOSITORY.fullmatch(repository):
        raise MlpMemError(f"push: the repository must be owner/name; got {repository!r}")
    if branch is not None and not BRANCH.fullmatch(branch):
        raise MlpMemError(f"push: the branch must be a name such as v2; got {branch!r}")
    bundle = load_bundle(folder)
    shareable(bundle.manifest)
    return Push(bundle, repository, branch, private, card(bundle, repository, licence))


def upload(push: Push) -> str:
    """Upload a bundle and return the commit; MlpMemError says why the Hub refused it."""
    from huggingface_hub import HfApi, get_token

    if not get_token():
        raise MlpMemError(
            "push: no login was found; run `hf auth login` with a token that has write access "
            "(https://huggingface.co/settings/tokens), or set HF_TOKEN. Nothing was sent"
        )
    operations = _operations(push)
    try:
        api = HfApi(endpoint())
        api.create_repo(push.repository, private=push.private or None, exist_ok=True)
        if push.private and not api.model_info(push.repository).private:
            raise MlpMemError(
                f"push: {push.repository} exists and is public, and --private was given; make it "
                "private on the Hub first, or leave out --private. No file was sent"
            )
        if push.branch:
            api.create_branch(push.repository, branch=push.branch, exist_ok=True)
        message = f"Bundle {push.bundle.name}"
        done = api.create_commit(
            push.repository, operations, commit_message=message, revision=push.branch
        )
    except MlpMemError:
        raise
    except Exception as error:  # the client's transport raises errors of its own
        if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # why one large file could not be sent
        status = getattr(getattr(error, "response", None), "status_code", None)
        why = REFUSED.get(status) or reason(error)
        raise MlpMemError(
            f"push: {push.repository} could not be uploaded ({why}). Nothing was committed; run it "
            "again"
        ) from error
    return done.oid


def _operations(push: Push) -> list[Any]:
    """Return the files as the Hub's client takes them; MlpMemError for one that has changed."""
    from huggingface_hub import CommitOperationAdd

    folder, files = push.bundle.folder, push.bundle.manifest["files"]
    operations = [CommitOperationAdd(name, str(folder / name)) for name in [*files, MANIFEST]]
    for operation in operations:
        expected = files.get(operation.path_in_repo)
        if expected and operation.upload_info.sha256.hex() != expected["sha256"]:
            raise MlpMemError(
                f"push: {operation.path_in_repo} changed while it was read; run it again when "
                "nothing writes to the folder"
            )
    return [*operations, CommitOperationAdd(CARD, push.card.encode())]


def _address() -> str:
    from huggingface_hub import constants

    return endpoint() or constants.ENDPOINT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m train push", description="Print what a push would send; --yes sends it."
    )
    parser.add_argument("folder", type=Path, help="a bundle, such as runs/tiny/export/tiny")
    parser.add_argument("repository", help="owner/name on the Hub; made if it does not exist")
    parser.add_argument("--yes", action="store_true", help="upload; without it nothing is sent")
    parser.add_argument("--private", action="store_true", help="of a new repository")
    parser.add_argument("--branch", help="the branch that takes the commit; default: main")
    parser.add_argument(
        "--licence", help="the Hub's name of the licence of the whole, such as apache-2.0"
    )
    return parser

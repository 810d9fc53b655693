"""Build a Space's folder: python -m mlpmem.space build OUT --kind cpu|zero|static."""

import argparse
import sys
from pathlib import Path

from mlpmem.errors import MlpMemError
from mlpmem.space.build import KINDS, TITLE, build


def main(argv: list[str] | None = None) -> int:
    """Write the folder and print how to upload it; return the process's exit status."""
    parser = argparse.ArgumentParser(prog="python -m mlpmem.space", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("build", help="write a Space's folder")
    command.add_argument("out", type=Path, help="a new folder, or one of an earlier build")
    command.add_argument("--kind", choices=KINDS, default="cpu")
    command.add_argument("--bundle", type=Path, help="a bundle's folder (default: embedded)")
    command.add_argument("--title", default=TITLE)
    args = parser.parse_args(argv)
    try:
        built = build(args.out, args.kind, bundle=args.bundle, title=args.title)
    except (MlpMemError, OSError) as error:
        sys.stderr.write(f"mlpmem: {error}\n")
        return 2
    sys.stdout.write(f"{built.folder}: {built.files} files, {built.bytes / 1e6:.1f} MB\n")
    for line in built.notes:
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(f"hf upload YOUR_NAME/mlp-memory {built.folder} . --repo-type space\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

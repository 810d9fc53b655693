"""Write a bundle's system as a folder for transformers: `python -m mlpmem.hf FOLDER`."""

import argparse
import sys
from pathlib import Path

from mlpmem.errors import MlpMemError
from mlpmem.hf.folder import check_target
from mlpmem.hf.model import MlpMemoryForCausalLM


def main(arguments: list[str] | None = None) -> int:
    """Write a bundle's system as a folder for transformers; return the exit status."""
    import mlpmem

    parser = argparse.ArgumentParser("python -m mlpmem.hf", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="the folder to write")
    parser.add_argument("--bundle", help="a bundle's folder; the embedded one by default")
    parser.add_argument("--system", help="lm, memory or knn; the memory by default")
    parser.add_argument(
        "--lmbda", type=float, help="default: the bundle's fixed lambda (no router here)"
    )
    args = parser.parse_args(arguments)
    try:
        check_target(args.folder)
        model = mlpmem.load(args.bundle, datastore=args.system == "knn")
        MlpMemoryForCausalLM.of(model, args.system, args.lmbda).save_pretrained(args.folder)
    except (MlpMemError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    size = sum(path.stat().st_size for path in args.folder.rglob("*") if path.is_file())
    sys.stderr.write(f"{args.folder}: {size / 1e6:.0f} MB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

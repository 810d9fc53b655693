"""Commands: `python -m train all atlas`, or one stage by name; see `python -m train --help`."""

import argparse
import os
import sys
from pathlib import Path

# Before torch: glibc's malloc otherwise hands every large activation back to the kernel and faults
# it in again a step later, which costs a training step on a CPU a third of its speed.
TUNABLES = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296"


def main(arguments: list[str] | None = None) -> int:
    """Run the stages asked for; return the exit status."""
    from mlpmem.errors import MlpMemError
    from train.pipeline import STAGES, run
    from train.processes import disband
    from train.recipe import load_recipe

    parser = argparse.ArgumentParser("python -m train", description="From text to a bundle.")
    parser.add_argument("stage", choices=["all", *STAGES], help="one stage, or all in their order")
    parser.add_argument(
        "recipe", nargs="?", default="atlas", help="a name of train/recipes, a .toml"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where stages are kept")
    options = parser.parse_args(arguments)
    try:
        recipe = load_recipe(options.recipe)
        stages = list(STAGES) if options.stage == "all" else [options.stage]
        for stage in stages:
            run(stage, recipe, options.runs / recipe.name)
    except MlpMemError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(
            f"{error}\nNothing already made is lost: put that right (is the disk full, or the "
            "folder not writable?) and run it again.\n"
        )
        return 1
    finally:
        disband()
    return 0


def _with_tunables() -> None:
    """Start this process anew with glibc's malloc tuned, where that applies and is not done yet."""
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = TUNABLES
        os.execv(sys.executable, [sys.executable, "-m", "train", *sys.argv[1:]])


if __name__ == "__main__":
    _with_tunables()
    sys.exit(main())

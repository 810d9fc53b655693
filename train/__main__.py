"""Commands: `python -m train all atlas`, or one stage by name; see `python -m train --help`."""

import argparse
import os
import shlex
import signal
import sys
from pathlib import Path

# Before torch: glibc's malloc otherwise hands every large activation back to the kernel and faults
# it in again a step later, which costs a training step on a CPU a third of its speed.
TUNABLES = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296"
STOPPED = "stopped; what is made stays, the same command goes on\n"


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for; return the exit status."""
    from mlpmem.errors import MlpMemError
    from train.run.processes import disband

    try:
        _run(_parser().parse_args(arguments))
    except MlpMemError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(
            f"{error}\nNothing already made is lost: put that right (is the folder writable?) and "
            "run it again.\n"
        )
        return 1
    except KeyboardInterrupt:
        _tell_stopped()
        return 130  # what shells give for Ctrl-C
    finally:
        disband()
    return 0


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    from train.run.pipeline import STAGES

    parser = argparse.ArgumentParser(
        "python -m train",
        description="From text to a bundle.",
        epilog="Several processes: `torchrun --nproc-per-node 2 -m train datastore atlas`, or "
        "`accelerate launch` on GPUs and several machines that share the folder of --runs.",
    )
    parser.add_argument(
        "command",
        metavar="command",
        choices=["all", *STAGES, "plan", "extend"],
        help=f"all, or one stage ({', '.join(STAGES)}); plan: what each stage needs and takes, "
        "before anything runs and after; extend: more documents for a finished datastore",
    )
    parser.add_argument(
        "recipe",
        nargs="?",
        default="atlas",
        help="a name of train/recipes, or the path of a .toml; atlas where none is given",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where stages are kept")
    parser.add_argument("--until", choices=STAGES, help="all: the last stage that runs")
    parser.add_argument(
        "--again",
        action="store_true",
        help="all, or a stage: make what was made with other settings, or from what has changed "
        "since, anew instead of refusing it; the old stays until the new is complete",
    )
    parser.add_argument(
        "--text",
        type=Path,
        nargs="+",
        help="extend: files or folders to add, of the kinds that [corpus] reads",
    )
    parser.add_argument(
        "--tflops", type=float, help="plan: for a device of so many TFLOP/s instead of this one"
    )
    return parser


def _run(options: argparse.Namespace) -> None:
    """Run stages, the ledger or an extension."""
    from mlpmem.errors import MlpMemError
    from train.config.load import load_recipe
    from train.run.ledger import print_ledger
    from train.run.pipeline import STAGES, run
    from train.run.processes import team

    recipe = load_recipe(options.recipe)
    root = options.runs / recipe.name
    if (options.command == "extend") != bool(options.text):
        raise MlpMemError("--text FILES and the command extend go together: one needs the other")
    if options.until and options.command != "all":
        raise MlpMemError("--until STAGE says where the command all ends; leave it out, or use all")
    if options.again and options.command in ("plan", "extend"):
        raise MlpMemError("--again is for all and for the stages; leave it out here")
    if options.command == "plan":
        print_ledger(recipe, root, options.tflops)
    elif options.command == "extend":
        from train.stages.extend import extend

        extend(recipe, root, options.text)
    else:
        names = list(STAGES) if options.command == "all" else [options.command]
        if options.until:
            names = names[: names.index(options.until) + 1]
        for stage in names:
            run(stage, recipe, root, options.again)
        if names == list(STAGES) and team().is_main:
            print_ledger(recipe, root)
        if "export" in names and team().is_main:
            _tell_results(root / "export" / recipe.export.name / "results.json")


def _tell_results(path: Path) -> None:
    """Print the command that shows a bundle's results, where there are any."""
    from train.files import say

    if path.is_file():
        say(f"results: python -m train.report {shlex.quote(str(path))}")


def _tell_stopped() -> None:
    """Print that the run was stopped, once for all processes of a launch."""
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(STOPPED)


def _end_as_told(number: int, frame: object) -> None:
    """Die of the signal, as without this, after a word: workers follow, locks are let go."""
    if processes := sys.modules.get("train.run.processes"):
        processes.take_notes_away()
    _tell_stopped()
    sys.stderr.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _with_tunables() -> None:
    """Start this process anew with glibc's malloc tuned, where that applies and is not done yet."""
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = TUNABLES
        os.execv(sys.executable, [sys.executable, "-m", "train", *sys.argv[1:]])


if __name__ == "__main__":
    _with_tunables()
    signal.signal(signal.SIGTERM, _end_as_told)
    sys.exit(main())

"""Commands: `python -m train all atlas`, or one stage by name; see `python -m train --help`.

`python -m train push FOLDER owner/name` is a program of its own, train/report/push.py.
"""

import argparse
import os
import shlex
import signal
import sys
from pathlib import Path

# Set before torch is imported: by default glibc's malloc returns every large activation to the
# kernel and faults it in again one step later. That costs a CPU training step a third of its speed.
TUNABLES = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296"
PUSH = "push"
STOPPED = "stopped; finished work is kept, run the same command to continue\n"


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the exit status."""
    from mlpmem.errors import MlpMemError
    from train.run.processes import close_group

    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] == [PUSH]:
            from train.report import push

            push.main(arguments[1:])
        else:
            _run(_parser().parse_args(arguments))
    except MlpMemError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(
            f"{error}\nFinished work is kept. Correct the cause (is the folder writable?) and run "
            "the command again.\n"
        )
        return 1
    except KeyboardInterrupt:
        _print_stopped()
        return 130  # what shells give for Ctrl-C
    finally:
        close_group()
    return 0


def _parser() -> argparse.ArgumentParser:
    from train.run.pipeline import STAGES

    parser = argparse.ArgumentParser(
        "python -m train",
        description="From text to a bundle.",
        epilog="Several processes: `torchrun --nproc-per-node 2 -m train datastore atlas`, or "
        "`accelerate launch` on GPUs and on several machines that share the --runs folder. "
        "A bundle on the Hub: `python -m train push FOLDER owner/name`; see its own --help.",
    )
    parser.add_argument(
        "command",
        metavar="command",
        choices=["all", *STAGES, "plan", "extend"],
        help=f"all, or one stage ({', '.join(STAGES)}); plan: print what each stage "
        "needs and takes; extend: add documents to a finished datastore",
    )
    parser.add_argument(
        "recipe",
        nargs="?",
        default="atlas",
        help="a name in train/recipes, or the path of a .toml file; default: atlas",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--until", choices=STAGES, help="all: the last stage to run")
    parser.add_argument(
        "--again",
        action="store_true",
        help="all, or a stage: remake a stage whose settings or inputs have changed, instead of "
        "refusing; the old folder stays until the new one is complete",
    )
    parser.add_argument(
        "--text",
        type=Path,
        nargs="+",
        help="extend: files or folders to add, in the formats that [corpus] reads",
    )
    parser.add_argument(
        "--tflops",
        type=float,
        help="plan: for a device of this many TFLOP/s instead of this one",
    )
    return parser


def _run(args: argparse.Namespace) -> None:
    """Run stages, print the ledger or extend the datastore."""
    from mlpmem.errors import MlpMemError
    from train.config.load import load_recipe
    from train.run.ledger import print_ledger
    from train.run.pipeline import STAGES, run
    from train.run.processes import process_group

    recipe = load_recipe(args.recipe)
    root = args.runs / recipe.name
    if (args.command == "extend") != bool(args.text):
        raise MlpMemError("--text FILES and the command extend must be given together; got one")
    if args.until and args.command != "all":
        raise MlpMemError("--until is only for the command all; leave it out, or use all")
    if args.again and args.command in ("plan", "extend"):
        raise MlpMemError("--again is only for all and the stages; leave it out")
    if args.command == "plan":
        print_ledger(recipe, root, args.tflops)
    elif args.command == "extend":
        from train.stages.extend import extend

        extend(recipe, root, args.text)
    else:
        names = list(STAGES) if args.command == "all" else [args.command]
        if args.until:
            names = names[: names.index(args.until) + 1]
        for stage in names:
            run(stage, recipe, root, args.again)
        if names == list(STAGES) and process_group().is_main:
            print_ledger(recipe, root)
        if "export" in names and process_group().is_main:
            _print_report_command(root / "export" / recipe.export.name / "results.json")


def _print_report_command(path: Path) -> None:
    """Print the command that shows a bundle's results, if the file exists."""
    from train.files import print_line

    if path.is_file():
        print_line(f"results: python -m train.report {shlex.quote(str(path))}")


def _print_stopped() -> None:
    """Print that the run was stopped, once per launch."""
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(STOPPED)


def _terminate(number: int, frame: object) -> None:
    """Print that the run was stopped, then die of the signal: workers end, locks are released."""
    if processes := sys.modules.get("train.run.processes"):
        processes.delete_notes()
    _print_stopped()
    sys.stderr.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _restart_with_tunables() -> None:
    """Restart this process with glibc's malloc tuned, on Linux, unless that is done already."""
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = TUNABLES
        os.execv(sys.executable, [sys.executable, "-m", "train", *sys.argv[1:]])


if __name__ == "__main__":
    _restart_with_tunables()
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())

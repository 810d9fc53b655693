"""Command: `python -m train.tasks questions --bundle assets/atlas --run runs/atlas`; see --help."""

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from mlpmem.errors import MlpMemError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one task or all; return the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _run(_parser().parse_args(arguments), f"python -m train.tasks {shlex.join(arguments)}")
    except (MlpMemError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    from train.tasks import TASKS

    parser = argparse.ArgumentParser(
        "python -m train.tasks",
        description="Evaluate systems on tasks.",
        epilog=f"Tasks: {', '.join(TASKS)}.",
    )
    parser.add_argument(
        "task",
        choices=["all", *TASKS],
        help="a name, see below; all: every task with data",
        metavar="task",
    )
    parser.add_argument("--bundle", help="folder or preset; default: the embedded bundle")
    parser.add_argument("--decoder", help="folder or Hub id, instead of a bundle")
    parser.add_argument("--memory", help="folder or Hub id, for --decoder")
    parser.add_argument("--text", nargs="+", default=(), help="datastore's files, for --decoder")
    parser.add_argument("--run", type=Path, help="a run's folder: its questions, tuned decoders")
    parser.add_argument("--systems", default="", help="comma-separated names; default: all")
    parser.add_argument("--data", type=Path, help="folder of published data sets")
    parser.add_argument("--limit", type=int, default=0, help="questions per split, at most")
    parser.add_argument(
        "--wordings",
        default="",
        help="comma-separated, of the atlas: dev to choose settings",
    )
    parser.add_argument("--lmbda", type=float, help="weight of memory and datastore")
    parser.add_argument(
        "--passages", type=int, nargs="+", default=(1,),
        help="retrieved passages per prompt; each further number adds a system rag_NUMBER",
    )  # fmt: skip
    parser.add_argument("--layout", help="of passages: turns or text; default: as the corpus")
    parser.add_argument("--out", type=Path, help="default: RUN/findings, or findings")
    parser.add_argument(
        "--json", action="store_true", help="print one finding per line instead of a table"
    )
    return parser


def _run(args: argparse.Namespace, how: str) -> None:
    """Evaluate the systems; save and print each task's findings."""
    from train.measure.findings import save
    from train.tasks import TASKS
    from train.tasks.systems import RunSystems, SystemSources
    from train.tasks.task import MissingData, TaskInput

    if args.limit < 0:
        raise MlpMemError(
            f"--limit must be 0 (all) or more; got {args.limit}. Give a number from 1, or 0"
        )
    names = [f.name for f in dataclasses.fields(SystemSources)]
    registry = RunSystems(SystemSources(**{name: getattr(args, name) for name in names}))
    systems = registry.systems([name for name in args.systems.split(",") if name])
    corpus = args.run / "corpus" if args.run else None
    wordings = tuple(name for name in args.wordings.split(",") if name)
    inputs = TaskInput(systems, args.data, corpus, args.limit, how, wordings=wordings)
    folder = args.out or (args.run / "findings" if args.run else Path("findings"))
    for name in TASKS if args.task == "all" else [args.task]:
        try:
            findings = TASKS[name].run(inputs)
        except MissingData as error:
            if args.task != "all":
                raise
            sys.stderr.write(f"{name} is skipped: {error}\n")
            continue
        save(folder, name, findings)
        rows = map(dataclasses.asdict, findings)
        lines = map(json.dumps, rows) if args.json else table(name, findings)
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()


def table(name: str, findings: Sequence) -> list[str]:
    """Return a table's lines: one row per split and metric, one column per system."""
    systems = list(dict.fromkeys(f.system for f in findings))
    cells = {(f.split, f.metric, f.system): f"{f.value:.3f}" for f in findings}
    counts = {(f.split, f.metric): f.n for f in findings}
    rows = [("split", "metric", "n", *systems)]
    rows += [
        (*key, str(n), *(cells.get((*key, system), "") for system in systems))
        for key, n in counts.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(c.ljust(w) if i < 2 else c.rjust(w)
                  for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]  # fmt: skip
    return [name, *lines, ""]


if __name__ == "__main__":
    sys.exit(main())

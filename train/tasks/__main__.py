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
    """Run what is asked for; return the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _run(_parser().parse_args(given), f"python -m train.tasks {shlex.join(given)}")
    except (MlpMemError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    from train.tasks import TASKS

    parser = argparse.ArgumentParser(
        "python -m train.tasks",
        description="Ask systems, by task.",
        epilog=f"Tasks: {', '.join(TASKS)}.",
    )
    parser.add_argument(
        "task",
        choices=["all", *TASKS],
        help="a name, see below; all: every task whose data is here",
        metavar="task",
    )
    parser.add_argument("--bundle", help="folder or preset that answers; the embedded one")
    parser.add_argument("--decoder", help="folder or hub id, instead of a bundle")
    parser.add_argument("--memory", help="of that decoder: folder or hub id")
    parser.add_argument("--text", nargs="+", default=(), help="files: that decoder's datastore")
    parser.add_argument("--run", type=Path, help="a recipe's folder: questions, tuned decoders")
    parser.add_argument("--systems", default="", help="names with commas between; all there are")
    parser.add_argument("--data", type=Path, help="folder of published data sets")
    parser.add_argument("--limit", type=int, default=0, help="questions at most, of every split")
    parser.add_argument(
        "--wordings", default="", help="of the atlas, with commas between: dev to choose settings"
    )
    parser.add_argument("--lmbda", type=float, help="weight of memory or datastore; their own")
    parser.add_argument(
        "--passages", type=int, nargs="+", default=(1,),
        help="retrieved, before a prompt; after the first number each makes a system rag_NUMBER",
    )  # fmt: skip
    parser.add_argument("--layout", help="of passages: turns or text; as the corpus is")
    parser.add_argument("--out", type=Path, help="findings' folder; RUN/findings, else findings")
    parser.add_argument("--json", action="store_true", help="one finding a line, no table")
    return parser


def _run(options: argparse.Namespace, how: str) -> None:
    """Ask the systems, keep and print the findings of every task."""
    from train.measure import findings
    from train.tasks import TASKS
    from train.tasks.systems import RunSystems, SystemSources
    from train.tasks.task import MissingData, TaskInput

    if options.limit < 0:
        raise MlpMemError(f"--limit is {options.limit}; give a number from 1, or 0 to ask all")
    names = [f.name for f in dataclasses.fields(SystemSources)]
    cast = RunSystems(SystemSources(**{name: getattr(options, name) for name in names}))
    systems = cast.systems([name for name in options.systems.split(",") if name])
    corpus = options.run / "corpus" if options.run else None
    wordings = tuple(name for name in options.wordings.split(",") if name)
    asked = TaskInput(systems, options.data, corpus, options.limit, how, wordings=wordings)
    folder = options.out or (options.run / "findings" if options.run else Path("findings"))
    for name in TASKS if options.task == "all" else [options.task]:
        try:
            found = TASKS[name].run(asked)
        except MissingData as error:
            if options.task != "all":
                raise
            sys.stderr.write(f"{name} is left out: {error}\n")
            continue
        findings.save(folder, name, found)
        lines = map(dataclasses.asdict, found)
        printed = [json.dumps(row) for row in lines] if options.json else table(name, found)
        sys.stdout.write("\n".join(printed) + "\n")
        sys.stdout.flush()


def table(name: str, found: Sequence) -> list[str]:
    """Return findings as a table's lines: a row a split and metric, a column a system."""
    systems = list(dict.fromkeys(f.system for f in found))
    cells = {(f.split, f.metric, f.system): f"{f.value:.3f}" for f in found}
    counts = {(f.split, f.metric): f.n for f in found}
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

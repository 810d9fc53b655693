"""Amend a bundle in place: `python -m train.report.bundle gather|adopt RECIPE`.

`gather` replaces the findings in the bundle's results.json with those of a recipe's tasks and
studies; README's tables and the Results tab use them. `adopt` adds a run's LoRA to the bundle,
without running the stage export again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mlpmem.errors import MlpMemError
from mlpmem.loading.bundle import load_bundle, preset_path
from mlpmem.loading.bundle_writer import put_adapter, put_results
from mlpmem.model.lora import load_adapter
from train.config.load import run_of
from train.files import print_line, read_json
from train.measure.findings import load
from train.stages.export import tuned_adapters


def gather(findings: Path, bundle: Path, also: Sequence[Path] = ()) -> int:
    """Return the number of findings put into the bundle's results; MlpMemError for none.

    also: files of other runs' findings, for questions that this bundle's corpus cannot answer.
    """
    rows = load(findings) + [row for path in also for row in read_json(path)]
    if not rows:
        raise MlpMemError(
            f"gather: there are no findings in {findings}; run a task (`python -m train.tasks`) or "
            "a study (`python -m train.studies`) first"
        )
    results = load_bundle(bundle).read_json("results.json")
    put_results(bundle, results | {"findings": rows})
    return len(rows)


def adopt(finetuned: Path, names: list[str], bundle: Path) -> int:
    """Return the number of adapters added to the bundle; MlpMemError if one does not fit."""
    decoder = load_bundle(bundle).model().decoder
    adapters = tuned_adapters(finetuned, names)
    for adapter in adapters:
        load_adapter(decoder, adapter.folder)
    for adapter in adapters:
        put_adapter(bundle, adapter)
    load_bundle(bundle)
    return len(adapters)


def main(argv: list[str] | None = None) -> int:
    """Amend a bundle; return the exit status."""
    args = _parser().parse_args(argv)
    try:
        folder, run = Path(preset_path(args.bundle)), run_of(args.runs, args.recipe)
        if args.command == "adopt":
            count = adopt(run / "finetuned", args.names, folder)
            print_line(f"{count} adapters in {folder.name}/adapters")
        else:
            count = gather(run / "findings", folder, args.also)
            print_line(
                f"{count} findings in {folder.name}/results.json; now `python -m train.report`"
            )
    except (MlpMemError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m train.report.bundle", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    gather_parser, adopt_parser = commands.add_parser("gather"), commands.add_parser("adopt")
    for command in (gather_parser, adopt_parser):
        command.add_argument("recipe", help="the recipe of the run, such as atlas")
        command.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
        command.add_argument("--bundle", help="folder or preset; the embedded one by default")
    adopt_parser.add_argument("names", nargs="+", help="rows of finetuned.json, such as lora_B_...")
    gather_parser.add_argument(
        "--also", type=Path, nargs="*", default=[],
        help="findings of another run, such as runs/wikitext-2/findings/domains.json",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())

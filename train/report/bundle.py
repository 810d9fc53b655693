"""Amend a bundle where it stands: `python -m train.report.bundle gather|adopt RECIPE`.

`gather` puts what tasks and studies found for a recipe into the bundle's results.json, in place of
what was there: README's tables and the Results tab are made from it. `adopt` puts a run's LoRA
beside the bundle's decoder, without running the stage export again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mlpmem.errors import MlpMemError
from mlpmem.loading.bundle import load_bundle, preset_path, put_adapter, put_results
from mlpmem.model.lora import load_adapter
from train.config.load import run_of
from train.files import read_json, say
from train.measure.findings import load
from train.stages.export import tuned_adapters


def gather(findings: Path, bundle: Path, also: Sequence[Path] = ()) -> int:
    """Return how many findings stand in the bundle's results now; MlpMemError for none.

    also: files of other runs' findings, which answer what this bundle's corpus cannot.
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
    """Return how many adapters were put into the bundle; MlpMemError for one that does not fit."""
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
    given = _parser().parse_args(argv)
    try:
        folder, run = Path(preset_path(given.bundle)), run_of(given.runs, given.recipe)
        if given.command == "adopt":
            count = adopt(run / "finetuned", given.names, folder)
            say(f"{count} adapters in {folder.name}/adapters")
        else:
            count = gather(run / "findings", folder, given.also)
            say(f"{count} findings in {folder.name}/results.json; now `python -m train.report`")
    except (MlpMemError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m train.report.bundle", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    gathers, adopts = commands.add_parser("gather"), commands.add_parser("adopt")
    for command in (gathers, adopts):
        command.add_argument("recipe", help="whose run it is, such as atlas")
        command.add_argument("--runs", type=Path, default=Path("runs"), help="where stages are")
        command.add_argument("--bundle", help="folder or preset; the embedded one by default")
    adopts.add_argument("names", nargs="+", help="rows of finetuned.json, such as lora_B_...")
    gathers.add_argument(
        "--also", type=Path, nargs="*", default=[],
        help="findings of another run, as runs/wikitext-2/findings/domains.json",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())

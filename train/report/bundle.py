"""Findings into the bundle they are about: `python -m train.report.bundle atlas`.

README's tables and the Results tab are made from a bundle's results.json; this puts what tasks and
studies found for a recipe there, in place of what was there before.

With `--adapters` it puts a run's LoRA there instead, without running the stage export again.
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


def main(argv: list[str] | None = None) -> int:
    """Put findings, or the adapters that are named, into a bundle; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.report.bundle", description=__doc__)
    parser.add_argument("recipe", nargs="?", default="atlas")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where stages are kept")
    parser.add_argument("--bundle", help="folder or preset; the embedded one by default")
    parser.add_argument(
        "--also", type=Path, nargs="*", default=[],
        help="findings of another run, as runs/wikitext-2/findings/domains.json",
    )  # fmt: skip
    parser.add_argument(
        "--adapters", nargs="+", metavar="NAME", help="rows of finetuned.json, such as lora_B_..."
    )
    given = parser.parse_args(argv)
    try:
        folder, run = Path(preset_path(given.bundle)), run_of(given.runs, given.recipe)
        if given.adapters:
            count = adopt(run / "finetuned", given.adapters, folder)
            say(f"{count} adapters in {folder.name}/adapters")
            return 0
        count = gather(run / "findings", folder, given.also)
    except (MlpMemError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    say(f"{count} findings in {folder.name}/results.json; now `python -m train.report`")
    return 0


if __name__ == "__main__":
    sys.exit(main())


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

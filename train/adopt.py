"""A run's LoRA into a bundle that is there: `python -m train.adopt atlas NAME`.

The stage export does the same for the recipe's own bundle; this spares making the rest anew.
"""

import argparse
import sys
from pathlib import Path

from mlpmem.amend import put_adapter
from mlpmem.errors import MlpMemError
from mlpmem.loading.bundle import load_bundle, preset_path
from mlpmem.model.lora import load_adapter
from train.config.load import run_of
from train.files import say
from train.stages.export import tuned_adapters


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
    """Adopt; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.adopt", description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("names", nargs="+", help="rows of its finetuned.json, such as lora_B_...")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where stages are kept")
    parser.add_argument("--bundle", help="folder or preset; the embedded one")
    given = parser.parse_args(argv)
    try:
        folder = Path(preset_path(given.bundle))
        count = adopt(run_of(given.runs, given.recipe) / "finetuned", given.names, folder)
    except MlpMemError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    say(f"{count} adapters in {folder.name}/adapters")
    return 0


if __name__ == "__main__":
    sys.exit(main())

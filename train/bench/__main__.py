"""Commands: `python -m train.bench step --peer PATH`; see `python -m train.bench --help`."""

import argparse
import sys
from importlib import import_module
from pathlib import Path

BENCHES = {
    "step": "step",
    "search": "search",
    "rows": "rows",
    "datastore": "datastore",
    "gpu": "gpu.run",
}


def main(arguments: list[str] | None = None) -> int:
    """Print a bench's figures, one per line; return the exit status."""
    import torch

    from mlpmem.bench.figures import print_figures
    from train.bench.turns import BenchOptions

    parser = argparse.ArgumentParser("python -m train.bench", description=__doc__.split(";")[0])
    parser.add_argument("bench", choices=BENCHES)
    parser.add_argument(
        "--peer", type=Path, help="checkout of the released code (5b04efb) to compare with"
    )
    parser.add_argument(
        "--keys", type=Path, help="folder of a datastore to search as well (search)"
    )
    parser.add_argument("--entries", type=int, default=100_000, help="synthetic keys (search)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    help = "measure with and without torch.compile (step)"
    parser.add_argument("--compile", action="store_true", help=help)
    help = "file of all figures, written after every part (gpu)"
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help=help)
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    args = vars(parser.parse_args(arguments))
    bench, as_json = import_module(f"train.bench.{BENCHES[args.pop('bench')]}"), args.pop("json")
    return print_figures(bench.bench(BenchOptions(**args)), as_json)


if __name__ == "__main__":
    sys.exit(main())

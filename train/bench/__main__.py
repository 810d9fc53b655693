"""Commands: `python -m train.bench step --peer PATH`; see `python -m train.bench --help`."""

import argparse
import sys
from importlib import import_module
from pathlib import Path

BENCHES = ("step", "search", "rows", "datastore")


def main(arguments: list[str] | None = None) -> int:
    """Print a bench's figures, a line each, as they come; return the exit status."""
    import torch

    from mlpmem.bench.figures import print_figures
    from train.bench.turns import BenchOptions

    parser = argparse.ArgumentParser("python -m train.bench", description=__doc__.split(";")[0])
    parser.add_argument("bench", choices=BENCHES)
    parser.add_argument("--peer", type=Path, help="a checkout of the released code, 5b04efb")
    parser.add_argument("--keys", type=Path, help="a datastore's folder, to search too (search)")
    parser.add_argument("--entries", type=int, default=100_000, help="made keys (search, rows)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    help = "with torch.compile and without (step)"
    parser.add_argument("--compile", action="store_true", help=help)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    given = vars(parser.parse_args(arguments))
    bench, as_json = import_module(f"train.bench.{given.pop('bench')}"), given.pop("json")
    return print_figures(bench.bench(BenchOptions(**given)), as_json)


if __name__ == "__main__":
    sys.exit(main())

"""Serve the page: python app.py. Arguments, a bundle, a page; everything else is in mlpmem/."""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("GRADIO_SSR_MODE", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if (cores := os.environ.get("CPU_CORES", "")).isdecimal():  # a host's word on a share of a machine
    os.environ.setdefault("OMP_NUM_THREADS", cores)

DEFAULT = Path(os.environ.get("MLPMEM_BUNDLE") or Path(__file__).parent / "assets" / "atlas")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=DEFAULT, help="a bundle's folder")
    parser.add_argument("--host", help="127.0.0.1; 0.0.0.0 serves the network too")
    parser.add_argument("--port", type=int, help="7860, or GRADIO_SERVER_PORT")
    parser.add_argument("--no-datastore", action="store_true", help="decoder and memory alone")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Serve until interrupted; returns the process's exit status."""
    args = arguments(argv)
    if not (args.bundle / "manifest.json").is_file():
        sys.stderr.write(
            f"mlpmem: {args.bundle} is no bundle: it has no manifest.json. Clone the repository "
            "again, give --bundle another folder, or make one with python -m train.\n"
        )
        return 2
    from mlpmem.ui import recorded, serve, service

    load = service.open_bundle(args.bundle, datastore=not args.no_datastore)
    return serve.serve(service.Service(load), recorded.read(args.bundle), args.host, args.port)


if __name__ == "__main__":
    sys.exit(main())

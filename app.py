"""Serve the page: python app.py. Arguments, a bundle, a page; everything else is in mlpmem/."""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

DEFAULT = Path(os.environ.get("MLPMEM_BUNDLE") or Path(__file__).parent / "assets" / "atlas")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=DEFAULT, help="a bundle's folder")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves the network too")
    parser.add_argument("--port", type=int, default=7860)
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
    from mlpmem.ui import page, recorded, service

    model = service.Service(service.open_bundle(args.bundle, datastore=not args.no_datastore))
    blocks = page.build(model, recorded.read(args.bundle))
    try:
        blocks.launch(
            server_name=args.host,
            server_port=args.port,
            prevent_thread_lock=True,
            **page.launch_options(),
        )
    except OSError:
        sys.stderr.write(f"mlpmem: port {args.port} is taken or not allowed; give another --port\n")
        return 2
    model.start()
    blocks.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())

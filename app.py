# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "accelerate==1.15.0",
#   "bm25s==0.3.16",
#   "faiss-cpu==1.15.1",
#   "gguf==0.19.0",
#   "gradio==6.31.0",
#   "numpy==2.4.6",
#   "plotly==7.1.0",
#   "psutil>=5.9",
#   "safetensors==0.8.0",
#   "torch==2.13.0",
#   "transformers==5.23.0",
# ]
# ///
"""Serve the page: python app.py."""

import argparse
import gc
import os
import sys
from pathlib import Path

from mlpmem.errors import MlpMemError
from mlpmem.formats import check_gguf, is_gguf, is_saved_store
from mlpmem.loading import hub
from mlpmem.loading.extra_columns import ExtraColumn, extra_column
from mlpmem.loading.hub import HUB_ID
from mlpmem.loading.hub_bundle import fetch_bundle, is_hub_bundle
from mlpmem.loading.shipped import SHIPPED, present, shipped_path
from mlpmem.ui.door import ending, files

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_SSR_MODE", "false")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if (cores := os.environ.get("CPU_CORES", "")).isdecimal():  # set by hosts that share a machine
    os.environ.setdefault("OMP_NUM_THREADS", cores)

DEFAULT = Path(os.environ.get("MLPMEM_BUNDLE") or Path(__file__).parent / "assets" / "atlas")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line; invalid or contradictory options end the process."""
    parser = options()
    args = parser.parse_args(argv)
    if not is_hub_bundle(args.bundle):
        args.bundle = Path(args.bundle)
    if args.preset and (args.decoder or args.memory):
        parser.error("--preset includes decoder and memory; omit --decoder and --memory")
    if not args.decoder and (args.memory or args.train_memory):
        parser.error("--memory and --train-memory need --decoder")
    if args.preset in SHIPPED:
        args.preset, args.bundle = None, shipped_path(args.preset)
    if args.text and not (args.decoder or args.preset):
        parser.error("--text needs --decoder or --preset")
    if args.train_memory and (args.memory or not args.text):
        parser.error("--train-memory needs --text and excludes --memory")
    try:
        check_place(args)
    except MlpMemError as error:
        parser.error(str(error))
    try:
        args.column = columns(args.column)
    except MlpMemError as error:
        parser.error(f"--column: {error}")
    return args


def options() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--bundle", default=DEFAULT, metavar="FOLDER_OR_ID",
        help="a bundle's folder, or owner/name or owner/name@REVISION of the Hub",
    )  # fmt: skip
    parser.add_argument(
        "--preset", help="atlas or smollm2, or the authors' checkpoints: gpt2-large-wikitext103 or "
        "mistral-7b-wikipedia",
    )  # fmt: skip
    parser.add_argument(
        "--download", action="store_true",
        help="download the decoder of --preset smollm2, or of a bundle that only names it; take "
        "the newest commit of a bundle of the Hub",
    )  # fmt: skip
    parser.add_argument(
        "--decoder", help="a transformers folder, .gguf file or Hub id, in place of a bundle"
    )
    parser.add_argument("--memory", help="the decoder's memory, a folder or Hub id")
    parser.add_argument(
        "--text",
        type=Path,
        nargs="+",
        default=[],
        help="texts of the datastore: .txt, .md, .jsonl (also .gz), .html and .pdf files, folders "
        "or patterns; or a datastore that the page saved, as a .zip or unpacked",
    )
    parser.add_argument(
        "--train-memory", action="store_true", help="distil a memory from --text in the background"
    )
    parser.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16", "int8", "int4"],
        help="dtype of --decoder or --preset; auto measures; int8, int4: less exact, CPU only",
    )  # fmt: skip
    parser.add_argument(
        "--device",
        default="cpu",
        help="device of --decoder or --preset, such as cuda; auto uses all GPUs",
    )
    parser.add_argument("--host", help="default 127.0.0.1; 0.0.0.0 serves the network")
    parser.add_argument("--port", type=int, help="default GRADIO_SERVER_PORT or 7860")
    parser.add_argument(
        "--column", action="append", default=[], metavar="NAME=FOLDER",
        help="extra columns, given as folders: a tuned decoder, LoRA or another memory",
    )  # fmt: skip
    parser.add_argument("--no-datastore", action="store_true", help="decoder and memory only")
    parser.add_argument(
        "--trust-proxy", action="store_true",
        help="take visitors' addresses from X-Forwarded-For, which the proxy before the page sets",
    )  # fmt: skip
    return parser


def check_place(args: argparse.Namespace) -> None:
    """Raise MlpMemError for missing files, devices or presets, without network access."""
    check_gguf(args.decoder or "")
    for name in ("decoder", "memory"):
        place = vars(args)[name]
        known = Path(place or "").is_dir() or name == "decoder" and is_gguf(place or "")
        if place and not known:
            if Path(place).exists() or not HUB_ID.fullmatch(place):
                raise MlpMemError(f"--{name} {place} is neither a local folder nor a Hub id")
    if args.text:
        check_texts(args.text, args.train_memory)
    port = args.port if args.port is not None else os.environ.get("GRADIO_SERVER_PORT") or 7860
    if not str(port).isdecimal() or not 1 <= int(port) <= 65535:
        raise MlpMemError(f"port {port} is not valid; use 1 to 65535")
    if args.preset:
        from mlpmem.loading.presets import find_preset

        find_preset(args.preset)
    if args.device != "cpu" and (args.decoder or args.preset):
        from mlpmem.loading.capacity import available_bytes

        available_bytes(args.device)


def check_texts(sources: list[Path], train: bool) -> None:
    """Raise MlpMemError unless --text names texts, or one saved datastore."""
    from mlpmem.retrieval.texts import files_of

    saved = [source for source in sources if is_saved_store(source)]
    if saved and (train or len(sources) > 1):
        what = "--train-memory" if train else "other texts"
        raise MlpMemError(f"--text {saved[0]} is a saved datastore, which excludes {what}")
    for source in sources if not saved else ():
        try:
            files_of(source)
        except MlpMemError as error:
            raise MlpMemError(f"--text {error}") from error


def columns(texts: list[str]) -> list[ExtraColumn]:
    """Return the columns of NAME=FOLDER texts; MlpMemError for an invalid or repeated name."""
    parsed = [extra_column(text) for text in texts]
    if len({column.name for column in parsed}) < len(parsed):
        raise MlpMemError("a name is given twice; give every column its own")
    return parsed


def opened(args: argparse.Namespace) -> tuple:
    """Return (load, bundle with the recordings or None, note for the status line, extras).

    If a preset is not available, the bundle is served, with the reason in the note.
    """
    from mlpmem.ui.service import loads, offers

    form = None if args.dtype == "auto" else args.dtype
    options = {"device": args.device, "form": form, "plain": bool(args.column)}
    note = ""
    if args.decoder:
        parts = {"text": args.text, "train": args.train_memory}
        memory = bool(args.memory or args.train_memory)
        extras = offers.of_parts(args.column, memory, bool(args.text))
        return loads.open_parts(args.decoder, args.memory, **parts, **options), None, note, extras
    if args.preset:
        from mlpmem.loading.presets import check_preset

        try:
            check_preset(args.preset, _dtype(args.dtype), args.device, say)
            extras = offers.of_parts(args.column, True, bool(args.text))
            return loads.open_preset(args.preset, args.text, **options), None, note, extras
        except MlpMemError as error:
            note = f"{error}. The bundle {args.bundle.name} is served instead."
            say(note)
    if line := ignored(args):
        say(line)
    datastore = not args.no_datastore
    extras = offers.of_bundle(args.bundle, args.column, datastore)
    return loads.open_bundle(args.bundle, datastore=datastore), args.bundle, note, extras


def shipped_models(bundle: Path, datastore: bool) -> tuple[str, list]:
    """Return (the name of a shipped bundle, the other shipped ones as the page's models).

    Any other bundle is served by itself.
    """
    names = [name for name in present() if name != bundle.name]
    if bundle.name not in SHIPPED or bundle.resolve() != shipped_path(bundle.name).resolve():
        return "", []
    from mlpmem.ui.models import of_bundle

    return bundle.name, [of_bundle(name, shipped_path(name), datastore) for name in names]


def served_name(args: argparse.Namespace) -> str:
    """Return the name by which programs ask for a decoder or preset."""
    return args.preset or Path(args.decoder).name.removesuffix(".gguf")


def ignored(args: argparse.Namespace) -> str:
    """Return a line on options that are ignored for bundles, "" without any.

    A bundle's results and recordings were measured in float32, or agree with its decoder's own 4
    bits; its LoRA columns need unpacked weights.
    """
    plain = {"dtype": (None, "auto", "float32"), "device": ("cpu",)}
    options = [
        f"--{name} {vars(args)[name]}" for name in plain if vars(args)[name] not in plain[name]
    ]
    if not options:
        return ""
    return (
        f"{' and '.join(options)} {'are' if len(options) > 1 else 'is'} ignored: the bundle "
        f"{args.bundle.name} is served on the CPU, in float32 or in its decoder's own 4 bits. In "
        "Python, mlpmem.load accepts both."
    )


def _dtype(form: str | None):
    """Return the dtype of a form of weights, with a late import of torch."""
    from mlpmem.fast.linear import form_of

    return form_of(form)[0] if form and form != "auto" else None


def say(line: str, share: float | None = None) -> None:
    """Write a line to the terminal, but not a download's progress, which its client draws."""
    if not share:
        sys.stderr.write(f"mlpmem: {line}\n")


def main(argv: list[str] | None = None) -> int:
    """Serve until interrupted; return the process's exit status."""
    args = arguments(argv)
    ending.exit_on_signals()
    if not args.decoder and isinstance(args.bundle, str):
        try:
            args.bundle = fetch_bundle(args.bundle, newest=args.download, tell=say)
        except MlpMemError as error:
            say(str(error))
            return 2
    names = [name for name in (args.decoder, args.memory) if name and not Path(name).exists()]
    if not (args.preset or names):  # only Hub ids need the network
        hub.stay_offline()
    if not args.decoder and not (args.bundle / "manifest.json").is_file():
        say(
            f"{args.bundle} is not a bundle: it has no manifest.json. Clone the repository "
            "again, give --bundle another folder, or make one with python -m train."
        )
        return 2
    if args.trust_proxy:
        os.environ["MLPMEM_TRUST_PROXY"] = "1"
    gc.disable()  # collections during imports take a fifth of the start
    try:
        files.claim()  # before Gradio is imported, which reads GRADIO_TEMP_DIR
        from mlpmem.ui import page
    except MlpMemError as error:
        say(str(error))
        return 2
    from mlpmem.ui.models import PageModel
    from mlpmem.ui.recordings import recorded
    from mlpmem.ui.service import loads, service

    load, bundle, note, extras = opened(args)
    recordings = recorded.read(bundle) if bundle else recorded.Recorded()
    shipped, others = shipped_models(bundle, not args.no_datastore) if bundle else ("", [])
    needed = loads.needed_by(bundle) if bundle else None
    name = shipped if bundle else served_name(args)
    serving = service.Service(load, note, extras, name, needed)
    model = PageModel.named(shipped, serving, recordings)
    return page.serve([model, *others], args.host, args.port, args.download)


if __name__ == "__main__":
    sys.exit(main())

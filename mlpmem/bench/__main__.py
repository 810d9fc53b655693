"""Commands: `python -m mlpmem.bench`, or some of its benches; see `python -m mlpmem.bench -h`."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from mlpmem.bench.figures import Figure, print_figures
from mlpmem.errors import MlpMemError

BENCHES = ("decode", "systems", "search", "prompt", "bytes")  # of a bundle
PROMPT = "Question: What is the capital of Peru? Answer:"


def main(arguments: list[str] | None = None) -> int:
    """Print figures, a line each, as they come; return the exit status."""
    parser = argparse.ArgumentParser("python -m mlpmem.bench", description=main.__doc__)
    known = f"some of {', '.join(BENCHES)} (all of these unless named), engine, streams, busy"
    parser.add_argument("benches", nargs="*", default=BENCHES, metavar="bench", help=known)
    parser.add_argument("--bundle", help="a bundle's folder; the embedded one by default")
    parser.add_argument("--entries", type=int, nargs="+", help="numbers of keys to search")
    parser.add_argument("--peer", type=Path, help="engine: a checkout of the released code")
    parser.add_argument(
        "--family", choices=["gpt2", "llama"], default="gpt2", help="engine: of what"
    )
    parser.add_argument("--gguf", type=Path, help="the file of streams, busy, or of engine, llama")
    parser.add_argument(
        "--peer-llama-cpp", type=Path, metavar="FOLDER",
        help="engine, llama: where `npm install node-llama-cpp` was run",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=1, help="engine, llama: of both")
    parser.add_argument(
        "--rounds", type=int, default=5, help="streams, busy, or engine, llama: turns measured"
    )
    parser.add_argument("--prompt", type=int, default=32, help="engine: tokens read first")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    given = parser.parse_args(arguments)
    if min(given.entries or [1]) < 1:
        parser.error("--entries takes numbers from 1")
    if given.family == "llama" and given.gguf is None:
        parser.error("--family llama needs a model: give --gguf FILE")
    if given.family == "llama":
        from mlpmem.bench import llama

        options = {"threads": given.threads, "rounds": given.rounds}
        made = llama.bench(given.gguf, given.peer_llama_cpp, **options)
        return print_figures(made, given.json)
    for name in {"streams", "busy"} & {*given.benches}:
        if len(given.benches) > 1:
            parser.error(f"{name} is measured on its own; leave the other benches out")
        made = of_answers(name, given.bundle, given.gguf, given.rounds)
        return print_figures(made, given.json)
    made = figures(given.benches, given.bundle, given.entries, given.peer, given.prompt)
    return print_figures(made, given.json)


def of_answers(bench: str, bundle: str | None, gguf: Path | None, rounds: int) -> Iterator[Figure]:
    """Yield the figures of "streams" or "busy": a GGUF file in 4 bits, or a bundle's decoder."""
    import mlpmem
    from mlpmem.bench import busy, streams

    if gguf is None:
        model, name = mlpmem.load(bundle, datastore=False, dtype="auto"), "bundle"
    else:
        model, name = mlpmem.load(decoder=gguf, dtype="int4"), "gguf"
    yield from (busy if bench == "busy" else streams).bench(model, name, rounds)


def figures(
    benches: Sequence[str] = BENCHES,
    bundle: str | None = None,
    entries: Sequence[int] | None = None,
    peer: Path | None = None,
    tokens: int = 32,
) -> Iterator[Figure]:
    """Yield the figures of some benches, on this machine; all but "engine" are of a bundle.

    Its weights are as the page serves them. Without a datastore there is nothing to search. tokens
    is the length of engine's prompt.
    """
    known = (*BENCHES, "engine")
    if unknown := [name for name in benches if name not in known]:
        raise MlpMemError(f"bench {unknown[0]!r} is not known; there is {', '.join(known)}")
    from mlpmem.bench import decode, engine, prompts, search, systems
    from mlpmem.loading.bundle import load_bundle, preset_path
    from mlpmem.loading.registry import SystemRegistry

    if "engine" in benches:
        yield from engine.bench(engine.Shape(prompt=tokens), peer)
    if not set(benches) & set(BENCHES):
        return
    folder = preset_path(bundle)
    opened = load_bundle(folder)
    model = opened.model(own_bits=True)
    if opened.searches:
        opened.attach(model)
    elif set(benches) == {"search"}:
        raise MlpMemError("search: this bundle has no datastore; name another with --bundle")
    prompt = model.decoder.encode(PROMPT)
    cast = SystemRegistry(model, opened.adapters, opened.documents if find_spec("bm25s") else None)
    runs = {
        "decode": lambda: decode.bench(model, prompt),
        "systems": lambda: systems.bench(cast.systems(()), PROMPT),
        "search": lambda: search.bench(model, entries or search.ENTRIES),
        "prompt": lambda: prompts.bench(model, prompt),
        "bytes": lambda: prompts.bytes_of(model, folder, opened.decoder_file),
    }
    for name in BENCHES:
        if name in benches and (name != "search" or opened.searches):
            yield from runs[name]()


if __name__ == "__main__":
    sys.exit(main())

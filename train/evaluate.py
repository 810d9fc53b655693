"""Stage evaluate: every source at every lambda, fine-tuned decoders beside -> results.json."""

import dataclasses
from pathlib import Path

import numpy as np

from mlpmem.datastore import Datastore
from mlpmem.decoder import Decoder
from mlpmem.memory import Memory
from train.grid import LAMBDAS, Sources
from train.measure import CHOOSING, GROUPS, Measured, Test, shares
from train.stage import Context, finished_manifest, read_json, write_json


def evaluate(context: Context) -> dict:
    """Return counts; writes results.json, one schema for page, README and exports."""
    config, inputs = context.config, context.inputs
    memory = Memory.load(inputs["memory"]).float().eval()
    decoder = Decoder.load(inputs["decoder"], depth=memory.config.depth)
    memory.bind(decoder)
    store = Datastore.load(inputs["datastore"])
    test = Test.load(inputs["corpus"], decoder.tokenizer, config.questions, context.seed)
    measured = test.measure(Sources(decoder, memory, store, config.k, config.temperature))
    curves = {source: curve(measured, source) for source in ("memory", "knn")}
    lmbda = choose_lambda(list(curves.values()))
    seconds = {name: finished_manifest(path)["seconds"] for name, path in inputs.items()}
    results = {
        "v": 1,
        "how": "python -m train evaluate",
        "choosing": CHOOSING,
        "config": dataclasses.asdict(config),
        "lmbda": dict.fromkeys(curves, lmbda),
        "systems": [
            _system(measured, "lm", "decoder", 0.0, decoder.bytes, seconds["decoder"]),
            _system(measured, "memory", "decoder + memory", lmbda, memory.bytes,
                    seconds["memory"] + seconds["targets"] + seconds["datastore"]),
            _system(measured, "knn", "decoder + kNN", lmbda, store.bytes,
                    seconds["datastore"]),
        ],
        "lambda_curves": curves,
        "forgetting": read_json(inputs["finetuned"] / "finetuned.json"),
        "corpus": finished_manifest(inputs["corpus"])["counts"],
        "keys": len(store),
    }  # fmt: skip
    write_json(context.folder / "results.json", results)
    return {"questions": len(test.questions.rows), "lmbda": lmbda}


def curve(measured: Measured, source: str) -> dict[str, list[float]]:
    """Return accuracy and perplexity over LAMBDAS, by cell and group."""
    rows: dict[str, list[float]] = {"lmbdas": list(LAMBDAS)}
    for lmbda in LAMBDAS:
        found = shares(measured.accuracy(source, lmbda))
        found |= {f"ppl_{g}": p for g, p in measured.perplexity(source, lmbda).items()}
        for key, value in found.items():
            rows.setdefault(key, []).append(value)
    return rows


def choose_lambda(curves: list[dict[str, list[float]]]) -> float:
    """Return the one lambda that serves all sources: the page has a single slider.

    It has the best mean accuracy on dev questions over sources and groups, the smallest of equals.
    """
    cells = [f"{group}_{CHOOSING}" for group in GROUPS]
    means = np.mean([rows[cell] for rows in curves for cell in cells], axis=0)
    return LAMBDAS[int(np.argmax(means.round(9)))]


def _system(
    measured: Measured, name: str, label: str, lmbda: float, size: int, seconds: float
) -> dict:
    """Return one system's entry: lambda 0 of any source is the decoder alone."""
    source = "memory" if name == "lm" else name
    return {
        "name": name,
        "label": label,
        "lmbda": None if name == "lm" else lmbda,
        "accuracy": measured.accuracy(source, lmbda),
        "ppl": measured.perplexity(source, lmbda),
        "bytes": size,
        "train_seconds": seconds,
    }


def load_results(folder: Path) -> dict:
    """Return the results of a finished evaluate stage."""
    return read_json(folder / "results.json")

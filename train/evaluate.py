"""Stage evaluate: every source at every lambda -> results.json, one schema for any corpus.

What is measured is the corpus's own: questions and text by group (`measure.py`), or the perplexity
of a text (`perplexity.py`). Decoder, memory, datastore, sizes and seconds are the same for all.
"""

import dataclasses
from pathlib import Path

from mlpmem.datastore import Datastore
from mlpmem.decoder import Decoder
from mlpmem.memory import Memory
from train.measure import measure_atlas
from train.perplexity import measure_text
from train.stage import Context, finished_manifest, read_json, write_json

MEASURES = {"atlas": measure_atlas, "text": measure_text}  # by kind of corpus
LABELS = {"lm": "decoder", "memory": "decoder + memory", "knn": "decoder + kNN"}


def evaluate(context: Context) -> dict:
    """Return counts; writes results.json, one schema for page, README and exports."""
    config, inputs = context.config, context.inputs
    memory = Memory.load(inputs["memory"]).float().eval()
    decoder = Decoder.load(inputs["decoder"], depth=memory.config.depth)
    memory.bind(decoder)
    store = Datastore.load(inputs["datastore"])
    corpus = finished_manifest(inputs["corpus"])
    measured = MEASURES[corpus["config"]["kind"]](context, decoder, memory, store)
    seconds = {name: finished_manifest(path)["seconds"] for name, path in inputs.items()}
    beyond = {
        "lm": (decoder.bytes, seconds["decoder"]),
        "memory": (memory.bytes, sum(seconds[n] for n in ("memory", "targets", "datastore"))),
        "knn": (store.bytes, seconds["datastore"]),
    }
    results = {
        "v": 1,
        "how": "python -m train evaluate",
        "config": dataclasses.asdict(config),
        "forgetting": read_json(inputs["finetuned"] / "finetuned.json"),
        "corpus": corpus["counts"],
        "keys": len(store),
    } | measured
    results["systems"] = [
        {
            "name": name,
            "label": LABELS[name],
            "lmbda": results["lmbda"].get(name),
            **measured["systems"][name],
            "bytes": beyond[name][0],
            "train_seconds": beyond[name][1],
        }
        for name in LABELS
    ]
    write_json(context.folder / "results.json", results)
    return {"lmbda": results["lmbda"]}


def load_results(folder: Path) -> dict:
    """Return the results of a finished evaluate stage."""
    return read_json(folder / "results.json")

"""Stage evaluate: every source at every lambda -> results.json, one schema for any corpus.

What is measured is the kind of corpus's own (`run/kinds.py`). Decoder, memory, datastore, sizes and
seconds are the same for all.
"""

import dataclasses
from functools import partial
from pathlib import Path

from mlpmem.api import Model
from mlpmem.engine.router import load_routers
from mlpmem.engine.settings import Settings
from mlpmem.engine.trace import AUTO
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.retriever import BulkRetriever
from train.files import read_json, write_json
from train.run.kinds import kind_of
from train.run.stage import StageContext, finished_manifest

LABELS = {"lm": "decoder", "memory": "decoder + memory", "knn": "decoder + kNN"}
ROUTED = {"memory": AUTO, "knn": f"{AUTO}_knn"}  # as systems are named, by whose lambda it is


def evaluate(context: StageContext) -> dict:
    """Return counts; writes results.json, one schema for page, README and exports."""
    config, inputs = context.config, context.inputs
    memory = Memory.load(inputs["memory"]).float().eval()
    decoder = Decoder.load(inputs["decoder"], depth=memory.config.depth)
    memory.bind(decoder)
    store = Datastore.load(inputs["datastore"])
    corpus, kind = finished_manifest(inputs["corpus"]), kind_of(inputs["corpus"])
    measured = kind.measure(context, decoder, memory, store)
    seconds = {name: finished_manifest(path)["seconds"] for name, path in inputs.items()}
    learning = sum(seconds[name] for name in ("memory", "targets", "datastore"))
    beyond = {
        "lm": (decoder.bytes, seconds["decoder"]),
        "memory": (memory.bytes, learning),
        "knn": (store.bytes, seconds["datastore"]),
        "auto": (memory.bytes, learning + seconds["router"]),
        "auto_knn": (store.bytes, seconds["datastore"] + seconds["router"]),
    }
    lmbdas, labels = dict(measured["lmbda"]), dict(LABELS)
    routed = partial(_routed, context, decoder, memory, store, measured["lmbda"])
    for source, made in kind.by_token(context, routed).items():
        name = ROUTED[source]
        measured["systems"][name], lmbdas[name] = made, AUTO
        labels[name] = f"{LABELS[source]}, lambda by token"
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
            "label": labels[name],
            "lmbda": lmbdas.get(name),
            **measured["systems"][name],
            "bytes": beyond[name][0],
            "train_seconds": beyond[name][1],
        }
        for name in labels
    ]
    write_json(context.folder / "results.json", results)
    return {"lmbda": results["lmbda"]}


def _routed(
    context: StageContext,
    decoder: Decoder,
    memory: Memory,
    store: Datastore,
    lmbda: dict[str, float],
) -> Model:
    """Return the model whose lambda is chosen for every token, by the routers of single sources."""
    config, routers = context.config, load_routers(context.inputs["router"])
    settings = Settings(lmbda=lmbda, k=config.k, knn_temperature=config.temperature)
    routers = {source: routers[source] for source in ROUTED if source in routers}
    model = Model(decoder, memory, settings, routers=routers)
    model.attach_datastore(store, BulkRetriever(store.keys, decoder.device))
    return model


def load_results(folder: Path) -> dict:
    """Return the results of a finished evaluate stage."""
    return read_json(folder / "results.json")

"""Stage evaluate: every system at every lambda, in one results.json schema for any corpus.

The corpus kind chooses the metrics (`run/kinds.py`); all kinds report bytes and seconds.
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
ROUTED = {"memory": AUTO, "knn": f"{AUTO}_knn"}  # the system's name when its router sets lambda


def evaluate(context: StageContext) -> dict:
    """Return counts; writes results.json, which the page, README and exports read."""
    config, inputs = context.config, context.inputs
    memory = Memory.load(inputs["memory"]).float().eval()
    decoder = Decoder.load(inputs["decoder"], depth=memory.config.depth)
    memory.bind(decoder)
    store = Datastore.load(inputs["datastore"])
    corpus, kind = finished_manifest(inputs["corpus"]), kind_of(inputs["corpus"])
    measured = kind.measure(context, decoder, memory, store)
    seconds = {name: finished_manifest(path)["seconds"] for name, path in inputs.items()}
    training = sum(seconds[name] for name in ("memory", "targets", "datastore"))
    costs = {  # (bytes, seconds)
        "lm": (decoder.bytes, seconds["decoder"]),
        "memory": (memory.bytes, training),
        "knn": (store.bytes, seconds["datastore"]),
        "auto": (memory.bytes, training + seconds["router"]),
        "auto_knn": (store.bytes, seconds["datastore"] + seconds["router"]),
    }
    lmbdas, labels = dict(measured["lmbda"]), dict(LABELS)
    routed = partial(_routed, context, decoder, memory, store, measured["lmbda"])
    for system, scores in kind.measure_routed(context, routed).items():
        name = ROUTED[system]
        measured["systems"][name], lmbdas[name] = scores, AUTO
        labels[name] = f"{LABELS[system]}, lambda by token"
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
            "bytes": costs[name][0],
            "train_seconds": costs[name][1],
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
    """Return the model whose memory's and datastore's routers set lambda for every token."""
    config, routers = context.config, load_routers(context.inputs["router"])
    settings = Settings(lmbda=lmbda, k=config.k, knn_temperature=config.temperature)
    routers = {system: routers[system] for system in ROUTED if system in routers}
    model = Model(decoder, memory, settings, routers=routers)
    model.attach_datastore(store, BulkRetriever(store.keys, decoder.device))
    return model


def load_results(folder: Path) -> dict:
    """Return the results of a finished evaluate stage."""
    return read_json(folder / "results.json")

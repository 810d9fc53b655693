"""Stage evaluate: every source at every lambda -> results.json, one schema for any corpus.

What is measured is the corpus's own: questions and text by group (`measure/atlas.py`), or the
perplexity of a text (`measure/text.py`). Decoder, memory, datastore, sizes and seconds are the same
for all. An atlas is asked under the routers' lambdas too.
"""

import dataclasses
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
from train.measure.atlas import Test, measure_atlas
from train.measure.by_token import by_token
from train.measure.text import measure_text
from train.run.stage import Context, finished_manifest

MEASURES = {"atlas": measure_atlas, "text": measure_text}  # by kind of corpus
LABELS = {"lm": "decoder", "memory": "decoder + memory", "knn": "decoder + kNN"}
ROUTED = {"memory": AUTO, "knn": f"{AUTO}_knn"}  # as systems are named, by whose lambda it is


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
    learning = sum(seconds[name] for name in ("memory", "targets", "datastore"))
    beyond = {
        "lm": (decoder.bytes, seconds["decoder"]),
        "memory": (memory.bytes, learning),
        "knn": (store.bytes, seconds["datastore"]),
        "auto": (memory.bytes, learning + seconds["router"]),
        "auto_knn": (store.bytes, seconds["datastore"] + seconds["router"]),
    }
    lmbdas, labels = dict(measured["lmbda"]), dict(LABELS)
    if corpus["config"]["kind"] == "atlas":
        for source, made in _by_token(context, decoder, memory, store, measured["lmbda"]).items():
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


def _by_token(
    context: Context, decoder: Decoder, memory: Memory, store: Datastore, lmbda: dict[str, float]
) -> dict[str, dict]:
    """Return what memory and datastore make of the atlas under their routers' lambdas."""
    config, routers = context.config, load_routers(context.inputs["router"])
    settings = Settings(lmbda=lmbda, k=config.k, knn_temperature=config.temperature)
    routers = {source: routers[source] for source in ROUTED if source in routers}
    model = Model(decoder, memory, settings, routers=routers)
    model.attach_datastore(store, BulkRetriever(store.keys, decoder.device))
    corpus = context.inputs["corpus"]
    test = Test.load(corpus, decoder.tokenizer, config.questions, context.seed)
    return by_token(model, test)


def load_results(folder: Path) -> dict:
    """Return the results of a finished evaluate stage."""
    return read_json(folder / "results.json")

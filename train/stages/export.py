"""Stage export: the bundle, with results, examples and questions."""

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from mlpmem.api import Model
from mlpmem.engine.fused import Settings
from mlpmem.engine.router import load_routers
from mlpmem.engine.trace import Trace
from mlpmem.errors import MlpMemError
from mlpmem.loading.bundle import load_bundle
from mlpmem.loading.bundle_writer import save_bundle
from mlpmem.loading.decoder_file import DecoderFile
from mlpmem.loading.extra_columns import ExtraColumn
from mlpmem.loading.manifest import CHAT, QUESTIONS, TEXT
from mlpmem.loading.packages import PACKAGE
from mlpmem.loading.recorder import completed
from mlpmem.model.decoder import Decoder
from mlpmem.model.lora import CONFIG
from mlpmem.model.memory import Memory
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.key_cache import Fingerprint
from mlpmem.retrieval.retriever import make_retriever
from train.config.tables import ExportConfig
from train.files import read_json
from train.run.kinds import kind_of
from train.run.stage import StageContext, finished_manifest
from train.stages.evaluate import load_results


def make_bundle(context: StageContext) -> dict:
    """Return counts; writes the recipe's bundle.

    A decoder that a package has is named by its file. Such a bundle has no datastore, whose keys
    would be larger than all else: its documents are read and searched by words.
    """
    inputs, config = context.inputs, context.config
    results = load_results(inputs["evaluate"])
    file = named_file(inputs["decoder"], config.hub)
    kind = kind_of(inputs["corpus"])
    store = Datastore.load(inputs["datastore"])
    model = _model(inputs, results, config, file)
    if file is None:
        model.attach_datastore(store, make_retriever(None, store.keys))
    adapters = tuned_adapters(inputs["finetuned"], config.adapters)  # checked before the slow part
    content = kind.bundle_examples(model, inputs["corpus"], config, context.seed)
    results["cost"] = cost(content.answered) | {
        "keys": len(store),
        "build_seconds": finished_manifest(inputs["datastore"])["seconds"],
    }
    results["stages"] = {
        name: {k: finished_manifest(path)[k] for k in ("seconds", "peak_memory_bytes")}
        for name, path in inputs.items()
    }
    save_bundle(
        context.folder / config.name,
        decoder=model.decoder,
        memory=model.memory,
        documents=store.documents
        if file is None
        else kind.readable(store.documents, model.decoder),
        settings=model.settings,
        fingerprint=Fingerprint.of(store.keys) if file is None else None,
        decoder_file=file,
        routers=model.routers,
        adapters=adapters,
        results=results,
        examples=content.examples,
        questions=content.questions,
        traces=[completed(model, row) for row in content.recorded],
        attributions=_attributions(inputs["corpus"] / "attributions.json"),
        name=config.name,
        form=_form(model.decoder, kind.has_questions),
        created_with={"torch": torch.__version__, "python": platform.python_version()},
    )
    load_bundle(context.folder / config.name)
    return {"examples": len(content.examples), "traces": len(content.recorded)}


def named_file(decoder: Path, hub: str) -> DecoderFile | None:
    """Return the file of a decoder stage that used a package's file unchanged, else None."""
    config = finished_manifest(decoder)["config"]
    if config["epochs"] or not config["source"].startswith(PACKAGE):
        return None
    return DecoderFile.of_package(config["source"], hub)


def tuned_adapters(finetuned: Path, names: Sequence[str]) -> list[ExtraColumn]:
    """Return the LoRA adapters of rows of finetuned.json as columns "finetuned", "finetuned_2" ...

    MlpMemError if a row does not exist, is not a LoRA, or its weights were not kept.
    """
    path = finetuned / "finetuned.json"
    rows = {row["name"]: row for row in (read_json(path) if names and path.is_file() else [])}
    kept = [n for n, row in rows.items() if row["rank"] and (finetuned / n / CONFIG).is_file()]
    columns = []
    for name in names:
        if name not in kept:
            raise MlpMemError(
                f"[export] adapters must name kept LoRAs of {finetuned}; got {name!r}. It has "
                f"{', '.join(kept) or 'none'}: correct the recipe, or set [finetuned] lora"
            )
        row, column = rows[name], f"finetuned_{len(columns) + 1}" if columns else "finetuned"
        folder = finetuned / name
        columns.append(ExtraColumn(column, folder, "adapter", row["label"], row["seconds"]))
    return columns


def _model(
    inputs: dict[str, Path], results: dict, config: ExportConfig, file: DecoderFile | None
) -> Model:
    """Return the model with the bundle's settings, without its datastore.

    A named decoder is read from its file, as visitors read it; only the memory's router goes along.
    """
    settings = Settings(
        lmbda=results["lmbda"],
        k=results["config"]["k"],
        knn_temperature=results["config"]["temperature"],
        auto=config.auto,
    )
    memory = Memory.load(inputs["memory"]).float().eval()
    folder = inputs["decoder"] if file is None else file.find()
    decoder = Decoder.load(folder, depth=memory.config.depth)
    routers = load_routers(inputs["router"])
    if file is not None:
        routers = {system: routers[system] for system in routers.keys() & {"memory"}}
    return Model(decoder, memory, settings, config.name, routers)


def cost(answered: list[dict[str, Trace]]) -> dict:
    """Return the median milliseconds per token and the bytes of every part."""
    costs = [trace.cost for traces in answered for trace in traces.values()]
    parts = ("decoder_ms", "memory_ms", "search_ms", "prefill_ms")
    sizes = ("decoder_bytes", "memory_bytes", "datastore_bytes")
    times = {p: [c[p] for c in costs if c.get(p)] for p in parts}
    return {p: round(median(values), 3) for p, values in times.items() if values} | {
        s: max(c.get(s, 0) for c in costs) for s in sizes
    }


def _form(decoder: Decoder, has_questions: bool) -> str:
    """Return the form of a bundle's prompts; questions are chats where there is a template."""
    chats = bool(getattr(decoder.tokenizer, "chat_template", None))
    return (CHAT if chats else QUESTIONS) if has_questions else TEXT


def _attributions(path: Path) -> list[str]:
    """Return one line per source of facts: name, version, licence, what was taken."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [
        ", ".join(str(value) for value in row.values()) if isinstance(row, dict) else str(row)
        for row in rows
    ]

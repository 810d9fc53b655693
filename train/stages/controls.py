"""Stage controls: memories that differ from the recipe's in one setting, measured like it.

With alpha 0 a memory learns only the text, by cross-entropy; the gap to the recipe's memory is what
the retriever's targets are worth. Each memory has a folder named after the setting that differs.
"""

import dataclasses
import time
from pathlib import Path

from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from train.config.load import fill
from train.config.tables import MemoryFitConfig
from train.files import read_json, write_json
from train.measure.atlas import MeasuredModel, Test, choose_lambda, curve, shares
from train.run.kinds import kind_of
from train.run.stage import StageContext, finished_manifest
from train.stages.memory import make_memory

ROW = "row.json"


def make_controls(context: StageContext) -> dict:
    """Return counts; writes controls.json and one folder per memory.

    A killed run resumes after the last finished memory.
    """
    settings = context.config.memories if kind_of(context.inputs["corpus"]).has_questions else ()
    controls = [_control(context, changes) for changes in settings]
    write_json(context.folder / "controls.json", [c["row"] for c in controls])
    scratch = [f"{c['row']['name']}/{name}" for c in controls for name in c["scratch"]]
    peak = max((c["workers_memory"] for c in controls), default=0)
    return {"memories": len(controls), "scratch": scratch, "workers_memory": peak}


def name_of(changes: dict) -> str:
    """Return the name of a control: "alpha_0", "blocks_3-noise_0.2"."""
    parts = [
        f"{key}_{value:g}" if isinstance(value, (int, float)) else f"{key}_{value}"
        for key, value in changes.items()
    ]
    return "-".join(parts)


def _control(context: StageContext, changes: dict) -> dict:
    """Return {row, scratch, workers_memory} of a control; trains it unless an earlier run did.

    scratch: files needed only to resume; workers_memory: peak bytes.
    """
    folder = context.folder / name_of(changes)
    folder.mkdir(exist_ok=True)
    if not (folder / ROW).is_file():
        recipe = finished_manifest(context.inputs["memory"])["config"]
        recipe = {k: v for k, v in recipe.items() if k != "seed"} | changes
        recipe = fill(MemoryFitConfig, recipe, "[controls] memories")
        started = time.perf_counter()
        own = dataclasses.replace(context, folder=folder, config=recipe)
        counts = make_memory(own, detached=True)
        seconds = round(counts["earlier_seconds"] + time.perf_counter() - started, 1)
        row = _measure(context, folder, changes) | {"seconds": seconds}
        extra = {k: counts[k] for k in ("scratch", "workers_memory")}
        write_json(folder / ROW, {"row": row} | extra)
    return read_json(folder / ROW)


def _measure(context: StageContext, folder: Path, changes: dict) -> dict:
    """Return a control's row: accuracy and perplexity at its own best lambda on dev wordings."""
    memory = Memory.load(folder).float().eval()
    decoder = Decoder.load(context.inputs["decoder"], depth=memory.config.depth)
    most = context.config.questions
    test = Test.load(context.inputs["corpus"], decoder.tokenizer, most, context.seed)
    measured = test.measure(MeasuredModel(decoder, memory.bind(decoder)))
    lmbda = choose_lambda(curve(measured, "memory"))
    return {
        "name": name_of(changes),
        "label": f"decoder + memory, {', '.join(f'{k} {v}' for k, v in changes.items())}",
        "differs": changes,
        "lmbda": lmbda,
        "bytes": memory.bytes,
        **shares(measured.accuracy("memory", lmbda)),
        **{f"ppl_{g}": p for g, p in measured.perplexity("memory", lmbda).items()},
    }

"""Stage controls: memories trained like the recipe's but for one thing, measured like it.

With alpha 0 a memory learns from the text alone, by cross-entropy: whatever it lacks is what the
retriever's signal is worth. Each is kept as a memory's folder, named after what differs.
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
    """Return counts; writes controls.json and a folder a memory.

    Every finished one is kept, so a killed run goes on after it.
    """
    given = context.config.memories if kind_of(context.inputs["corpus"]).asks else ()
    made = [_kept_or_made(context, differing) for differing in given]
    write_json(context.folder / "controls.json", [each["row"] for each in made])
    scratch = [f"{each['row']['name']}/{name}" for each in made for name in each["scratch"]]
    used = max((each["workers_memory"] for each in made), default=0)
    return {"memories": len(made), "scratch": scratch, "workers_memory": used}


def name_of(differing: dict) -> str:
    """Return the name of what differs: "alpha_0", "blocks_3-noise_0.2"."""
    parts = [
        f"{key}_{value:g}" if isinstance(value, (int, float)) else f"{key}_{value}"
        for key, value in differing.items()
    ]
    return "-".join(parts)


def _kept_or_made(context: StageContext, differing: dict) -> dict:
    """Return a memory's row, files only needed to go on, and the bytes of memory its workers took.

    They are read if a killed run had finished it.
    """
    folder = context.folder / name_of(differing)
    folder.mkdir(exist_ok=True)
    if not (folder / ROW).is_file():
        recipe = finished_manifest(context.inputs["memory"])["config"]
        recipe = {k: v for k, v in recipe.items() if k != "seed"} | differing
        recipe = fill(MemoryFitConfig, recipe, "[controls] memories")
        began = time.perf_counter()
        made = make_memory(dataclasses.replace(context, folder=folder, config=recipe), apart=True)
        seconds = round(made["earlier_seconds"] + time.perf_counter() - began, 1)
        row = _measured(context, folder, differing) | {"seconds": seconds}
        write_json(folder / ROW, {"row": row} | {k: made[k] for k in ("scratch", "workers_memory")})
    return read_json(folder / ROW)


def _measured(context: StageContext, folder: Path, differing: dict) -> dict:
    """Return what a memory makes of the atlas at a lambda of its own, chosen on dev wordings."""
    memory = Memory.load(folder).float().eval()
    decoder = Decoder.load(context.inputs["decoder"], depth=memory.config.depth)
    most = context.config.questions
    test = Test.load(context.inputs["corpus"], decoder.tokenizer, most, context.seed)
    measured = test.measure(MeasuredModel(decoder, memory.bind(decoder)))
    lmbda = choose_lambda(curve(measured, "memory"))
    return {
        "name": name_of(differing),
        "label": f"decoder + memory, {', '.join(f'{k} {v}' for k, v in differing.items())}",
        "differs": differing,
        "lmbda": lmbda,
        "bytes": memory.bytes,
        **shares(measured.accuracy("memory", lmbda)),
        **{f"ppl_{g}": p for g, p in measured.perplexity("memory", lmbda).items()},
    }

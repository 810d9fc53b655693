"""What does fine-tuning give for all that the memory costs? Settings of [studies] and the run's.

The stage finetuned tunes the decoder for about what the memory's training computes. Here it gets as
much as keys, targets and training together. FLOP follows from the formulas of `train/needs.py` and
`train/finetuned.py`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from mlpmem.errors import MlpMemError
from train.files import read_json
from train.findings import Finding, share
from train.needs import needs
from train.recipe import Recipe
from train.studies.making import make
from train.studies.run import Run

STAGES = ("datastore", "targets", "memory")  # that make a memory of a decoder
ROUTED = {"memory": "memory", "auto": "memory under the router"}  # as results.json names them
CELLS = ("B/seen", "B/test", "B/unseen", "A1/test", "A2/test")


def compute(run: Run) -> Iterator[Finding]:
    """Yield FLOP, seconds and exact match by cell, of the memory and of every tuned decoder."""
    if not run.config.tuned:
        raise MlpMemError(
            f"compute: recipe {run.recipe.name} names none; give its [studies] a list tuned = "
            '[["A1+B", learning rate, epochs, rank], ...], rank 0 for all weights'
        )
    systems = {system["name"]: system for system in run.results["systems"]}
    asked = {cell: count["n"] for cell, count in systems["lm"]["accuracy"].items()}
    needed = needs(run.recipe, run.root)
    flop = sum(needed[stage].flops for stage in STAGES)
    seconds = sum(run.manifest(stage)["seconds"] for stage in STAGES)
    for name, label in ROUTED.items():
        if name in systems:
            right = {c: n["right"] / n["n"] for c, n in systems[name]["accuracy"].items()}
            yield from _told(run, "memory", label, (flop, seconds), right, asked)
    make(run, _tuned(run), ("finetuned",), "studies/compute")
    for folder in (run.root, run.root / "studies" / "compute"):
        for row in read_json(folder / "finetuned" / "finetuned.json"):
            system = "lora" if row["rank"] else "finetuned"
            right = {cell: row[cell.replace("/", "_")] for cell in asked}
            yield from _told(
                run, system, row["label"], (row["flops"], row["seconds"]), right, asked
            )


def _tuned(run: Run) -> Recipe:
    """Return the recipe with the settings of [studies] in the stage finetuned."""
    full = tuple(setting[:3] for setting in run.config.tuned if not setting[3])
    lora = tuple(setting for setting in run.config.tuned if setting[3])
    return replace(run.recipe, finetuned=replace(run.recipe.finetuned, settings=full, lora=lora))


def _told(
    run: Run,
    system: str,
    label: str,
    cost: tuple[float, float],
    right: Mapping[str, float],
    asked: Mapping[str, int],
) -> Iterator[Finding]:
    """Yield what (FLOP, seconds) bought: right is the share of every cell, asked its questions."""
    for metric, value in zip(("flop", "seconds"), cost, strict=True):
        yield run.finding(system, "training", metric, value, label=label)
    for cell in CELLS:
        answered = np.arange(asked[cell]) < round(right[cell] * asked[cell])
        yield run.finding(system, cell, "exact_match", share(answered), label=label)

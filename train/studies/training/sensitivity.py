"""What does the memory depend on? Alpha, blocks, head, start, noise, depth, and its targets.

One memory is trained per value. Everything else is as in the recipe, except fewer epochs and
temperature 1. So these figures compare with one another, not with the recipe's own memory.
"""

from collections.abc import Iterator
from dataclasses import replace

from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from train.config.tables import MemoryFitConfig
from train.measure.findings import Finding
from train.studies.run import Run, make

CELLS = {  # the recipe's own value is trained once, as "recipe"
    "alpha": (0.0, 0.2, 0.4, 0.7, 1.0),
    "blocks": (2, 4, 8),
    "head": ("decoder", "tied", "free"),
    "start": ("decoder", "free"),
    "noise": (0.0, 0.1, 0.2),
}


def sensitivity(run: Run) -> Iterator[Finding]:
    """Yield each memory's exact match (with questions) and perplexity on the test."""
    for name, value, memory in _cells(run):
        decoder = Decoder.load(run.root / "decoder", depth=memory.config.depth)
        trial = run.trial(decoder, memory.bind(decoder))
        for measured in run.kind.measurements(trial, ("memory",)):
            yield run.finding_of(measured, **{name: value, "epochs": run.config.epochs})


def _cells(run: Run) -> Iterator[tuple[str, object, Memory]]:
    """Yield (setting, value, memory trained with it), the recipe's own first."""
    base = replace(run.recipe.memory, epochs=run.config.epochs, temperature=1.0)
    yield "recipe", "own", train_cell(run, "recipe", base)
    for name, values in CELLS.items():
        for value in values:
            if value != getattr(base, name):
                folder = f"{name}-{value}"
                yield name, value, train_cell(run, folder, replace(base, **{name: value}))
    for depth in run.config.depths:
        keyed = replace(run.recipe, datastore=replace(run.recipe.datastore, depth=depth))
        places = make(run, keyed, ("datastore", "targets"), f"studies/depth{depth}")
        yield "depth", depth, train_cell(run, f"depth{depth}", base, places)
    for k, temperature in run.config.targets:
        targets = replace(run.recipe.targets, k=k, temperature=temperature)
        folder = f"targets-{k}-{temperature:g}"
        places = make(run, replace(run.recipe, targets=targets), ("targets",), f"studies/{folder}")
        value = f"k {k}, temperature {temperature:g}"
        yield "targets", value, train_cell(run, folder, base, places)


def train_cell(
    run: Run, folder: str, config: MemoryFitConfig, places: dict[str, str] | None = None
) -> Memory:
    """Return the memory of a cell, trained unless an earlier run did; places: see `make`."""
    recipe = replace(run.recipe, memory=config)
    folders = make(run, recipe, ("memory",), f"studies/{folder}", places)
    return Memory.load(run.root / folders["memory"]).float().eval()

"""What does the memory hang on? Alpha, blocks, head, start, noise, depth, and what it imitates.

For each value a memory is trained anew, everything else as in the recipe but the epochs, which are
fewer and the same for all, and the temperature, which is 1: the figures are to be held against one
another, not against the recipe's own memory.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from train.config.tables import Memory as MemoryRecipe
from train.measure.atlas import Measured, Sources, Test, choose_lambda
from train.measure.atlas import curve as atlas_curve
from train.measure.findings import Finding, perplexity, share
from train.measure.text import TEXT_LAMBDAS, best_lambda, curve, units_of
from train.studies.run import Run, make

CELLS = {  # the recipe's own value is trained once, whatever it is
    "alpha": (0.0, 0.2, 0.4, 0.7, 1.0),
    "blocks": (2, 4, 8),
    "head": ("decoder", "tied", "free"),
    "start": ("decoder", "free"),
    "noise": (0.0, 0.1, 0.2),
}


def sensitivity(run: Run) -> Iterator[Finding]:
    """Yield what each memory makes of the test: exact match and perplexity, or perplexity."""
    for name, value, memory in _cells(run):
        yield from MEASURES[run.kind](run, memory, {name: value, "epochs": run.config.epochs})


def _cells(run: Run) -> Iterator[tuple[str, object, Memory]]:
    """Yield (what is varied, its value, the memory trained with it), the recipe's own first."""
    base = replace(run.recipe.memory, epochs=run.config.epochs, temperature=1.0)
    yield "recipe", "own", _trained(run, "recipe", base)
    for name, values in CELLS.items():
        for value in values:
            if value != getattr(base, name):
                folder = f"{name}-{value}"
                yield name, value, _trained(run, folder, replace(base, **{name: value}))
    for depth in run.config.depths:
        keyed = replace(run.recipe, datastore=replace(run.recipe.datastore, depth=depth))
        places = make(run, keyed, ("datastore", "targets"), f"studies/depth{depth}")
        yield "depth", depth, _trained(run, f"depth{depth}", base, places)
    for k, temperature in run.config.targets:
        targets = replace(run.recipe.targets, k=k, temperature=temperature)
        folder = f"targets-{k}-{temperature:g}"
        places = make(run, replace(run.recipe, targets=targets), ("targets",), f"studies/{folder}")
        named = f"k {k}, temperature {temperature:g}"
        yield "targets", named, _trained(run, folder, base, places)


def _trained(
    run: Run, folder: str, config: MemoryRecipe, places: dict[str, str] | None = None
) -> Memory:
    """Return the memory of a cell, trained if it is not there; places: see `make`."""
    recipe = replace(run.recipe, memory=config)
    made = make(run, recipe, ("memory",), f"studies/{folder}", places)
    return Memory.load(run.root / made["memory"]).float().eval()


def _measure_atlas(run: Run, memory: Memory, setting: dict) -> Iterator[Finding]:
    """Yield exact match by cell and perplexity by group at the lambda that dev questions choose."""
    decoder = Decoder.load(run.root / "decoder", depth=memory.config.depth)
    memory.bind(decoder)
    most = run.config.questions
    test = Test.load(run.root / "corpus", decoder.tokenizer, most, run.recipe.seed)
    measured = test.measure(Sources(decoder, memory))
    lmbda = choose_lambda(atlas_curve(measured, "memory"))
    yield from told(run, measured, "memory", lmbda, setting | {"lmbda": lmbda})


def told(
    run: Run, measured: Measured, system: str, lmbda: float, setting: dict
) -> Iterator[Finding]:
    """Yield the exact match by cell and the perplexity by group of a system at a lambda."""
    source = "memory" if system == "lm" else system  # lambda 0 of any is the decoder alone
    for cell, count in measured.accuracy(source, lmbda).items():
        right = np.arange(count["n"]) < count["right"]
        yield run.finding(system, cell, "exact_match", share(right), **setting)
    nll = measured.text.nll(source, lmbda)
    for group in dict.fromkeys(measured.text_groups.tolist()):
        mine = measured.text_groups == group
        found = perplexity(nll[mine], measured.text_units[mine])
        yield run.finding(system, group, "perplexity", found, **setting)


def _measure_text(run: Run, memory: Memory, setting: dict) -> Iterator[Finding]:
    """Yield the test split's perplexity at the lambda that is best on the validation split."""
    decoder = Decoder.load(run.root / "decoder", depth=memory.config.depth)
    memory.bind(decoder)
    texts = [run.text(split) for split in ("valid", "test")]
    valid, test = (Sources(decoder, memory).grid(*text) for text in texts)
    lmbda = best_lambda(curve(valid.gold_nll["lm"], valid.gold_nll["memory"], TEXT_LAMBDAS))
    found = perplexity(test.nll("memory", lmbda), units_of(*texts[1]))
    yield run.finding("memory", "test", "perplexity", found, **setting, lmbda=lmbda)


MEASURES = {"atlas": _measure_atlas, "text": _measure_text}  # by kind of corpus

"""What does fine-tuning give for the memory's whole compute? Settings of [studies] and the run's.

The stage finetuned spends about the FLOP of the memory's training; here fine-tuning spends as much
as keys, targets and training together. The decoder is included for comparison, and so is that of a
run RUN-plain, which was trained on all text at once. `train/run/needs.py` and
`train/stages/finetuned.py` have the FLOP formulas.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from train.config.tables import Recipe
from train.files import read_json
from train.measure.atlas import MeasuredModel, Test
from train.measure.findings import Finding, share
from train.run.needs import needs
from train.run.stage import finished_manifest, plain_decoder
from train.stages.corpus import check_tokens
from train.studies.run import Run, make

STAGES = ("datastore", "targets", "memory")  # from a decoder to a memory
OWN = {  # name in results.json: (system, label, the stages that made it)
    "lm": ("lm", "the decoder, on its own text", ("decoder",)),
    "memory": ("memory", "memory, one λ", STAGES),
    "auto": ("memory", "memory, λ by token", (*STAGES, "router")),
}
PLAIN = "one decoder as large as both, on all text"
CELLS = ("B/seen", "B/test", "B/unseen", "A1/test", "A2/test")


def compute(run: Run) -> Iterator[Finding]:
    """Yield FLOP, seconds and exact match by cell of the memory and every tuned decoder."""
    if not run.config.tuned:
        raise MlpMemError(
            f"compute: recipe {run.recipe.name} has no settings; give its [studies] a list tuned = "
            '[["A1+B", learning rate, epochs, rank], ...], rank 0 for all weights'
        )
    if run.recipe.finetuned.questions != run.results["config"]["questions"]:
        raise MlpMemError(
            f"compute: questions of [finetuned] must be {run.results['config']['questions']} as in "
            f"[evaluate]; got {run.recipe.finetuned.questions}. Make them equal"
        )
    systems = {system["name"]: system for system in run.results["systems"]}
    counts = {cell: count["n"] for cell, count in systems["lm"]["accuracy"].items()}
    needed = needs(run.recipe, run.root)
    for name, (system, label, stages) in OWN.items():
        if name in systems:
            flop = sum(needed[stage].flops for stage in stages)
            seconds = sum(run.manifest(stage)["seconds"] for stage in stages)
            right = _shares(systems[name]["accuracy"])
            yield from _findings(run, system, label, (flop, seconds), right, counts)
    yield from _plain(run, counts)
    make(run, _tuned(run), ("finetuned",), "studies/compute")
    for folder in (run.root, run.root / "studies" / "compute"):
        for row in read_json(folder / "finetuned" / "finetuned.json"):
            system = "lora" if row["rank"] else "finetuned"
            right = {cell: row[cell.replace("/", "_")] for cell in counts}
            yield from _findings(
                run, system, row["label"], (row["flops"], row["seconds"]), right, counts
            )


def _plain(run: Run, counts: Mapping[str, int]) -> Iterator[Finding]:
    """Yield the findings of the decoder of RUN-plain, if that run exists."""
    folder = plain_decoder(run.root)
    if folder is None:
        return
    manifest, decoder = finished_manifest(folder), Decoder.load(folder)
    config = run.recipe.finetuned
    corpus = run.root / "corpus"
    check_tokens(decoder, corpus)
    test = Test.load(corpus, decoder.tokenizer, config.questions, run.recipe.seed)
    right = _shares(test.measure(MeasuredModel(decoder)).accuracy("lm", 0.0))
    cost = (manifest.get("need") or {}).get("flops", 0.0), manifest["seconds"]
    yield from _findings(run, "plain", PLAIN, cost, right, counts)


def _shares(accuracy: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """Return {cell: share of right answers}."""
    return {cell: count["right"] / count["n"] for cell, count in accuracy.items()}


def _tuned(run: Run) -> Recipe:
    """Return the recipe with the settings of [studies] in the stage finetuned."""
    full = tuple(setting[:3] for setting in run.config.tuned if not setting[3])
    lora = tuple(setting for setting in run.config.tuned if setting[3])
    return replace(run.recipe, finetuned=replace(run.recipe.finetuned, settings=full, lora=lora))


def _findings(
    run: Run,
    system: str,
    label: str,
    cost: tuple[float, float],
    right: Mapping[str, float],
    counts: Mapping[str, int],
) -> Iterator[Finding]:
    """Yield cost, (FLOP, seconds), and exact match: the share `right` of each cell's `counts`."""
    for metric, value in zip(("flop", "seconds"), cost, strict=True):
        yield run.finding(system, "training", metric, value, label=label)
    for cell in CELLS:
        exact = np.arange(counts[cell]) < round(right[cell] * counts[cell])
        yield run.finding(system, cell, "exact_match", share(exact), label=label)

"""Does it hang on the decoder's size? Decoders of several sizes, each with a memory of its own.

Every size is trained on the recipe's text from nothing, with the same tokens, then gets keys,
targets and a memory by the stages of any run. The smaller ones get a second memory, which imitates
the datastore of the largest: a teacher other than the decoder itself. A decoder alone with as many
parameters as a smaller one and its memory together stands in the same table.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from mlpmem.datastore import Datastore
from mlpmem.decoder import Decoder
from mlpmem.errors import MlpMemError
from mlpmem.memory import Memory
from train.findings import Finding, perplexity
from train.grid import Sources
from train.measure import Test, choose_lambda
from train.measure import curve as atlas_curve
from train.perplexity import LAMBDAS, best_lambda, tune
from train.pipeline import STAGES
from train.recipe import Recipe
from train.stage import run_stage
from train.studies.run import Run
from train.studies.sensitivity import told
from train.windows import curve, look

HEAD_WIDTH = 32  # of the decoders that are made here
SYSTEMS = ("lm", "knn", "memory")


@dataclass(frozen=True)
class Sized:
    """A decoder of a size, bound to a memory, and its datastore."""

    folder: str  # below the run's
    setting: dict[str, object]
    decoder: Decoder
    memory: Memory
    store: Datastore

    def of(self, system: str) -> dict[str, object]:
        """Return the setting of a finding, with the parameters that a system computes with."""
        count = sum(p.numel() for p in self.decoder.model.parameters())
        if system == "memory":
            count += sum(p.numel() for p in self.memory.parameters())
        return self.setting | {"parameters": count}


def sizes(run: Run) -> Iterator[Finding]:
    """Yield what decoder, kNN and memory make of the test at every size of [studies]."""
    shapes = run.config.decoders
    if not shapes:
        raise MlpMemError(
            f"sizes: recipe {run.recipe.name} names none; give its [studies] a list decoders = "
            "[[hidden size, layers], ...], a size each"
        )
    run.manifest("corpus")
    folders = [_make(run, *shape) for shape in shapes]
    largest = folders[int(np.argmax([hidden**2 * layers for hidden, layers in shapes]))]
    for shape, folder in zip(shapes, folders, strict=True):
        for teacher in ("own", largest):
            if teacher != folder:
                sized = _sized(run, folder, shape, teacher)
                yield from MEASURES[run.kind](
                    run, sized, SYSTEMS if teacher == "own" else SYSTEMS[2:]
                )


def _make(run: Run, hidden: int, layers: int) -> str:
    """Return the folder of a size once its decoder, keys, targets and memory are made."""
    folder = f"studies/sizes/{hidden}x{layers}"
    heads = max(1, hidden // HEAD_WIDTH)
    decoder = replace(
        run.recipe.decoder, source="", epochs=run.config.decoder_epochs, hidden_size=hidden,
        layers=layers, heads=heads, intermediate_size=8 * round(hidden / 3),
    )  # fmt: skip
    memory = replace(run.recipe.memory, epochs=run.config.epochs)
    made = replace(run.recipe, decoder=decoder, memory=memory)
    _stages(run, made, folder, ("decoder", "datastore", "targets", "memory"), folder)
    return folder


def _stages(run: Run, recipe: Recipe, folder: str, names: tuple[str, ...], into: str) -> None:
    """Run stages into a folder; what they do not make there they find in a size's folder."""
    for name in names:
        inputs = tuple(
            i if i == "corpus" else f"{into if i in names else folder}/{i}"
            for i in STAGES[name].inputs
        )
        function = STAGES[name].load()
        run_stage(run.root, f"{into}/{name}", getattr(recipe, name), inputs, function, recipe.seed)


def _sized(run: Run, folder: str, shape: tuple[int, int], teacher: str) -> Sized:
    """Return a size with the memory that a datastore taught: its own, or that in a folder."""
    setting: dict[str, object] = {"hidden_size": shape[0], "layers": shape[1]}
    at = folder
    if teacher != "own":
        at = f"{folder}/taught"
        targets = replace(run.recipe.targets, teacher=str(run.root / teacher / "datastore"))
        memory = replace(run.recipe.memory, epochs=run.config.epochs)
        made = replace(run.recipe, targets=targets, memory=memory)
        _stages(run, made, folder, ("targets", "memory"), at)
        setting["teacher"] = teacher.rpartition("/")[2]
    decoder = Decoder.load(run.root / folder / "decoder", depth=run.recipe.datastore.depth)
    memory = Memory.load(run.root / at / "memory").float().eval().bind(decoder)
    return Sized(folder, setting, decoder, memory, Datastore.load(run.root / folder / "datastore"))


def _measure_text(run: Run, sized: Sized, systems: tuple[str, ...]) -> Iterator[Finding]:
    """Yield the test split's perplexity, k, temperature and lambdas chosen on validation."""
    most = max(run.recipe.evaluate.ks)
    valid, test = (
        look(sized.decoder, sized.memory, sized.store, run.text(split), most)
        for split in ("valid", "test")
    )
    knn = tune(valid, run.recipe.evaluate)
    others = {"lm": (valid.lm, test.lm), "memory": (valid.memory, test.memory),
              "knn": (valid.knn(*knn), test.knn(*knn))}  # fmt: skip
    for system in systems:
        chosen, judged = others[system]
        lmbda = best_lambda(curve(valid.lm, chosen, LAMBDAS))
        found = perplexity(test.nll(judged, lmbda))
        setting = sized.of(system) | {"lmbda": lmbda}
        yield run.finding(system, "test", "perplexity", found, **setting)


def _measure_atlas(run: Run, sized: Sized, systems: tuple[str, ...]) -> Iterator[Finding]:
    """Yield exact match by cell and perplexity by group at the lambda that dev questions choose."""
    test = Test.load(
        run.root / "corpus", sized.decoder.tokenizer, run.config.questions, run.recipe.seed
    )
    k, temperature = run.recipe.evaluate.k, run.recipe.evaluate.temperature
    measured = test.measure(Sources(sized.decoder, sized.memory, sized.store, k, temperature))
    chosen = choose_lambda([atlas_curve(measured, source) for source in ("memory", "knn")])
    for system in systems:
        lmbda = 0.0 if system == "lm" else chosen
        yield from told(run, measured, system, lmbda, sized.of(system) | {"lmbda": lmbda})


MEASURES: Mapping[str, Callable] = {"atlas": _measure_atlas, "text": _measure_text}

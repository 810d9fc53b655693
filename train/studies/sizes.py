"""Does it hang on the decoder's size? Decoders of several sizes, each with a memory of its own.

Every size is trained on the recipe's text from nothing, with the same tokens, then gets keys,
targets and a memory by the stages of any run. The smaller ones get a second memory, which imitates
the datastore of the largest: a teacher other than the decoder itself. What a larger decoder
does alone stands beside what a smaller one does with its memory, over the parameters of each.

Squared distances grow with the width of the keys, so temperatures are scaled by how far the
neighbours are: what is as sharp in the recipe's own datastore is as sharp in every other.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from mlpmem.retrieval.datastore import Datastore
from train.config.tables import DecoderConfig, OptimizerConfig, Recipe
from train.files import digest
from train.measure.findings import Finding
from train.run.stage import finished_manifest
from train.studies.run import Run, make

HEAD_WIDTH = 32  # of the decoders that are made here
NEW = DecoderConfig(
    batch=4096, optimizer=OptimizerConfig(lr=3e-3, muon_lr=2e-2)
)  # where one existed
SAMPLE, QUERIES = 20_000, 500  # keys, and those of them whose neighbours are looked at
SYSTEMS = ("lm", "knn", "memory")


@dataclass(frozen=True)
class Sized:
    """A decoder of a size, bound to a memory, and its datastore."""

    setting: dict[str, object]
    decoder: Decoder
    memory: Memory
    store: Datastore
    scale: float  # of its temperatures against the recipe's

    def of(self, system: str) -> dict[str, object]:
        """Return the setting of a finding, with the parameters that a system computes with."""
        parts = [self.decoder.model, *([self.memory] if system == "memory" else [])]
        weights = {w.data_ptr(): w.numel() for part in parts for w in part.parameters()}
        return self.setting | {"parameters": sum(weights.values())}


def sizes(run: Run) -> Iterator[Finding]:
    """Yield what decoder, kNN and memory make of the test at every size of [studies]."""
    shapes = run.config.decoders
    if not shapes:
        raise MlpMemError(
            f"sizes: recipe {run.recipe.name} names none; give its [studies] a list decoders = "
            "[[hidden size, layers], ...], a size each"
        )
    run.manifest("corpus")
    usual = spread(run.store, run.recipe.targets.k)
    scales = [_make(run, shape, usual) for shape in shapes]
    largest = int(np.argmax([hidden**2 * layers for hidden, layers in shapes]))
    for shape, scale in zip(shapes, scales, strict=True):
        own = _sized(run, shape, _folder(shape), scale)
        yield from _measured(run, own, SYSTEMS)
        if shape != shapes[largest]:
            at = _taught(run, shape, shapes[largest], scales[largest])
            taught = _sized(run, shape, at, scale)
            taught.setting["teacher"] = _name(shapes[largest])
            yield from _measured(run, taught, ("memory",))


def spread(store: Datastore, k: int) -> float:
    """Return how far neighbours are: the median squared L2 to the k-th, within a sample of keys."""
    chosen = np.random.default_rng(0).permutation(len(store))[:SAMPLE]
    keys = torch.from_numpy(np.asarray(store.keys[np.sort(chosen)], np.float32))
    distances = torch.cdist(keys[:QUERIES], keys).square()
    return float(distances.kthvalue(min(k + 1, len(keys)), 1).values.median())


def _name(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _folder(shape: tuple[int, int]) -> str:
    return f"studies/sizes/{_name(shape)}"


def _made(run: Run, scale: float, teacher: str = "") -> Recipe:
    """Return the run's recipe with fewer epochs and another temperature, perhaps with a teacher."""
    recipe = run.recipe
    temperature = round(recipe.targets.temperature * scale, 3)
    targets = replace(recipe.targets, temperature=temperature, teacher=teacher)
    return replace(recipe, targets=targets, memory=replace(recipe.memory, epochs=run.config.epochs))


def _make(run: Run, shape: tuple[int, int], usual: float) -> float:
    """Return a size's scale of temperatures once its decoder, keys, targets and memory are made."""
    hidden, layers = shape
    recipe, folder = run.recipe, _folder(shape)
    learner = NEW if recipe.decoder.source else recipe.decoder
    decoder = replace(
        learner, epochs=run.config.decoder_epochs, hidden_size=hidden, layers=layers,
        heads=max(1, hidden // HEAD_WIDTH), intermediate_size=8 * round(hidden / 3),
        row=max(learner.row, recipe.corpus.passage),
    )  # fmt: skip
    places = make(run, replace(recipe, decoder=decoder), ("decoder", "datastore"), folder)
    scale = spread(Datastore.load(run.root / folder / "datastore"), recipe.targets.k) / usual
    make(run, _made(run, scale), ("targets", "memory"), folder, places)
    return scale


def _taught(run: Run, shape: tuple[int, int], teacher: tuple[int, int], scale: float) -> str:
    """Return the folder of a size's memory that imitates another's datastore, once it is made."""
    store = f"{_folder(teacher)}/datastore"
    made = digest(finished_manifest(run.root / store)["outputs"])[:8]  # other keys, another folder
    at = f"{_folder(shape)}/taught-{made}"
    recipe = _made(run, scale, str((run.root / store).resolve()))
    own = {name: f"{_folder(shape)}/{name}" for name in ("decoder", "datastore")}
    make(run, recipe, ("targets", "memory"), at, own)
    return at


def _sized(run: Run, shape: tuple[int, int], at: str, scale: float) -> Sized:
    """Return a size with the memory of a folder."""
    folder = run.root / _folder(shape)
    decoder = Decoder.load(folder / "decoder", depth=run.recipe.datastore.depth)
    memory = Memory.load(run.root / at / "memory").float().eval().bind(decoder)
    setting = {"hidden_size": shape[0], "layers": shape[1]}
    return Sized(setting, decoder, memory, Datastore.load(folder / "datastore"), scale)


def _measured(run: Run, sized: Sized, systems: tuple[str, ...]) -> Iterator[Finding]:
    """Yield what a size makes of the test, each system at the lambda chosen for it."""
    trial = run.trial(sized.decoder, sized.memory, sized.store, sized.scale)
    for one in run.kind.measurements(trial, systems):
        yield run.told(one, **sized.of(one.system))

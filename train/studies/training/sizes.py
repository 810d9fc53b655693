"""Does the gain depend on the decoder's size? Decoders of several sizes, each with its own memory.

Every size is trained from scratch on the same tokens of the recipe's text, then gets keys, targets
and a memory by the usual stages. Each smaller size gets a second memory, which imitates the
datastore of the largest. Findings have the parameters, to compare a larger decoder with a smaller
one and its memory.

Squared distances grow with the width of the keys. So temperatures are scaled by the neighbours'
distance, which makes every datastore's distributions as sharp as those of the recipe's.
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

HEAD_WIDTH = 32  # of the new decoders
NEW = DecoderConfig(
    batch=4096, optimizer=OptimizerConfig(lr=3e-3, muon_lr=2e-2)
)  # if the recipe's decoder is an existing one
SAMPLE, QUERIES = 20_000, 500  # keys, and those whose neighbours are searched
SYSTEMS = ("lm", "knn", "memory")


@dataclass(frozen=True)
class SizedModel:
    """A decoder of one size with its memory, bound to it, and its datastore."""

    setting: dict[str, object]
    decoder: Decoder
    memory: Memory
    store: Datastore
    scale: float  # its temperatures over the recipe's

    def of(self, system: str) -> dict[str, object]:
        """Return the setting of a finding, with the system's number of parameters."""
        parts = [self.decoder.model, *([self.memory] if system == "memory" else [])]
        weights = {w.data_ptr(): w.numel() for part in parts for w in part.parameters()}
        return self.setting | {"parameters": sum(weights.values())}


def sizes(run: Run) -> Iterator[Finding]:
    """Yield measurements of decoder, kNN and memory on the test at every size of [studies]."""
    shapes = run.config.decoders
    if not shapes:
        raise MlpMemError(
            f"sizes: recipe {run.recipe.name} names none; give its [studies] a list decoders = "
            "[[hidden size, layers], ...], one per size"
        )
    run.manifest("corpus")
    reference = spread(run.store, run.recipe.targets.k)
    scales = [_make(run, shape, reference) for shape in shapes]
    largest = int(np.argmax([hidden**2 * layers for hidden, layers in shapes]))
    for shape, scale in zip(shapes, scales, strict=True):
        yield from _measure(run, _load(run, shape, _folder(shape), scale), SYSTEMS)
        if shape != shapes[largest]:
            folder = _teach(run, shape, shapes[largest], scales[largest])
            taught = _load(run, shape, folder, scale)
            taught.setting["teacher"] = _name(shapes[largest])
            yield from _measure(run, taught, ("memory",))


def spread(store: Datastore, k: int) -> float:
    """Return the median squared L2 distance to the k-th neighbour, within a sample of keys."""
    sample = np.random.default_rng(0).permutation(len(store))[:SAMPLE]
    keys = torch.from_numpy(np.asarray(store.keys[np.sort(sample)], np.float32))
    distances = torch.cdist(keys[:QUERIES], keys).square()
    return float(distances.kthvalue(min(k + 1, len(keys)), 1).values.median())


def _name(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _folder(shape: tuple[int, int]) -> str:
    return f"studies/sizes/{_name(shape)}"


def _recipe(run: Run, scale: float, teacher: str = "") -> Recipe:
    """Return the run's recipe with the studies' epochs, a scaled temperature and a teacher."""
    recipe = run.recipe
    temperature = round(recipe.targets.temperature * scale, 3)
    targets = replace(recipe.targets, temperature=temperature, teacher=teacher)
    return replace(recipe, targets=targets, memory=replace(recipe.memory, epochs=run.config.epochs))


def _make(run: Run, shape: tuple[int, int], reference: float) -> float:
    """Make a size's decoder, keys, targets and memory; return its scale of temperatures."""
    hidden, layers = shape
    recipe, folder = run.recipe, _folder(shape)
    base = NEW if recipe.decoder.source else recipe.decoder
    decoder = replace(
        base, epochs=run.config.decoder_epochs, hidden_size=hidden, layers=layers,
        heads=max(1, hidden // HEAD_WIDTH), intermediate_size=8 * round(hidden / 3),
        row=max(base.row, recipe.corpus.passage),
    )  # fmt: skip
    places = make(run, replace(recipe, decoder=decoder), ("decoder", "datastore"), folder)
    scale = spread(Datastore.load(run.root / folder / "datastore"), recipe.targets.k) / reference
    make(run, _recipe(run, scale), ("targets", "memory"), folder, places)
    return scale


def _teach(run: Run, shape: tuple[int, int], teacher: tuple[int, int], scale: float) -> str:
    """Train a size's memory on another's datastore; return the folder."""
    store = f"{_folder(teacher)}/datastore"
    sha = digest(finished_manifest(run.root / store)["outputs"])[:8]  # one folder per keys
    at = f"{_folder(shape)}/taught-{sha}"
    recipe = _recipe(run, scale, str((run.root / store).resolve()))
    places = {name: f"{_folder(shape)}/{name}" for name in ("decoder", "datastore")}
    make(run, recipe, ("targets", "memory"), at, places)
    return at


def _load(run: Run, shape: tuple[int, int], at: str, scale: float) -> SizedModel:
    """Return a size with the memory in folder `at`."""
    folder = run.root / _folder(shape)
    decoder = Decoder.load(folder / "decoder", depth=run.recipe.datastore.depth)
    memory = Memory.load(run.root / at / "memory").float().eval().bind(decoder)
    setting = {"hidden_size": shape[0], "layers": shape[1]}
    return SizedModel(setting, decoder, memory, Datastore.load(folder / "datastore"), scale)


def _measure(run: Run, sized: SizedModel, systems: tuple[str, ...]) -> Iterator[Finding]:
    """Yield the findings of a size on the test, each system at its own lambda."""
    trial = run.trial(sized.decoder, sized.memory, sized.store, sized.scale)
    for measured in run.kind.measurements(trial, systems):
        yield run.finding_of(measured, **sized.of(measured.system))

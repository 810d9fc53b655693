"""A kind of corpus is one object: everything that a run does differently for it.

A new kind is a subclass of Kind, in a file of `train/stages`, and a row of KINDS in
`train/config/tables.py`. Stages, studies and plans ask the object and know no kind by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from mlpmem.api import Model
from mlpmem.engine.trace import Trace
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.documents import Documents
from train.config.tables import KINDS, ExportConfig, Recipe, RouterFitConfig
from train.run.stage import StageContext, finished_manifest


@dataclass(frozen=True)
class RouterData:
    """Positions that routers are fitted on, and how much each counts."""

    documents: Documents
    positions: np.ndarray  # (R,) of tokens whose probability is the loss
    weights: Tensor  # (R,) float32, sum 1


class BundleExamples(NamedTuple):
    """A bundle's examples of a corpus, for the page."""

    examples: list[dict]
    questions: list[dict]  # with known answers, for the page to draw from
    recorded: list[dict]  # comparisons that replay without a model
    answered: list[dict[str, Trace]]  # every comparison made on the way: their costs are kept


@dataclass(frozen=True)
class Trial:
    """A decoder with a memory, and perhaps a datastore, to be measured on a corpus's test."""

    corpus: Path
    decoder: Decoder
    memory: Memory  # bound to the decoder
    store: Datastore | None
    recipe: Recipe
    scale: float = 1.0  # of the temperatures of kNN, against the recipe's


class Measurement(NamedTuple):
    """A number measured on a corpus's test; see train.measure.findings."""

    system: str
    split: str
    metric: str
    values: Mapping[str, float]
    lmbda: float | str | None  # the weight, or how it was chosen; None for the decoder only


class Kind(ABC):
    """What a run does with a corpus of one kind."""

    name: str
    has_questions: bool  # with known answers, in groups of old and new facts
    distinct: float  # entries per token
    hard: float  # share of entries harder for the decoder than nll_floor

    @abstractmethod
    def tokens(self, recipe: Recipe) -> tuple[int, int, int]:
        """Return about how many tokens it has, the decoder learns from, and are keyed."""

    @abstractmethod
    def router_tokens(self, recipe: Recipe) -> int:
        """Return about how many tokens `router_data` has."""

    @abstractmethod
    def scored_tokens(self, recipe: Recipe, keyed: int) -> int:
        """Return about how many tokens `measure` scores."""

    @abstractmethod
    def make(self, context: StageContext) -> dict:
        """Return counts; writes tokenizer/, memory/ and the rest of the stage corpus."""

    @abstractmethod
    def heldout(self, split: str) -> str:
        """Return the folder of the text held out as a split, "valid" or "test"."""

    @abstractmethod
    def router_data(
        self, corpus: Path, decoder: Decoder, config: RouterFitConfig, seed: int
    ) -> RouterData:
        """Return what routers are fitted on: nothing of any training text, nothing of any test."""

    @abstractmethod
    def measure(
        self, context: StageContext, decoder: Decoder, memory: Memory, store: Datastore
    ) -> dict:
        """Return its part of results.json: systems, lambdas and their curves."""

    def measure_routed(self, context: StageContext, model: Callable[[], Model]) -> dict[str, dict]:
        """Return what systems make of it under their routers' lambdas, which model() returns.

        By default that is not measured.
        """
        return {}

    @abstractmethod
    def bundle_examples(
        self, model: Model, corpus: Path, config: ExportConfig, seed: int
    ) -> BundleExamples:
        """Return what a bundle shows."""

    @abstractmethod
    def measurements(self, trial: Trial, systems: Sequence[str]) -> Iterator[Measurement]:
        """Yield what systems make of the test at lambdas chosen where nothing is tested."""

    @abstractmethod
    def measurements_by_mode(
        self, model: Model, corpus: Path, most: int, seed: int
    ) -> Iterator[Measurement]:
        """Yield what systems make of the test by how lambda is chosen; see measure.by_token.

        At most `most` questions of each cell, or tokens, are asked.
        """


@cache
def kind_named(name: str) -> Kind:
    """Return the kind of a name, which the recipe has checked; it is imported only now."""
    module, kind = KINDS[name].split(":")
    return getattr(import_module(module), kind)()


def kind_of(corpus: Path) -> Kind:
    """Return the kind of a finished corpus."""
    return kind_named(finished_manifest(corpus)["config"]["kind"])

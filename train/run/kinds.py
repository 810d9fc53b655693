"""The interface of a kind of corpus: everything that differs between kinds in a run.

A new kind is a subclass of Kind, in a file of `train/stages`, and a row of KINDS in
`train/config/corpus.py`. Stages, studies and plans use this interface and never a kind's name.
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
from train.config.corpus import KINDS
from train.config.tables import ExportConfig, Recipe, RouterFitConfig
from train.run.stage import StageContext, finished_manifest


@dataclass(frozen=True)
class RouterData:
    """Positions that routers are fitted on, with their weights."""

    documents: Documents
    positions: np.ndarray  # (R,) of the tokens that are predicted
    weights: Tensor  # (R,) float32, sum 1
    # (R,) float32, 1 in answers that the memory was taught and 0 in what must stay the decoder's;
    # None where a kind of corpus does not tell them apart
    taught: Tensor | None = None


class BundleExamples(NamedTuple):
    """A bundle's examples of a corpus, for the page."""

    examples: list[dict]
    questions: list[dict]  # with known answers; the page draws from them
    recorded: list[dict]  # comparisons that the page replays without a model
    answered: list[dict[str, Trace]]  # all comparisons that were computed, for their costs


@dataclass(frozen=True)
class Trial:
    """A decoder, memory and optional datastore to measure on a corpus's test."""

    corpus: Path
    decoder: Decoder
    memory: Memory  # bound to the decoder
    store: Datastore | None
    recipe: Recipe
    scale: float = 1.0  # factor on the recipe's kNN temperatures


class Measurement(NamedTuple):
    """A number measured on a corpus's test; see train.measure.findings."""

    system: str
    split: str
    metric: str
    values: Mapping[str, float]
    lmbda: float | str | None  # the weight, or how it was chosen; None for only the decoder


class Kind(ABC):
    """A kind of corpus."""

    name: str
    has_questions: bool  # with known answers, in groups of old and new facts
    distinct: float  # entries per token
    hard: float  # share of entries whose nll under the decoder is above nll_floor

    @abstractmethod
    def tokens(self, recipe: Recipe) -> tuple[int, int, int]:
        """Return estimates of all tokens, those the decoder learns from, and those with keys."""

    @abstractmethod
    def router_tokens(self, recipe: Recipe) -> int:
        """Return an estimate of the tokens of `router_data`."""

    @abstractmethod
    def scored_tokens(self, recipe: Recipe, keyed: int) -> int:
        """Return an estimate of the tokens that `measure` scores."""

    @abstractmethod
    def make(self, context: StageContext) -> dict:
        """Write tokenizer/, memory/ and the other files of the stage corpus; return counts."""

    @abstractmethod
    def heldout(self, split: str) -> str:
        """Return the folder of a split's held-out text; split is "valid" or "test"."""

    @abstractmethod
    def router_data(
        self, corpus: Path, decoder: Decoder, config: RouterFitConfig, seed: int
    ) -> RouterData:
        """Return the data that routers are fitted on, disjoint from training text and tests."""

    @abstractmethod
    def measure(
        self, context: StageContext, decoder: Decoder, memory: Memory, store: Datastore
    ) -> dict:
        """Return the kind's part of results.json: systems, lambdas and their curves."""

    def measure_routed(self, context: StageContext, model: Callable[[], Model]) -> dict[str, dict]:
        """Return results by system at its router's lambda; model() returns the routed model.

        The default measures nothing.
        """
        return {}

    @abstractmethod
    def bundle_examples(
        self, model: Model, corpus: Path, config: ExportConfig, seed: int
    ) -> BundleExamples:
        """Return the examples and questions of a bundle."""

    def readable(self, documents: Documents, decoder: Decoder) -> Documents:
        """Return documents to read and to search by words; by default they are as they are."""
        return documents

    @abstractmethod
    def measurements(self, trial: Trial, systems: Sequence[str]) -> Iterator[Measurement]:
        """Yield results of systems on the test, at lambdas chosen on other data."""

    @abstractmethod
    def measurements_by_mode(
        self, model: Model, corpus: Path, most: int, seed: int
    ) -> Iterator[Measurement]:
        """Yield results on the test by how lambda is chosen; see measure.by_token.

        most: questions per cell, or tokens of a text.
        """


@cache
def kind_named(name: str) -> Kind:
    """Return the kind with this name, imported on first use; the recipe has checked the name."""
    module, kind = KINDS[name].split(":")
    return getattr(import_module(module), kind)()


def kind_of(corpus: Path) -> Kind:
    """Return the kind of a finished corpus."""
    return kind_named(finished_manifest(corpus)["config"]["kind"])

"""A finished run as the studies see it: its parts, its held-out text, and how a finding is made.

Stages of a study's own, made below the run as any run's are, skipped where they are done.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.documents import Documents
from train.config.studies import StudiesConfig
from train.config.tables import Recipe
from train.files import read_lines
from train.measure.atlas import CHOOSING, GROUPS
from train.measure.findings import Finding
from train.measure.questions import Questions, ask, sample_questions
from train.measure.text import slide
from train.run.kinds import Kind, Measurement, Trial, kind_named
from train.run.pipeline import STAGES
from train.run.stage import finished_manifest, run_stage
from train.stages.evaluate import load_results


@dataclass(frozen=True)
class Run:
    """The stages of a recipe below `root`, loaded when they are first asked for."""

    recipe: Recipe
    root: Path
    study: str

    @property
    def config(self) -> StudiesConfig:
        """Return how much is looked at."""
        return self.recipe.studies

    @property
    def own(self) -> Path:
        """Return where this study keeps what it trains."""
        return self.root / "studies" / self.study

    def manifest(self, stage: str) -> dict:
        """Return the manifest of a stage; MlpMemError with the command that makes it."""
        found = finished_manifest(self.root / stage)
        if found is None:
            raise MlpMemError(
                f"{self.study}: needs the stage {stage}, which is not finished in {self.root}; run "
                f"`python -m train {stage} {self.recipe.name}` with the same --runs first"
            )
        return found

    @cached_property
    def kind(self) -> Kind:
        """Return the kind of corpus."""
        return kind_named(self.manifest("corpus")["config"]["kind"])

    @cached_property
    def memory(self) -> Memory:
        """Return the memory, bound to the decoder, in float32."""
        self.manifest("memory")
        return Memory.load(self.root / "memory").float().eval()

    @cached_property
    def decoder(self) -> Decoder:
        """Return the decoder, its hidden states caught where the memory reads them."""
        self.manifest("decoder")
        decoder = Decoder.load(self.root / "decoder", depth=self.memory.config.depth)
        self.memory.bind(decoder)
        return decoder

    @cached_property
    def store(self) -> Datastore:
        """Return the datastore."""
        self.manifest("datastore")
        return Datastore.load(self.root / "datastore")

    @cached_property
    def results(self) -> dict:
        """Return what the stage evaluate chose: lambda by system, k and temperature."""
        self.manifest("evaluate")
        return load_results(self.root / "evaluate")

    @property
    def lmbda(self) -> dict[str, float]:
        """Return the chosen lambda of "memory" and "knn"."""
        return self.results["lmbda"]

    @property
    def knn(self) -> tuple[int, float]:
        """Return the datastore's chosen (k, temperature)."""
        return self.results["config"]["k"], self.results["config"]["temperature"]

    @cached_property
    def dev(self) -> Questions:
        """Return an atlas's questions that choose: at most so many of a group as [studies] says."""
        rows = read_lines(self.root / "corpus" / "questions.jsonl")
        cells = [f"{group}/{CHOOSING}" for group in GROUPS]
        drawn = sample_questions(rows, cells, self.config.questions, self.recipe.seed)
        return ask(self.decoder.tokenizer, drawn)

    def text(self, split: str = "test") -> tuple[Documents, np.ndarray]:
        """Return held-out (documents, positions (P,)): the atlas's has one split, a text's two."""
        documents = Documents.load(self.root / "corpus" / self.kind.heldout(split))
        sizes = self.recipe.evaluate
        return slide(documents, sizes.window, sizes.stride, self.config.positions, self.recipe.seed)

    def trial(
        self, decoder: Decoder, memory: Memory, store: Datastore | None = None, scale: float = 1.0
    ) -> Trial:
        """Return a decoder with its parts, to be measured on the corpus's test."""
        return Trial(self.root / "corpus", decoder, memory, store, self.recipe, scale)

    def told(self, figure: Measurement, **setting: object) -> Finding:
        """Return a figure as a finding, its lambda with the setting."""
        setting["lmbda"] = figure.lmbda
        return self.finding(figure.system, figure.split, figure.metric, figure.values, **setting)

    def finding(
        self,
        system: str,
        split: str,
        metric: str,
        value: float | Mapping[str, float],
        **setting: object,
    ) -> Finding:
        """Return a finding of this study; value is a number, or means of train.measure.findings."""
        numbers = value if isinstance(value, Mapping) else {"value": float(value)}
        how = f"python -m train.studies {self.study} {self.recipe.name}"
        return Finding(self.study, system, split, metric, how=how, setting=setting, **numbers)


def pooled(groups: np.ndarray) -> dict[str, np.ndarray]:
    """Return {split: (P,) bool}: "all", and each group where there are several."""
    names = list(dict.fromkeys(groups.tolist()))
    parts = {name: groups == name for name in names} if len(names) > 1 else {}
    return {"all": np.ones(len(groups), bool), **parts}


def make(
    run: Run,
    recipe: Recipe,
    names: Iterable[str],
    into: str,
    places: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return where stages are, by name, once these are done in folders below `into`.

    places: where others were made before; whatever is in neither is the run's own. All folders are
    below the run's root.
    """
    found = dict(places or {})
    for name in names:
        inputs = tuple(found.get(i, i) for i in STAGES[name].inputs)
        found[name] = f"{into}/{name}"
        stage, config = STAGES[name], getattr(recipe, name)
        run_stage(
            run.root, found[name], config, inputs, stage.load(), recipe.seed, resumes=stage.resumes
        )
    return found

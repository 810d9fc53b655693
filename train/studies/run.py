"""A finished run for the studies: its parts, its held-out text, its findings.

`make` runs a study's own stages below the run, and skips those that are done.
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
from train.measure.questions import Questions, encode_questions, sample_questions
from train.measure.text import slide
from train.run.kinds import Kind, Measurement, Trial, kind_named
from train.run.pipeline import STAGES
from train.run.stage import finished_manifest, run_stage
from train.stages.evaluate import load_results


@dataclass(frozen=True)
class Run:
    """The stages of a recipe below `root`, each loaded on first use."""

    recipe: Recipe
    root: Path
    study: str

    @property
    def config(self) -> StudiesConfig:
        """Return the sizes of the studies."""
        return self.recipe.studies

    def manifest(self, stage: str) -> dict:
        """Return a stage's manifest; MlpMemError, with the command to run, if unfinished."""
        manifest = finished_manifest(self.root / stage)
        if manifest is None:
            raise MlpMemError(
                f"{self.study}: the stage {stage} is not finished in {self.root}; run "
                f"`python -m train {stage} {self.recipe.name}` with the same --runs first"
            )
        return manifest

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
        """Return the decoder, with hidden states at the memory's depth."""
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
        """Return the results of the stage evaluate, with chosen lambdas, k and temperature."""
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
        """Return an atlas's dev questions: at most [studies] questions per group."""
        rows = read_lines(self.root / "corpus" / "questions.jsonl")
        cells = [f"{group}/{CHOOSING}" for group in GROUPS]
        sample = sample_questions(rows, cells, self.config.questions, self.recipe.seed)
        return encode_questions(self.decoder.tokenizer, sample)

    def text(self, split: str = "test") -> tuple[Documents, np.ndarray]:
        """Return held-out (documents, positions (P,)); an atlas's has one split, a text two."""
        documents = Documents.load(self.root / "corpus" / self.kind.heldout(split))
        sizes = self.recipe.evaluate
        return slide(documents, sizes.window, sizes.stride, self.config.positions, self.recipe.seed)

    def trial(
        self, decoder: Decoder, memory: Memory, store: Datastore | None = None, scale: float = 1.0
    ) -> Trial:
        """Return a decoder and its parts, to measure on the corpus's test."""
        return Trial(self.root / "corpus", decoder, memory, store, self.recipe, scale)

    def finding_of(self, measured: Measurement, **setting: object) -> Finding:
        """Return a measurement as a finding, with its lambda in the setting."""
        system, split, metric, values, lmbda = measured
        return self.finding(system, split, metric, values, **setting, lmbda=lmbda)

    def finding(
        self,
        system: str,
        split: str,
        metric: str,
        value: float | Mapping[str, float],
        **setting: object,
    ) -> Finding:
        """Return a finding; value is a number or a mapping from train.measure.findings."""
        numbers = value if isinstance(value, Mapping) else {"value": float(value)}
        how = f"python -m train.studies {self.study} {self.recipe.name}"
        return Finding(self.study, system, split, metric, how=how, setting=setting, **numbers)


def pooled(groups: np.ndarray) -> dict[str, np.ndarray]:
    """Return {split: (P,) bool}: "all", and each group if there are several."""
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
    """Run stages into folders below `into`; return {stage: folder}, with those of `places`.

    Inputs come from these folders, otherwise from the run. All folders are below the run's root.
    """
    folders = dict(places or {})
    for name in names:
        stage, config, folder = STAGES[name], getattr(recipe, name), f"{into}/{name}"
        inputs = tuple(folders.get(i, i) for i in stage.inputs)
        work = stage.load()
        run_stage(run.root, folder, config, inputs, work, recipe.seed, resumes=stage.resumes)
        folders[name] = folder
    return folders

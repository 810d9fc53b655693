"""The stages in order, with their inputs and functions; `run` runs one of a recipe."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from mlpmem.errors import MlpMemError
from train.config.tables import Recipe
from train.run.ledger import check_fits
from train.run.needs import needs
from train.run.sizes import UnknownSizeError
from train.run.stage import StageContext, run_stage


@dataclass(frozen=True)
class Stage:
    """A stage's inputs and its function."""

    inputs: tuple[str, ...]
    function: str  # "module:name", imported only when the stage runs
    shared: bool = False  # every process of a launch runs a part of it
    resumes: bool = True  # continues a killed run, so that run's files are kept

    def load(self) -> Callable[[StageContext], dict]:
        """Return the stage's function."""
        module, name = self.function.split(":")
        return getattr(import_module(module), name)


STAGES = {
    "corpus": Stage((), "train.stages.corpus:make_corpus", resumes=False),
    "decoder": Stage(("corpus",), "train.stages.decoder:make_decoder", shared=True),
    "datastore": Stage(("corpus", "decoder"), "train.stages.datastore:make_datastore", shared=True),
    "targets": Stage(("decoder", "datastore"), "train.stages.targets:make_targets", shared=True),
    "memory": Stage(
        ("decoder", "datastore", "targets"), "train.stages.memory:make_memory", shared=True
    ),
    "router": Stage(
        ("corpus", "decoder", "datastore", "memory"),
        "train.stages.router:fit_routers",
        resumes=False,
    ),
    "controls": Stage(
        ("corpus", "decoder", "datastore", "targets", "memory"),
        "train.stages.controls:make_controls",
    ),
    "finetuned": Stage(("corpus", "decoder"), "train.stages.finetuned:compare_finetuned"),
    "evaluate": Stage(
        ("corpus", "decoder", "datastore", "targets", "memory", "router", "finetuned"),
        "train.stages.evaluate:evaluate",
        resumes=False,
    ),
    "export": Stage(
        (
            "corpus",
            "decoder",
            "datastore",
            "targets",
            "memory",
            "router",
            "finetuned",
            "evaluate",
        ),
        "train.stages.export:make_bundle",
        resumes=False,
    ),
}


def run(name: str, recipe: Recipe, root: Path, again: bool = False) -> dict:
    """Return the manifest of one stage of a recipe; runs the stage unless it is finished.

    MlpMemError for a finished stage with other settings or older inputs; `again` remakes it.
    """
    stage = STAGES[name]
    if recipe.stated.tokens:
        raise MlpMemError(
            f"recipe {recipe.name} has [stated] sizes instead of a corpus, so it is only for "
            f"`python -m train plan {recipe.name}` and does not run. Use a recipe with a corpus"
        )
    return run_stage(
        root,
        name,
        getattr(recipe, name),
        stage.inputs,
        stage.load(),
        recipe.seed,
        shared=stage.shared,
        resumes=stage.resumes,
        again=again,
        plan=lambda: _plan(name, recipe, root),
    )


def _plan(name: str, recipe: Recipe, root: Path) -> dict | None:
    """Return a stage's need, None if unknown; MlpMemError if the machine is too small."""
    try:
        return check_fits(needs(recipe, root)[name], root)
    except UnknownSizeError:  # the corpus is not on this machine
        return None

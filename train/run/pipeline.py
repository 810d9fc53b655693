"""The stages in their order: what each reads, which configuration it has, which function it is."""

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
    """One stage: its inputs and where its function stands (imported only when it runs)."""

    inputs: tuple[str, ...]
    function: str
    shared: bool = False  # every process of a launch runs it, each its part
    resumes: bool = True  # goes on where a killed run was, whose work is therefore kept

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
    """Return the manifest of one stage of a recipe, run if it is not done.

    One that was made with other settings or from older inputs is refused, or made `again`.
    """
    stage = STAGES[name]
    if recipe.stated.tokens:
        raise MlpMemError(
            f"recipe {recipe.name} states sizes instead of naming a corpus: it is for "
            f"`python -m train plan {recipe.name}` and does not run"
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
    """Return what a stage will need, None where that is not known; MlpMemError if it cannot fit."""
    try:
        return check_fits(needs(recipe, root)[name], root)
    except UnknownSizeError:  # a corpus that is streamed from elsewhere
        return None

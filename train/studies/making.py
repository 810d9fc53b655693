"""Stages of a study's own, made below the run as any run's are, skipped where they are done."""

from collections.abc import Iterable, Mapping

from train.config.tables import Recipe
from train.run.pipeline import STAGES
from train.run.stage import run_stage
from train.studies.run import Run


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

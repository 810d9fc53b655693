"""From TOML to a Recipe: an unknown key or a value of the wrong type is an error that names it.

Also a quick check that a Hub model can be downloaded, so that a missing network shows at once.
"""

import dataclasses
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import get_origin

from mlpmem.errors import MlpMemError
from mlpmem.loading.packages import PACKAGE
from train.config.tables import Recipe


def load_recipe(name: str) -> Recipe:
    """Return the recipe of a file, or one of train/recipes by name; MlpMemError if invalid."""
    known = Path(__file__).parents[1] / "recipes"
    path = Path(name) if Path(name).suffix == ".toml" else known / f"{name}.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = ", ".join(sorted(p.stem for p in known.glob("*.toml")))
        raise MlpMemError(f"no recipe {name!r}; use one of {names}, or a .toml file") from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MlpMemError(f"recipe {path.name}: {error}") from error
    recipe = fill(Recipe, {"name": path.stem} | values, path.name)
    _check_lengths(recipe)
    return _completed(recipe, path.resolve().parent)


def run_of(runs: Path, recipe: str) -> Path:
    """Return the folder of a recipe's run; the recipe is a name or a .toml file."""
    return runs / (load_recipe(recipe).name if Path(recipe).suffix == ".toml" else recipe)


def _check_lengths(recipe: Recipe) -> None:
    """Raise MlpMemError for lengths beyond max_positions of the decoder to be trained.

    Otherwise they would be found hours later. An existing decoder is checked when it is opened.
    """
    most = recipe.decoder.max_positions
    lengths = {
        "passage in [corpus]": recipe.corpus.passage,
        "window in [evaluate]": recipe.evaluate.window,
        "row in [decoder]": recipe.decoder.row,
    }
    if not recipe.corpus.cut or recipe.decoder.source or recipe.stated.tokens:
        return
    for name, length in lengths.items():
        if length > most:
            raise MlpMemError(
                f"recipe {recipe.name}: {name} must be at most {most} tokens, which is what the "
                f"decoder reads; got {length}. Lower it, or raise max_positions in [decoder]"
            )


def _completed(recipe: Recipe, base: Path) -> Recipe:
    """Return the recipe with absolute paths (relative ones start at `base`) and defaults filled in.

    The tokenizer defaults to an existing decoder's, the bundle's name to the recipe's. A packed row
    is at least one passage long; otherwise the passage's end is keyed but never learned.
    """

    def absolute(source: str) -> str:
        elsewhere = not source or source.startswith((HUB, PACKAGE))
        return source if elsewhere else str((base / source).resolve())

    corpus, decoder, datastore = recipe.corpus, recipe.decoder, recipe.datastore
    sources = {n: tuple(map(absolute, getattr(corpus, n))) for n in ("train", "valid", "test")}
    corpus = replace(corpus, **sources, tokenizer=absolute(corpus.tokenizer or decoder.source))
    targets = replace(recipe.targets, teacher=absolute(recipe.targets.teacher))
    passage = corpus.passage if corpus.cut and decoder.epochs else 0
    return replace(
        recipe,
        corpus=corpus,
        decoder=replace(decoder, source=absolute(decoder.source), row=max(decoder.row, passage)),
        datastore=replace(datastore, built=absolute(datastore.built)),
        targets=targets,
        export=replace(recipe.export, name=recipe.export.name or recipe.name),
        studies=replace(
            recipe.studies,
            domains=tuple((n, absolute(file), *rest) for n, file, *rest in recipe.studies.domains),
        ),
    )


def fill(kind: type, values: dict, where: str) -> object:
    """Return a dataclass of `kind` filled from a table, which error messages call `where`.

    MlpMemError for an unknown key or a wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = values.keys() - fields.keys()
    if unknown:
        raise MlpMemError(
            f"{where}: unknown {', '.join(sorted(unknown))}; allowed: {', '.join(fields)}"
        )
    return kind(**{key: _value(fields[key].type, key, values[key], where) for key in values})


def _value(kind: type, key: str, value: object, where: str) -> object:
    """Return one field's value as the dataclass holds it; MlpMemError for a wrong type."""
    allowed = kind.__name__
    if dataclasses.is_dataclass(kind):
        allowed = f"a table [{key}]"
        if isinstance(value, dict):
            return fill(kind, value, f"{where} [{key}]")
    elif get_origin(kind) is tuple:
        allowed = "a list"
        if isinstance(value, list):
            return tuple(tuple(v) if isinstance(v, list) else v for v in value)
    elif isinstance(value, bool) == (kind is bool):  # in Python a bool is an int
        if isinstance(value, (int, float) if kind is float else kind):
            return value
    raise MlpMemError(f"{where}: {key} must be {allowed}; got {value!r}")


HUB = "hub:"  # prefix of a name in a recipe; only such names use the network
TIMEOUT = 10.0  # seconds


def check_model(source: str) -> None:
    """Raise MlpMemError unless `source` is a path, or a cached or reachable Hub model."""
    if not source.startswith(HUB):
        return
    from huggingface_hub import HfApi, try_to_load_from_cache

    name = source.removeprefix(HUB)
    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
        HfApi().model_info(name, timeout=TIMEOUT)
    except Exception as error:  # the HTTP library's own classes, and those for malformed names
        why = str(error).partition("\n")[0]
        raise MlpMemError(
            f"recipe: cannot get {source} ({type(error).__name__}: {why}); check the network and "
            f'the name ("{HUB}owner/name"), or give a local folder with the decoder'
        ) from error

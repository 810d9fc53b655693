"""TOML -> a recipe: tables become dataclasses, whatever is unknown or of another type is named.

Whether a model of the Hub can be had, asked once: without a network nobody waits for retries.
"""

import dataclasses
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import get_origin

from mlpmem.errors import MlpMemError
from train.config.tables import Recipe


def load_recipe(name: str) -> Recipe:
    """Return the recipe of a file, or one of train/recipes by name; MlpMemError if it is wrong."""
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
    """Return the folder of a recipe's run, whether its name is given or its .toml file."""
    return runs / (load_recipe(recipe).name if Path(recipe).suffix == ".toml" else recipe)


def _check_lengths(recipe: Recipe) -> None:
    """Raise MlpMemError for lengths of a text that the decoder to be made could not read.

    They would be found hours later. What a decoder that exists can read is known once it is opened.
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
                f"recipe {recipe.name}: {name} is {length}, the decoder reads {most} tokens at "
                "most; raise max_positions in [decoder], or lower it"
            )


def _completed(recipe: Recipe, base: Path) -> Recipe:
    """Return the recipe with paths made absolute, from its file's folder, and names filled in.

    A decoder that exists brings its tokenizer, and a bundle is named after the recipe, unless the
    recipe names another. Rows that a decoder learns a text from hold a whole passage, or what is
    behind their end would be keyed but never learned.
    """

    def at(source: str) -> str:
        return source if not source or source.startswith("hub:") else str((base / source).resolve())

    corpus, decoder = recipe.corpus, recipe.decoder
    sources = {n: tuple(map(at, getattr(corpus, n))) for n in ("train", "valid", "test")}
    corpus = replace(corpus, **sources, tokenizer=at(corpus.tokenizer or decoder.source))
    targets = replace(recipe.targets, teacher=at(recipe.targets.teacher))
    whole = corpus.passage if corpus.cut and decoder.epochs else 0
    return replace(
        recipe,
        corpus=corpus,
        decoder=replace(decoder, source=at(decoder.source), row=max(decoder.row, whole)),
        targets=targets,
        export=replace(recipe.export, name=recipe.export.name or recipe.name),
        studies=replace(
            recipe.studies,
            domains=tuple((n, at(file), *how) for n, file, *how in recipe.studies.domains),
        ),
    )


def fill(kind: type, values: dict, where: str) -> object:
    """Return a dataclass of `kind` filled from a table; MlpMemError for an unknown key or type.

    `where` is what the message calls the table.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = values.keys() - fields.keys()
    if unknown:
        raise MlpMemError(
            f"{where}: unknown {', '.join(sorted(unknown))}; allowed: {', '.join(fields)}"
        )
    return kind(**{key: _value(fields[key].type, key, values[key], where) for key in values})


def _value(kind: type, key: str, value: object, where: str) -> object:
    """Return one field's value as the dataclass holds it; MlpMemError if it is of another type."""
    allowed = kind.__name__
    if dataclasses.is_dataclass(kind):
        allowed = f"a table [{key}]"
        if isinstance(value, dict):
            return fill(kind, value, f"{where} [{key}]")
    elif get_origin(kind) is tuple:
        allowed = "a list"
        if isinstance(value, list):
            return tuple(tuple(v) if isinstance(v, list) else v for v in value)
    elif isinstance(value, bool) == (kind is bool):  # Python counts a bool among the numbers
        if isinstance(value, (int, float) if kind is float else kind):
            return value
    raise MlpMemError(f"{where}: {key} is {value!r}, it must be {allowed}")


HUB = "hub:"  # before a name in a recipe: nothing else ever asks for the network
PATIENCE = 10.0  # seconds


def check_model(source: str) -> None:
    """Raise MlpMemError unless `source` is a path, or a model that is cached or can be reached."""
    if not source.startswith(HUB):
        return
    from huggingface_hub import HfApi, try_to_load_from_cache

    name = source.removeprefix(HUB)
    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
        HfApi().model_info(name, timeout=PATIENCE)
    except Exception as error:  # of whichever library asks, and of names that cannot be
        why = str(error).partition("\n")[0]
        raise MlpMemError(
            f"recipe: cannot get {source} ({type(error).__name__}: {why}); check the network and "
            f'the name ("{HUB}owner/name"), or give a folder with the decoder'
        ) from error

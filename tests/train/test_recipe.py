"""A recipe loads completely, or an error names the wrong value and what is allowed."""

import dataclasses
import json
from pathlib import Path

import pytest

from mlpmem.errors import MlpMemError
from train.config import tables as recipes
from train.config.load import fill, load_recipe
from train.config.tables import Recipe
from train.run.pipeline import STAGES

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "train/recipes").glob("*.toml")))
def test_shipped_recipes_load_by_name_and_by_file(name):
    by_name, by_path = load_recipe(name), load_recipe(str(ROOT / f"train/recipes/{name}.toml"))
    assert by_name == by_path and by_name.name == name


@pytest.mark.parametrize("part", list(STAGES))
def test_a_configuration_survives_json(part):
    config = getattr(load_recipe("tiny"), part)
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    assert fill(type(config), values, part) == config


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(MlpMemError, match="no recipe 'nope'; use one of .*atlas.*tiny"):
        load_recipe("nope")


def recipe_of(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_recipe(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sead = 3", "mine.toml: unknown sead; allowed: name, seed, corpus"),
        ("[memory]\nlayers = 3", r"mine.toml \[memory\]: unknown layers; allowed: blocks"),
        ("[memory.optimizer]\nrate = 1.0", r"\[memory\] \[optimizer\]: unknown rate; allowed: lr"),
        ("seed = ", "recipe mine.toml: Invalid value"),
        (b"seed = \xff", "recipe mine.toml: .*utf-8"),
        ("corpus = 3", r"mine.toml: corpus must be a table \[corpus\]; got 3"),
        ("seed = 1.5", "mine.toml: seed must be int; got 1.5"),
        ("[seed]\nvalue = 1", "mine.toml: seed must be int; got .*value"),
        ('[corpus]\nscale = "big"', r"mine.toml \[corpus\]: scale must be float; got 'big'"),
        ("[memory]\nkeep = true", r"mine.toml \[memory\]: keep must be str; got True"),
        ("[memory]\ntemperature = 0.0", "memory: temperature must be above 0; got 0.0"),
        (
            '[memory]\nhead = "tied"\ntemperature = 2.0',
            "memory: temperature must be 1 with a .*; got 2.0",
        ),
        ("[targets]\nk = true", r"mine.toml \[targets\]: k must be int; got True"),
        ("[studies]\npasses = 0", "studies: passes must be 1 or more; got 0"),
        ("[studies]\ndecoders = [64, 2]", "must be distinct pairs of whole numbers"),
        ("[studies]\ndecoders = [[64.5, 2]]", "must be distinct pairs of whole numbers"),
        ("[studies]\ndecoders = [[100, 2]]", "a multiple of 32"),
        ("[studies]\ndecoders = [[64, 2], [64, 2]]", "must be distinct pairs"),
        ('[studies]\ndomains = [["sea", "sea.txt"]]', "must be lists of four texts"),
        ('[studies]\ntuned = [["B", 1e-3, 2]]', "must be lists of groups"),
        ('[studies]\ntuned = [["B", 1e-3, 2, -1]]', "must be lists of groups"),
        ('[studies]\ntargets = [[32, "8"]]', "must be pairs of k"),
        ('[studies]\ndomains = [["a", "b", "", ""], ["a", "c", "", ""]]', "a distinct name"),
        (
            '[decoder]\ndtype = "float8"',
            "decoder: dtype must be one of bfloat16, float32; got 'float8'",
        ),
        ("[decoder]\nbatch = 0", "decoder: batch must be 1 or more; got 0"),
        ("[decoder]\nheads = 3", r"a multiple of twice the heads \(6\); got 256"),
        ("[decoder.optimizer]\nlr = -1e-3", "optimizer: lr must be above 0; got -0.001"),
        ("[corpus]\nvocab_size = 100", "corpus: vocab_size must be 258 or more; got 100"),
        ("[corpus]\nscale = 0", "corpus: scale must be above 0 and at most 1; got 0"),
        ("[corpus]\nshares = [-0.1, 0.2]", "shares must be two numbers .*; got .-0.1, 0.2."),
        (
            '[corpus]\nkind = "text"\npassage = 600',
            r"passage in \[corpus\] must be at most 512 .* got 600. Lower it, or raise max_pos",
        ),
        (
            '[corpus]\nkind = "text"\n[evaluate]\nwindow = 1024',
            r"window in \[evaluate\] must be at most 512 .* got 1024",
        ),
        ("[finetuned]\nsettings = 3", r"mine.toml \[finetuned\]: settings must be a list; got 3"),
    ],
)
def test_an_error_in_a_recipe_names_the_value_and_what_is_allowed(text, message, tmp_path):
    with pytest.raises(MlpMemError, match=message):
        recipe_of(tmp_path, text)


def test_a_recipe_takes_whole_numbers_where_fractions_are_allowed(tmp_path):
    recipe = recipe_of(tmp_path, "[corpus]\nscale = 1\n[finetuned]\nsettings = [['B', 1e-3, 2]]")
    assert recipe == Recipe(
        name="mine",
        corpus=recipes.CorpusConfig(scale=1),
        export=recipes.ExportConfig(name="mine"),
        finetuned=recipes.FinetunedConfig(settings=(("B", 1e-3, 2),)),
    )


@pytest.mark.parametrize(
    ("kind", "epochs", "row"), [("text", 1, 256), ("text", 0, 128), ("atlas", 1, 128)]
)
def test_packed_rows_hold_a_whole_passage_of_a_text(tmp_path, kind, epochs, row):
    recipe = recipe_of(tmp_path, f'[corpus]\nkind = "{kind}"\n[decoder]\nepochs = {epochs}')
    assert recipe.decoder.row == row and recipe.corpus.passage == 256


def test_paths_are_relative_to_the_recipe(tmp_path):
    recipe = recipe_of(tmp_path, '[targets]\nteacher = "other/datastore"')
    assert recipe.targets.teacher == str(tmp_path.resolve() / "other/datastore")

"""A recipe is read whole or answered with the place that is wrong and what is allowed there."""

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
def test_recipes_that_ship_load_and_a_file_gives_the_same(name):
    by_name, by_path = load_recipe(name), load_recipe(str(ROOT / f"train/recipes/{name}.toml"))
    assert by_name == by_path and by_name.name == name


@pytest.mark.parametrize("part", list(STAGES))
def test_a_configuration_survives_json(part):
    config = getattr(load_recipe("tiny"), part)
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    assert fill(type(config), values, part) == config


def test_an_unknown_recipe_is_answered_with_those_there_are():
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
        ("corpus = 3", r"mine.toml: corpus is 3, it must be a table \[corpus\]"),
        ("seed = 1.5", "mine.toml: seed is 1.5, it must be int"),
        ("[seed]\nvalue = 1", "mine.toml: seed is .*, it must be int"),
        ('[corpus]\nscale = "big"', r"mine.toml \[corpus\]: scale is 'big', it must be float"),
        ("[memory]\nkeep = true", r"mine.toml \[memory\]: keep is True, it must be str"),
        ("[memory]\ntemperature = 0.0", "memory: temperature is 0.0, it must be above 0"),
        ('[memory]\nhead = "tied"\ntemperature = 2.0', "memory: temperature 2.0 changes the head"),
        ("[targets]\nk = true", r"mine.toml \[targets\]: k is True, it must be int"),
        ("[studies]\npasses = 0", "studies: passes is 0, it must be 1 or more"),
        ("[studies]\ndecoders = [64, 2]", "each must be two whole numbers"),
        ("[studies]\ndecoders = [[64.5, 2]]", "each must be two whole numbers"),
        ("[studies]\ndecoders = [[100, 2]]", "a multiple of 32"),
        ("[studies]\ndecoders = [[64, 2], [64, 2]]", "none twice"),
        ('[studies]\ndomains = [["sea", "sea.txt"]]', "each must be four texts"),
        ('[studies]\ntuned = [["B", 1e-3, 2]]', "each must be groups"),
        ('[studies]\ntuned = [["B", 1e-3, 2, -1]]', "each must be groups"),
        ('[studies]\ntargets = [[32, "8"]]', "each must be neighbours"),
        ('[studies]\ndomains = [["a", "b", "", ""], ["a", "c", "", ""]]', "a name of its own"),
        ('[decoder]\ndtype = "float8"', "decoder: dtype is 'float8', it must be one of bfloat16"),
        ("[decoder]\nbatch = 0", "decoder: batch is 0, it must be 1 or more"),
        ("[decoder]\nheads = 3", "hidden_size 256 cannot be cut into 3 heads"),
        ("[decoder.optimizer]\nlr = -1e-3", "optimizer: lr is -0.001, it must be above 0"),
        ("[corpus]\nvocab_size = 100", "corpus: vocab_size is 100, it must be 258 or more"),
        ("[corpus]\nscale = 0", "corpus: scale is 0, it must be above 0"),
        ("[corpus]\nshares = [-0.1, 0.2]", "shares is .-0.1, 0.2. and must be"),
        (
            '[corpus]\nkind = "text"\npassage = 600',
            r"passage in \[corpus\] is 600, the decoder reads 512 tokens at most; raise max_pos",
        ),
        (
            '[corpus]\nkind = "text"\n[evaluate]\nwindow = 1024',
            r"window in \[evaluate\] is 1024, the decoder reads 512",
        ),
        ("[finetuned]\nsettings = 3", r"mine.toml \[finetuned\]: settings is 3, it must be a list"),
    ],
)
def test_a_wrong_recipe_is_answered_with_the_place_and_what_is_allowed(text, message, tmp_path):
    with pytest.raises(MlpMemError, match=message):
        recipe_of(tmp_path, text)


def test_a_recipe_takes_whole_numbers_where_fractions_are_allowed(tmp_path):
    made = recipe_of(tmp_path, "[corpus]\nscale = 1\n[finetuned]\nsettings = [['B', 1e-3, 2]]")
    assert made == Recipe(
        name="mine",
        corpus=recipes.CorpusConfig(scale=1),
        export=recipes.ExportConfig(name="mine"),
        finetuned=recipes.FinetunedConfig(settings=(("B", 1e-3, 2),)),
    )


@pytest.mark.parametrize(
    ("kind", "epochs", "row"), [("text", 1, 256), ("text", 0, 128), ("atlas", 1, 128)]
)
def test_a_decoder_learns_a_texts_passages_whole(tmp_path, kind, epochs, row):
    made = recipe_of(tmp_path, f'[corpus]\nkind = "{kind}"\n[decoder]\nepochs = {epochs}')
    assert made.decoder.row == row and made.corpus.passage == 256


def test_paths_are_relative_to_the_recipe(tmp_path):
    recipe = recipe_of(tmp_path, '[targets]\nteacher = "other/datastore"')
    assert recipe.targets.teacher == str(tmp_path.resolve() / "other/datastore")

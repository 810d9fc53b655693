"""Rows are chosen part by part: the same whatever the parts, and a killed run keeps what it has."""

import numpy as np
import pytest
import tiny

from mlpmem.errors import MlpMemError
from mlpmem.retrieval.datastore import Datastore
from train.config.tables import TargetsConfig
from train.run.stage import StageContext
from train.stages import target_rows, targets
from train.stages.target_rows import choose_rows
from train.stages.targets import make_targets

FLOOR = 5.0  # nats; about half of what a random decoder reads is harder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Return folders of a tiny decoder and its datastore."""
    return tiny.stages(tmp_path_factory.mktemp("inputs"))


def context(folder, inputs, **config):
    folder.mkdir(exist_ok=True)
    given = {"k": 6, "nll_floor": FLOOR, "easy_share": 0.3} | config
    return StageContext(folder, inputs, TargetsConfig(**given), seed=3)


def chosen_by(folder, inputs, **config):
    """Return (rows, counts) of choosing in a folder."""
    given = context(folder, inputs, **config)
    counts = choose_rows(given, Datastore.load(inputs["datastore"]))
    return np.load(folder / "rows.npy", allow_pickle=False), counts


@pytest.mark.parametrize("floor", [FLOOR, 100.0])
def test_rows_do_not_depend_on_the_parts(floor, inputs, tmp_path, monkeypatch):
    whole, _ = chosen_by(tmp_path / "whole", inputs, nll_floor=floor)
    monkeypatch.setattr(target_rows, "PART", 17)
    parts, counts = chosen_by(tmp_path / "parts", inputs, nll_floor=floor)
    assert 20 < len(whole) < 140 and parts.tolist() == whole.tolist()
    assert len(counts["scratch"]) == 10 and counts["earlier_seconds"] == 0.0


def test_luck_is_that_of_all_entries_at_once():
    every = np.random.default_rng(7).random(100)
    assert np.array_equal(target_rows._luck(7, 0, 100), every)
    assert np.array_equal(target_rows._luck(7, 37, 59), every[37:59])


def test_a_killed_run_asks_the_decoder_only_where_it_has_not(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(target_rows, "PART", 40)
    whole, _ = chosen_by(tmp_path / "whole", inputs)
    nll, asked = target_rows._nll, []

    def seen(decoder, store, start, end):
        if start == 80 and 80 not in asked:
            asked.append(start)
            raise KeyboardInterrupt
        asked.append(start)
        return nll(decoder, store, start, end)

    monkeypatch.setattr(target_rows, "_nll", seen)
    with pytest.raises(KeyboardInterrupt):
        chosen_by(tmp_path / "killed", inputs)
    rows, counts = chosen_by(tmp_path / "killed", inputs)
    assert asked == [0, 40, 80, 80, 120] and rows.tolist() == whole.tolist()
    assert counts["earlier_seconds"] > 0.0


def test_seconds_of_shards_that_a_killed_run_made_are_counted(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "QUERY_BLOCK", 16)
    make_targets(context(tmp_path, inputs))
    shards = [targets._seconds(path) for path in tmp_path.glob("shard_*.npz")]
    parts = [float(target_rows._read(tmp_path, 0)["seconds"])]
    counts = make_targets(context(tmp_path, inputs))
    assert counts["earlier_seconds"] == pytest.approx(sum(shards + parts))


def test_a_recipe_that_chose_no_row_leaves_nothing_in_the_way_of_one_that_does(inputs, tmp_path):
    with pytest.raises(MlpMemError, match="none of 159 entries"):
        make_targets(context(tmp_path, inputs, nll_floor=90.0, easy_share=0.0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"search": "ivfsq", "lists": 160}, "159 entries cannot be sorted into 160 lists"),
        ({"search": "ivfpq", "lists": 50, "probes": 1}, "Set probes to 7 or more"),
        ({"teacher": "/nowhere/datastore"}, "there is no teacher /nowhere/datastore"),
        ({"k": 159}, "k 159 is too many"),
    ],
)
def test_what_cannot_be_searched_is_said_before_anything_is_computed(
    config, message, inputs, tmp_path
):
    with pytest.raises(MlpMemError, match=message):
        make_targets(context(tmp_path, inputs, **config))
    assert not list(tmp_path.iterdir())

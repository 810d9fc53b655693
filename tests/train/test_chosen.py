"""Rows are chosen part by part: parts do not change them, and a killed run keeps its parts."""

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

FLOOR = 5.0  # nats; about half of a random decoder's tokens are harder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Return folders of a tiny decoder and its datastore."""
    return tiny.stages(tmp_path_factory.mktemp("inputs"))


def context(folder, inputs, **config):
    folder.mkdir(exist_ok=True)
    config = {"k": 6, "nll_floor": FLOOR, "easy_share": 0.3} | config
    return StageContext(folder, inputs, TargetsConfig(**config), seed=3)


def choose(folder, inputs, **config):
    """Return (rows, counts) of the rows chosen in a folder."""
    counts = choose_rows(context(folder, inputs, **config), Datastore.load(inputs["datastore"]))
    return np.load(folder / "rows.npy", allow_pickle=False), counts


@pytest.mark.parametrize("floor", [FLOOR, 100.0])
def test_rows_do_not_depend_on_the_parts(floor, inputs, tmp_path, monkeypatch):
    whole, _ = choose(tmp_path / "whole", inputs, nll_floor=floor)
    monkeypatch.setattr(target_rows, "PART", 17)
    parts, counts = choose(tmp_path / "parts", inputs, nll_floor=floor)
    assert 20 < len(whole) < 140 and parts.tolist() == whole.tolist()
    assert len(counts["scratch"]) == 10 and counts["earlier_seconds"] == 0.0


def test_sampling_is_the_same_for_any_split_of_the_entries():
    every = np.random.default_rng(7).random(100)
    assert np.array_equal(target_rows._uniform(7, 0, 100), every)
    assert np.array_equal(target_rows._uniform(7, 37, 59), every[37:59])


def test_a_killed_run_resumes_without_repeating_finished_parts(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(target_rows, "PART", 40)
    whole, _ = choose(tmp_path / "whole", inputs)
    nll, starts = target_rows._nll, []

    def counted(decoder, store, start, end):
        if start == 80 and 80 not in starts:
            starts.append(start)
            raise KeyboardInterrupt
        starts.append(start)
        return nll(decoder, store, start, end)

    monkeypatch.setattr(target_rows, "_nll", counted)
    with pytest.raises(KeyboardInterrupt):
        choose(tmp_path / "killed", inputs)
    rows, counts = choose(tmp_path / "killed", inputs)
    assert starts == [0, 40, 80, 80, 120] and rows.tolist() == whole.tolist()
    assert counts["earlier_seconds"] > 0.0


def test_seconds_of_a_killed_run_are_counted(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "QUERY_BLOCK", 16)
    make_targets(context(tmp_path, inputs))
    shards = [targets._seconds(path) for path in tmp_path.glob("shard_*.npz")]
    parts = [float(target_rows._read(tmp_path, 0)["seconds"])]
    counts = make_targets(context(tmp_path, inputs))
    assert counts["earlier_seconds"] == pytest.approx(sum(shards + parts))


def test_a_recipe_that_chooses_no_row_leaves_no_files(inputs, tmp_path):
    with pytest.raises(MlpMemError, match="none of the 159 entries"):
        make_targets(context(tmp_path, inputs, nll_floor=90.0, easy_share=0.0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"search": "ivfsq", "lists": 160}, "got 159 for 160 lists"),
        ({"search": "ivfpq", "lists": 50, "probes": 1}, "Set probes to 7 or more"),
        ({"teacher": "/nowhere/datastore"}, "teacher /nowhere/datastore is not a folder"),
        ({"k": 159}, "k must be less than the 159 entries .* got 159"),
    ],
)
def test_impossible_searches_are_refused_before_anything_is_computed(
    config, message, inputs, tmp_path
):
    with pytest.raises(MlpMemError, match=message):
        make_targets(context(tmp_path, inputs, **config))
    assert not list(tmp_path.iterdir())

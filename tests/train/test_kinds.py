"""A kind of corpus is one object: whoever adds one writes a class and a row, and nothing else."""

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tiny
import tiny_run

from mlpmem.errors import MlpMemError
from train.config import tables
from train.config.tables import CorpusConfig, EvaluateConfig, Recipe, Studies
from train.measure.by_token import MODES
from train.run.kinds import Kind, kind_named, kind_of
from train.run.needs import needs
from train.run.stage import StageContext
from train.stages.corpus import make_corpus
from train.stages.text import TextKind
from train.studies.run import Run

ROOT = Path(__file__).parents[2]


class LettersKind(TextKind):
    """Documents of one letter each."""

    name, distinct = "letters", 0.5

    def make(self, context):
        """Return how many letters there are; write them."""
        tiny.documents().save(context.folder / "memory")
        return {"tokens": 26}

    def tokens(self, recipe):
        """Return 26 letters."""
        return 26, 0, 20

    def heldout(self, split):
        """Return the only folder there is."""
        return "memory"


@pytest.fixture
def letters(monkeypatch):
    """Register the kind as a new one is: a class and a row."""
    module = ModuleType("letters")
    module.LettersKind = LettersKind
    monkeypatch.setitem(sys.modules, "letters", module)
    monkeypatch.setitem(tables.KINDS, "letters", "letters:LettersKind")
    yield
    kind_named.cache_clear()


@pytest.mark.parametrize("name", tables.KINDS)
def test_a_kind_has_all_that_is_asked_of_it(name):
    kind = kind_named(name)
    assert isinstance(kind, Kind) and kind.name == name and kind is kind_named(name)
    assert 0 < kind.distinct <= 1 and 0 < kind.hard <= 1 and kind.asks in (True, False)


def test_a_new_kind_is_a_class_and_a_row(tmp_path, letters):
    config = CorpusConfig(kind="letters")
    assert make_corpus(StageContext(tmp_path / "made", {}, config, 0)) == {"tokens": 26}
    planned = needs(Recipe("mine", corpus=config), tmp_path)
    assert planned["datastore"].tokens == 20 and planned["datastore"].entries == 10
    assert planned["finetuned"].tokens == planned["controls"].tokens == 0, "it asks nothing"
    paths = tiny_run.stages(tmp_path, "letters")
    assert kind_of(paths["corpus"]).name == "letters"
    measured = {"evaluate": EvaluateConfig(window=16, stride=8), "studies": Studies(positions=5)}
    run = Run(Recipe("mine", corpus=config, **measured), tmp_path, "mixing")
    documents, positions = run.text()
    assert run.kind.name == "letters" and len(positions) == 8, "one stride of the text there is"
    assert documents.titles == tiny.documents().titles


def test_a_kind_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(MlpMemError, match="kind is 'texts', it must be one of atlas, text"):
        CorpusConfig(kind="texts")


def test_no_stage_study_or_plan_knows_a_kind_by_name():
    named = re.compile(r"""kind[^\n]{0,9} [!=]= ["'](atlas|text)|\{["']atlas["']: """)
    for path in (ROOT / "train").rglob("*.py"):
        found = named.findall(path.read_text("utf-8"))
        assert not found or path.name == "tables.py", path


@pytest.mark.parametrize("name", tables.KINDS)
def test_every_kind_is_measured_by_mode_and_by_lambda_chosen_elsewhere(name, tmp_path):
    paths, kind = tiny_run.stages(tmp_path, name), kind_named(name)
    model = tiny.routed()
    by_mode = list(kind.measurements_by_mode(model, paths["corpus"], 5, 0))
    assert {one.lmbda for one in by_mode} == {"lm", *MODES}
    recipe = Recipe("mine", evaluate=EvaluateConfig(window=16, stride=8, ks=(2, 4), k=4),
                    studies=Studies(positions=20, questions=2))  # fmt: skip
    run = Run(recipe, tmp_path, "sizes")
    trial = run.trial(model.decoder, model.memory, model.datastore)
    found = list(kind.measurements(trial, ("lm", "memory", "knn")))
    assert {one.system for one in found} == {"lm", "memory", "knn"}
    assert {one.lmbda for one in found if one.system == "lm"} == {0.0}
    few = list(kind.measurements(run.trial(model.decoder, model.memory), ("memory",)))
    same = [one for one in found if one.system == "memory"]
    assert [one[:3] for one in few] == [one[:3] for one in same]
    values = [[one.values["value"] for one in some] for some in (few, same)]
    np.testing.assert_allclose(*values, rtol=1e-5)

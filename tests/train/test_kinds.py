"""A kind of corpus is one object: a new one needs only a class and a row."""

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tiny
import tiny_run

from mlpmem.errors import MlpMemError
from train.config.corpus import KINDS, CorpusConfig
from train.config.studies import StudiesConfig
from train.config.tables import EvaluateConfig, Recipe
from train.kinds.text import TextKind
from train.measure.by_token import MODES
from train.run.kinds import Kind, kind_named, kind_of
from train.run.needs import needs
from train.run.stage import StageContext
from train.stages.corpus import make_corpus
from train.studies.run import Run

ROOT = Path(__file__).parents[2]


class LettersKind(TextKind):
    """Documents of one letter each."""

    name, distinct = "letters", 0.5

    def make(self, context):
        """Write the letters; return counts."""
        tiny.documents().save(context.folder / "memory")
        return {"tokens": 26}

    def tokens(self, recipe):
        """Return 26 letters."""
        return 26, 0, 20

    def heldout(self, split):
        """Return the only folder."""
        return "memory"


@pytest.fixture
def letters(monkeypatch):
    """Register a new kind: a class and a row."""
    module = ModuleType("letters")
    module.LettersKind = LettersKind
    monkeypatch.setitem(sys.modules, "letters", module)
    monkeypatch.setitem(KINDS, "letters", "letters:LettersKind")
    yield
    kind_named.cache_clear()


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_has_every_required_member(name):
    kind = kind_named(name)
    assert isinstance(kind, Kind) and kind.name == name and kind is kind_named(name)
    assert 0 < kind.distinct <= 1 and 0 < kind.hard <= 1 and kind.has_questions in (True, False)


def test_a_new_kind_is_a_class_and_a_row(tmp_path, letters):
    config = CorpusConfig(kind="letters")
    assert make_corpus(StageContext(tmp_path / "out", {}, config, 0)) == {"tokens": 26}
    plan = needs(Recipe("mine", corpus=config), tmp_path)
    assert plan["datastore"].tokens == 20 and plan["datastore"].entries == 10
    assert plan["finetuned"].tokens == plan["controls"].tokens == 0, "it has no questions"
    paths = tiny_run.stages(tmp_path, "letters")
    assert kind_of(paths["corpus"]).name == "letters"
    measured = {
        "evaluate": EvaluateConfig(window=16, stride=8),
        "studies": StudiesConfig(positions=5),
    }
    run = Run(Recipe("mine", corpus=config, **measured), tmp_path, "mixing")
    documents, positions = run.text()
    assert run.kind.name == "letters" and len(positions) == 8, "one stride of the text"
    assert documents.titles == tiny.documents().titles


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(MlpMemError, match="kind must be one of atlas, chat, text; got 'texts'"):
        CorpusConfig(kind="texts")


def test_no_stage_study_or_plan_names_a_kind():
    pattern = re.compile(r"""kind[^\n]{0,9} [!=]= ["'](atlas|text)|\{["']atlas["']: """)
    for path in (ROOT / "train").rglob("*.py"):
        names = pattern.findall(path.read_text("utf-8"))
        assert not names or path.name == "corpus.py", path


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_measured_by_mode_and_by_lambda(name, tmp_path):
    paths, kind = tiny_run.stages(tmp_path, name), kind_named(name)
    model = tiny.routed()
    by_mode = list(kind.measurements_by_mode(model, paths["corpus"], 5, 0))
    assert {one.lmbda for one in by_mode} == {"lm", *MODES}
    recipe = Recipe("mine", evaluate=EvaluateConfig(window=16, stride=8, ks=(2, 4), k=4),
                    studies=StudiesConfig(positions=20, questions=2))  # fmt: skip
    run = Run(recipe, tmp_path, "sizes")
    trial = run.trial(model.decoder, model.memory, model.datastore)
    results = list(kind.measurements(trial, ("lm", "memory", "knn")))
    assert {one.system for one in results} == {"lm", "memory", "knn"}
    assert {one.lmbda for one in results if one.system == "lm"} == {0.0}
    only_memory = list(kind.measurements(run.trial(model.decoder, model.memory), ("memory",)))
    expected = [one for one in results if one.system == "memory"]
    assert [one[:3] for one in only_memory] == [one[:3] for one in expected]
    values = [[one.values["value"] for one in rows] for rows in (only_memory, expected)]
    np.testing.assert_allclose(*values, rtol=1e-5)

"""Texts for any corpus, and messages about a missing memory or datastore."""

import threading
from types import SimpleNamespace

import pytest

from mlpmem.engine.settings import Settings
from mlpmem.errors import MlpMemError
from mlpmem.ui.components import STATIC
from mlpmem.ui.panels import about, inspect
from mlpmem.ui.recordings import words
from mlpmem.ui.recordings.recorded import Recorded
from mlpmem.ui.service.service import NO_MEMORY, BackgroundTask, Service

ATLAS = Recorded(titles=[["Peru", "A1"], ["Oslo", "A2"], ["Vellmar", "B"]])
OTHERS = (Recorded(), Recorded(titles=[["notes.txt", "text"]]), Recorded(titles=[["Peru", "A1"]]))


@pytest.mark.parametrize("other", OTHERS)
def test_other_corpora_have_neutral_texts(other):
    found = words.words(other)
    everything = " ".join(vars(found).values()) + words.fitted(about.TEXT.read_text("utf-8"), other)
    for word in ("atlas", "Peru", "invented", "A2", "<!-- other", "<!-- atlas"):
        assert word not in everything
    assert "perplexity curve" in everything and "Once upon a time" in everything


def test_an_atlas_has_its_groups_and_examples():
    text = words.fitted(about.TEXT.read_text("utf-8"), ATLAS)
    assert "three groups of the atlas" in text and "capital of Peru" in text
    assert "Once upon" not in text and "atlas: begin" not in text
    assert words.words(ATLAS).corpus == "the atlas"


def test_no_script_mentions_the_atlas():
    for path in STATIC.rglob("*.js"):
        assert "atlas" not in path.read_text("utf-8").lower(), path.name


def model(*systems):
    def lmbdas(names, _):
        return dict.fromkeys(names, 0.5)

    return SimpleNamespace(systems=list(systems), lmbdas=lmbdas, routers={}, settings=Settings())


def test_a_column_without_a_memory_shows_progress_or_how_to_train_one():
    seen, wait = [], threading.Event()

    def make(tell):
        seen.append(service.status.no_memory)
        tell("distilling a memory: targets, 67%", 0.67)
        seen.append(service.payload({})["no_memory"])
        wait.set()
        return model("lm", "memory", "knn"), "made"

    datastore = BackgroundTask("datastore", lambda tell: (model("lm", "knn"), "built"))
    tasks = [datastore, BackgroundTask("memory", make)]
    service = Service(lambda tell: (model("lm"), tasks))
    service.start().join(10)
    assert wait.is_set()
    assert seen == [
        "The memory is being trained. The other columns answer already.",
        "The memory is being trained (targets, 67%). The other columns answer already.",
    ]
    assert service.status.no_memory == ""
    without = Service(lambda tell: (model("lm", "knn"), []))
    assert without.status.no_memory == ""
    without.start().join(10)
    assert without.status.no_memory == NO_MEMORY and "--train-memory" in NO_MEMORY


def test_a_failed_memory_has_its_own_message(capsys):
    def make(tell):
        raise MlpMemError("there is no room")

    service = Service(lambda tell: (model("lm", "knn"), [BackgroundTask("memory", make)]))
    service.start().join(10)
    assert service.status.no_memory == "The memory could not be trained."
    assert "no room" in capsys.readouterr().err


def test_searching_without_a_datastore_is_an_error():
    service = Service(lambda tell: (model("lm", "memory"), []))
    service.start().join(10)
    with pytest.raises(MlpMemError, match="no corpus to search"):
        _ = service.corpus


def test_a_text_is_inspected_with_the_first_available_source_or_by_the_decoder_alone():
    systems_used = []

    def inspected(text, system, **rest):
        systems_used.append(system)
        return iter(())

    for systems in (("lm", "memory", "knn"), ("lm", "knn"), ("lm",)):
        served = model(*systems)
        served.inspect = inspected
        served.only = lambda system, served=served: served
        service = SimpleNamespace(model=served)
        shared = SimpleNamespace(service=service, store=lambda *own: None, searched=lambda *own: "")
        shared.of = lambda taught, shared=shared: shared
        list(inspect._inspector(shared)("A text.", None, "", "atlas"))
    assert systems_used == ["memory", "memory", "knn", "lm"], "the memory also before the search"

"""Spaces' folders: whole, accepted by their host, never in somebody's way; and the lease."""

import re
import subprocess
import sys
import threading
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import tiny
from huggingface_hub import SpaceCard

from mlpmem.errors import MlpMemError
from mlpmem.space import __main__ as command
from mlpmem.space import build as building
from mlpmem.space.build import Card
from mlpmem.space.lease import LeasedModel, seconds

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spaces")
    bundle = tiny.bundle(folder / "bundle", traces=[]).folder
    return {kind: building.build(folder / kind, kind, bundle=bundle) for kind in ("cpu", "zero")}


def test_the_card_is_what_the_host_reads(built):
    for made in built.values():
        card = SpaceCard.load(made.folder / "README.md").data
        assert (card.sdk, card.app_file, card.emoji) == ("gradio", "app.py", "\N{BRAIN}")
        assert f"gradio=={card.sdk_version}" in (ROOT / "requirements.txt").read_text()
        assert card.python_version == "3.12", "a text: a YAML number would lose a last zero"
        assert (made.folder / card.app_file).is_file() and len(card.short_description) <= 60


def test_requirements_leave_the_host_its_own(built):
    read = lambda kind: (built[kind].folder / "requirements.txt").read_text().split()  # noqa: E731
    names = {re.split("=", line)[0] for line in read("cpu")}
    assert not names & {"gradio", "spaces", "huggingface_hub", "accelerate"}
    assert any(line.startswith("torch==") for line in read("cpu"))
    assert "torch" in read("zero"), "the host has its choice of releases"


def test_a_folder_holds_library_and_bundle_and_no_leavings(built):
    for made in built.values():
        there = {path.relative_to(made.folder).as_posix() for path in made.folder.rglob("*")}
        assert {"mlpmem/ui/static/main.js", "assets/atlas/manifest.json", "LICENSE"} <= there
        assert not [name for name in there if "__pycache__" in name or "/." in name]


@pytest.mark.slow
def test_the_library_in_a_folder_finds_the_bundle_in_it(built):
    ask = [sys.executable, "-B", "-c", "import mlpmem; print(mlpmem.load().systems)"]
    said = subprocess.run(ask, cwd=built["cpu"].folder, capture_output=True, text=True)
    assert "'knn'" in said.stdout, said.stderr


def test_a_large_bundle_stays_outside_and_the_card_says_what_to_do(tmp_path, monkeypatch):
    bundle = tiny.bundle(tmp_path / "bundle", traces=[]).folder
    monkeypatch.setattr(building, "BUNDLE_BYTES", 1000)
    made = building.build(tmp_path / "out", "cpu", bundle=bundle)
    assert not (made.folder / "assets").exists()
    assert "MLPMEM_BUNDLE" in made.notes[0]
    assert made.notes[0] in (made.folder / "README.md").read_text("utf-8")


def test_building_replaces_its_own_folder_and_nobody_elses(tmp_path, capsys):
    bundle = tiny.bundle(tmp_path / "bundle", traces=[]).folder
    arguments = ["build", str(tmp_path / "out"), "--bundle", str(bundle)]
    assert command.main(arguments) == 0
    assert "hf upload YOUR_NAME/mlp-memory" in capsys.readouterr().out
    (tmp_path / "out" / "stale.txt").write_text("x")
    assert command.main(arguments) == 0
    assert not (tmp_path / "out" / "stale.txt").exists()
    (tmp_path / "out" / "README.md").write_text("my own")
    assert command.main(arguments) == 2
    assert "something else" in capsys.readouterr().err
    assert (tmp_path / "out" / "README.md").read_text() == "my own"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "out"]


def test_a_damaged_bundle_is_not_packed(tmp_path):
    bundle = tiny.bundle(tmp_path / "bundle", traces=[]).folder
    (bundle / "examples.json").write_text("[]")
    with pytest.raises(MlpMemError, match="examples.json"):
        building.build(tmp_path / "out", "zero", bundle=bundle)
    assert not (tmp_path / "out").exists()


def test_what_a_host_would_refuse_is_refused_here():
    with pytest.raises(MlpMemError, match="61 characters"):
        Card("x", short_description="x" * 61)
    with pytest.raises(MlpMemError, match="one line"):
        Card("x\nsdk: docker")


class Lease:
    """A lease whose values go to another process and back, as far as they can tell."""

    def __init__(self):
        self.begun, self.ended = [], 0

    def __call__(self, task):
        def run(*args):
            self.begun.append(args)
            try:
                for value in task(*copied(args)):
                    yield copied(value)
            finally:
                self.ended += 1

        return run


def copied(value):
    return ForkingPickler.loads(ForkingPickler.dumps(value))


@pytest.fixture
def leased(tiny_model):
    lease = Lease()
    return LeasedModel(tiny_model, tiny_model, lease), lease


def texts(traces):
    return {name: (trace.text, trace.finish) for name, trace in traces.items()}


def test_a_leased_model_says_what_the_model_says_in_one_lease_a_run(leased, tiny_model):
    model, lease = leased
    assert model.systems == tiny_model.systems
    options = {"max_new_tokens": 4, "temperature": 1.0, "seed": 3}
    assert texts(model.compare("Peru", **options)) == texts(tiny_model.compare("Peru", **options))
    assert len(lease.begun) == 1, "all columns share it"
    assert texts(model.scrub("Peru", **options)) == texts(tiny_model.scrub("Peru", **options))
    turns = [("Where is Lima?", "")]
    assert model.chat(turns, **options).text == tiny_model.chat(turns, **options).text
    *_, done = model.stream("Peru", max_new_tokens=3)
    assert done.kind == "done" and set(done.values) == set(model.systems)
    assert len(lease.begun) == lease.ended == 4
    assert model.score("Peru is").ids == tiny_model.score("Peru is").ids


def test_a_part_of_a_leased_model_and_a_batch_stay_leased(leased, tiny_model):
    model, lease = leased
    alone = model.only("memory")
    assert alone.systems == ["lm", "memory"] and isinstance(alone, LeasedModel)
    assert alone.generate("Peru", max_new_tokens=2).text == (
        tiny_model.generate("Peru", "memory", max_new_tokens=2).text
    )
    assert len(lease.begun) == 1
    made = model.generate(["Peru", "Gold"], "lm", max_new_tokens=2)
    assert [t.prompt for t in made] == ["Peru", "Gold"] and len(lease.begun) == lease.ended == 3


def test_nothing_is_leased_for_what_cannot_be_or_need_not_be(leased, tiny_model):
    model, lease = leased
    with pytest.raises(MlpMemError, match="max_new_tokens"):
        model.compare("Peru", max_new_tokens=0)
    own = tiny_model.store_texts([("mine", "Peru is where I live.")])
    assert "knn" in model.compare("Peru", ["knn"], store=own, max_new_tokens=2)
    assert lease.begun == []


def test_leaving_and_stopping_give_the_lease_back(leased):
    model, lease = leased
    events = model.stream("Peru", max_new_tokens=50)
    next(events)
    events.close()
    assert lease.ended == 1
    stop = threading.Event()
    stop.set()
    assert model.compare("Peru", cancel=stop, max_new_tokens=50) == {}
    assert lease.ended == 2


def test_a_lease_is_as_long_as_its_tokens_need():
    short, long = (seconds("stream", "x", {"max_new_tokens": n}) for n in (1, 128))
    assert 5 < short < long < 15
    assert seconds("stream_scrub", "x", {"max_new_tokens": 128}) > long

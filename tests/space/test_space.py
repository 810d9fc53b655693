"""Spaces' folders (complete, valid, never replacing other files), and the GPU lease."""

import json
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
from mlpmem.space import live
from mlpmem.space.build import Card
from mlpmem.space.lease import LeasedModel, seconds
from mlpmem.ui.recordings import saved

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spaces")
    bundle = tiny.bundle(folder / "bundle", traces=[]).folder
    return {kind: building.build(folder / kind, kind, bundle=bundle) for kind in ("cpu", "zero")}


def test_the_card_is_valid_for_the_host(built):
    for space in built.values():
        card = SpaceCard.load(space.folder / "README.md").data
        assert (card.sdk, card.app_file, card.emoji) == ("gradio", "app.py", "\N{BRAIN}")
        assert f"gradio=={card.sdk_version}" in (ROOT / "requirements.txt").read_text()
        assert card.python_version == "3.12", "as text: a YAML number would lose a trailing zero"
        assert (space.folder / card.app_file).is_file() and len(card.short_description) <= 60


def test_requirements_omit_the_hosts_own_packages(built):
    read = lambda kind: (built[kind].folder / "requirements.txt").read_text().split()  # noqa: E731
    names = {re.split("=", line)[0] for line in read("cpu")}
    assert not names & {"gradio", "spaces", "huggingface_hub", "accelerate"}
    assert any(line.startswith("torch==") for line in read("cpu"))
    assert "torch" in read("zero"), "the host chooses the release"


def test_a_folder_has_library_and_bundle_without_caches(built):
    for space in built.values():
        names = {path.relative_to(space.folder).as_posix() for path in space.folder.rglob("*")}
        assert {"mlpmem/ui/static/main.js", "assets/atlas/manifest.json", "LICENSE"} <= names
        assert not [name for name in names if "__pycache__" in name or "/." in name]


@pytest.mark.slow
def test_the_library_in_a_folder_finds_its_bundle(built):
    ask = [sys.executable, "-B", "-c", "import mlpmem; print(mlpmem.load().systems)"]
    process = subprocess.run(ask, cwd=built["cpu"].folder, capture_output=True, text=True)
    assert "'knn'" in process.stdout, process.stderr


def test_a_large_bundle_is_not_copied_and_the_card_says_how_to_mount_it(tmp_path, monkeypatch):
    bundle = tiny.bundle(tmp_path / "bundle", traces=[]).folder
    monkeypatch.setattr(building, "BUNDLE_BYTES", 1000)
    space = building.build(tmp_path / "out", "cpu", bundle=bundle)
    assert not (space.folder / "assets").exists()
    assert "MLPMEM_BUNDLE" in space.notes[0]
    assert space.notes[0] in (space.folder / "README.md").read_text("utf-8")


def test_building_replaces_earlier_builds_only(tmp_path, capsys):
    bundle = tiny.bundle(tmp_path / "bundle", traces=[]).folder
    arguments = ["build", str(tmp_path / "out"), "--bundle", str(bundle)]
    assert command.main(arguments) == 0
    assert "hf upload YOUR_NAME/mlp-memory" in capsys.readouterr().out
    (tmp_path / "out" / "stale.txt").write_text("x")
    assert command.main(arguments) == 0
    assert not (tmp_path / "out" / "stale.txt").exists()
    (tmp_path / "out" / "README.md").write_text("my own")
    assert command.main(arguments) == 2
    assert "has other files" in capsys.readouterr().err
    assert (tmp_path / "out" / "README.md").read_text() == "my own"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "out"]


def test_a_damaged_bundle_is_refused(tmp_path):
    bundle = tiny.bundle(tmp_path / "bundle", traces=[]).folder
    (bundle / "examples.json").write_text("[]")
    with pytest.raises(MlpMemError, match="examples.json"):
        building.build(tmp_path / "out", "zero", bundle=bundle)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["cpu", "static"])
def test_only_what_the_manifest_lists_is_packed_and_no_link(kind, tiny_model, tmp_path):
    traces = tiny_model.compare("Peru", max_new_tokens=2)
    run = saved.record("Peru", {"answer": "Lima"}, 0.5, traces)
    bundle = tiny.bundle(tmp_path / "bundle", traces=[run]).folder
    (tmp_path / "private").write_text("my secret")
    (bundle / "notes.txt").symlink_to(tmp_path / "private")
    (bundle / "traces" / "99.json").symlink_to(tmp_path / "private")
    (bundle / "decoder" / "adapter_config.json").write_text("{}")
    made = building.build(tmp_path / "out", kind, bundle=bundle)
    files = [path for path in made.folder.rglob("*") if path.is_file()]
    assert not [path for path in files if path.is_symlink() or b"my secret" in path.read_bytes()]
    if kind == "cpu":
        there = made.folder / "assets" / "atlas"
        names = {p.relative_to(there).as_posix() for p in there.rglob("*") if p.is_file()}
        listed = json.loads((there / "manifest.json").read_text())["files"]
        assert names == {"manifest.json", *listed}
    (bundle / "examples.json").unlink()
    (bundle / "examples.json").symlink_to(tmp_path / "private")
    with pytest.raises(MlpMemError, match="examples.json is a link"):
        building.build(tmp_path / "out", kind, bundle=bundle)


@pytest.fixture
def recorded_bundle(tiny_model, tmp_path):
    """Return the folder of a tiny bundle with a recorded run, without which there is no site."""
    run = saved.record("Peru", {}, 0.5, tiny_model.compare("Peru", max_new_tokens=2))
    return tiny.bundle(tmp_path / "bundle", traces=[run]).folder


def test_a_static_folder_has_the_models_own_bytes_in_small_parts(
    recorded_bundle, tmp_path, monkeypatch
):
    monkeypatch.setattr(live, "PART_BYTES", 20_000)
    made = building.build(tmp_path / "out", "static", bundle=recorded_bundle)
    text = (made.folder / "recordings.js").read_text("utf-8")
    listing = json.loads(text.removeprefix("MLPMEM.site(").removesuffix(");\n"))["live"]
    manifest = json.loads((recorded_bundle / "manifest.json").read_text())
    assert {*listing["files"]} == {*live.FILES} & {*manifest["files"]}
    for name, file in listing["files"].items():
        parts = [(made.folder / part).read_bytes() for part in file["parts"]]
        assert b"".join(parts) == (recorded_bundle / name).read_bytes()
        assert (
            max(map(len, parts)) <= 20_000 and file["sha256"] == manifest["files"][name]["sha256"]
        )
    assert listing["eos"] == [1] and (made.folder / "worker.js").is_file() and made.notes == []


def test_a_model_that_no_browser_runs_leaves_the_recorded_runs(
    recorded_bundle, tmp_path, monkeypatch
):
    monkeypatch.setattr(live, "FAMILIES", ("other",))
    made = building.build(tmp_path / "out", "static", bundle=recorded_bundle)
    assert "recorded runs only" in made.notes[0]
    assert not (made.folder / "model").exists() and not (made.folder / "worker.js").exists()
    assert '"live": null' in (made.folder / "recordings.js").read_text("utf-8")


def test_a_card_that_the_host_would_refuse_is_an_error():
    with pytest.raises(MlpMemError, match="at most 60 characters; got 61"):
        Card("x", short_description="x" * 61)
    with pytest.raises(MlpMemError, match="one line"):
        Card("x\nsdk: docker")


class Lease:
    """A lease that pickles arguments and values, as if it ran in another process."""

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


def test_a_leased_model_equals_the_model_with_one_lease_per_run(leased, tiny_model):
    model, lease = leased
    assert model.systems == tiny_model.systems
    options = {"max_new_tokens": 4, "temperature": 1.0, "seed": 3}
    assert texts(model.compare("Peru", **options)) == texts(tiny_model.compare("Peru", **options))
    assert len(lease.begun) == 1, "all columns share one lease"
    assert texts(model.scrub("Peru", **options)) == texts(tiny_model.scrub("Peru", **options))
    turns = [("Where is Lima?", "")]
    assert model.chat(turns, **options).text == tiny_model.chat(turns, **options).text
    *_, done = model.stream("Peru", max_new_tokens=3)
    assert done.kind == "done" and set(done.values) == set(model.systems)
    assert len(lease.begun) == lease.ended == 4
    batch = {"systems": ["memory"], "samples": 2, "ranked": 3, **options}
    *_, done = model.stream_batch(["Peru", "Gold"], **batch)
    *_, expected = tiny_model.stream_batch(["Peru", "Gold"], **batch)
    assert texts(done.values) == texts(expected.values)
    assert len(lease.begun) == lease.ended == 5, "a batch has one lease"
    assert model.score("Peru is").ids == tiny_model.score("Peru is").ids


def test_parts_and_batches_of_a_leased_model_are_leased(leased, tiny_model):
    model, lease = leased
    memory_only = model.only("memory")
    assert memory_only.systems == ["lm", "memory"] and isinstance(memory_only, LeasedModel)
    assert memory_only.generate("Peru", max_new_tokens=2).text == (
        tiny_model.generate("Peru", "memory", max_new_tokens=2).text
    )
    assert len(lease.begun) == 1
    traces = model.generate(["Peru", "Gold"], "lm", max_new_tokens=2)
    assert [t.prompt for t in traces] == ["Peru", "Gold"] and len(lease.begun) == lease.ended == 3


def test_invalid_runs_and_runs_on_own_texts_take_no_lease(leased, tiny_model):
    model, lease = leased
    with pytest.raises(MlpMemError, match="max_new_tokens"):
        model.compare("Peru", max_new_tokens=0)
    own = tiny_model.store_texts([("mine", "Peru is where I live.")])
    assert "knn" in model.compare("Peru", ["knn"], store=own, max_new_tokens=2)
    assert lease.begun == []


def test_closing_and_cancelling_end_the_lease(leased):
    model, lease = leased
    events = model.stream("Peru", max_new_tokens=50)
    next(events)
    events.close()
    assert lease.ended == 1
    stop = threading.Event()
    stop.set()
    assert model.compare("Peru", cancel=stop, max_new_tokens=50) == {}
    assert lease.ended == 2


def test_a_lease_grows_with_the_number_of_tokens():
    short, long = (seconds("stream", "x", {"max_new_tokens": n}) for n in (1, 128))
    assert 5 < short < long < 15
    assert seconds("stream_scrub", "x", {"max_new_tokens": 128}) > long
    assert seconds("stream_batch", ["x", "y"], {"max_new_tokens": 128}) > long

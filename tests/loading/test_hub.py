"""A Hub id is fetched once; the weights of an unknown family are not fetched."""

import json
import shutil

import pytest
import tiny
from fake_hub import FakeHub

import mlpmem
from mlpmem.engine import fused
from mlpmem.errors import MlpMemError
from mlpmem.loading import bundle, hub, parts, presets
from mlpmem.ui.service import loads

DECODER, MEMORY = "someone/decoder", "someone/memory"


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Return a fake Hub with a decoder and its memory, and an empty cache."""
    bound = tiny.decoder("gpt2")
    bound.model.save_pretrained(tmp_path / "decoder")
    bound.tokenizer.save_pretrained(tmp_path / "decoder")
    tiny.memory(bound, "gpt2").save(tmp_path / "memory")
    fake = FakeHub({DECODER: tmp_path / "decoder", MEMORY: tmp_path / "memory"})
    fake.be_the_hub(monkeypatch, tmp_path / "cache")
    yield fake
    fake.close()


@pytest.fixture
def counts(monkeypatch):
    """Return what is fetched, in order, and how often threads are calibrated."""
    found = {"fetched": [], "calibrated": 0}
    fetch, calibrate = hub.fetch, parts.calibrate

    def counted(source, what, **options):
        found["fetched"].append(what)
        return fetch(source, what, **options)

    def measured(decoder, memory):
        found["calibrated"] += 1
        return calibrate(decoder, memory)

    for module in (hub, parts, presets):
        monkeypatch.setattr(module, "fetch", counted)
    for module in (parts, bundle, fused):
        monkeypatch.setattr(module, "calibrate", measured)
    return found


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}, {"dtype": "int8"}])
def test_parts_are_fetched_once_and_a_model_is_calibrated_once(served, counts, options, tmp_path):
    (tmp_path / "notes.txt").write_text("The capital of Peru is Lima.", encoding="utf-8")
    text = tmp_path / "notes.txt"
    model = mlpmem.load(decoder=DECODER, memory=MEMORY, text=text, **options)
    assert model.systems == ["lm", "memory", "knn"]
    assert counts == {"fetched": ["decoder", "memory"], "calibrated": 1}


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}])
def test_a_preset_is_fetched_and_calibrated_once(served, counts, options):
    preset = presets.PRESETS["gpt2-large-wikitext103"]
    served.repositories = {
        preset.decoder.hub_id: served.repositories[DECODER],
        preset.memory.hub_id: served.repositories[MEMORY],
    }
    mlpmem.load("gpt2-large-wikitext103", **options)
    assert counts == {"fetched": ["decoder", "memory"], "calibrated": 1}
    listed = [path for path in served.asked if path.startswith("GET /api/models")]
    assert listed


@pytest.mark.parametrize("options", [{}, {"plain": True}, {"form": "bfloat16"}])
def test_the_page_fetches_and_calibrates_once(served, counts, options):
    lines = []
    model, _ = loads.open_parts(DECODER, MEMORY, **options)(lambda line, share: lines.append(line))
    assert counts == {"fetched": ["decoder", "memory"], "calibrated": 1}
    assert lines[-1] == "reading the weights"
    assert (model.decoder.folder / "config.json").is_file()


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}, {"dtype": "int8"}])
def test_a_bundle_is_calibrated_once(tiny_bundle, counts, options):
    mlpmem.load(tiny_bundle.folder, **options)
    assert counts == {"fetched": [], "calibrated": 1}


def test_an_unknown_family_is_refused_before_its_weights_are_requested(served):
    folder = shutil.copytree(served.repositories[DECODER], served.repositories[DECODER] / "../odd")
    served.repositories["someone/odd"] = folder
    path = folder / "config.json"
    row = json.loads(path.read_text())
    path.write_text(json.dumps(row | {"model_type": "mamba"}))
    with pytest.raises(MlpMemError, match="decoder family 'mamba' is not known; known are gpt2"):
        mlpmem.load(decoder="someone/odd", memory=MEMORY)
    got = [line.rpartition("/")[2] for line in served.asked if "/resolve/" in line]
    assert set(got) == {"config.json"}
    hub.fetch(DECODER, "decoder")
    assert any("model.safetensors" in line for line in served.asked)


def test_a_name_that_is_neither_folder_nor_reachable_is_refused(tmp_path):
    with pytest.raises(MlpMemError, match="neither a local folder nor downloaded"):
        hub.fetch("nobody/no-such-memory", "memory", local_files_only=True)
    with pytest.raises(MlpMemError, match="cannot be downloaded .*offline.*check the path, or the"):
        hub.fetch("nobody/no-such-memory", "memory")
    with pytest.raises(MlpMemError, match="neither a local folder nor a Hub id"):
        hub.fetch(tmp_path / "nothing", "decoder")

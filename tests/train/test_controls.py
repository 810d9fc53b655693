"""The stage controls: a memory that differs in one setting is trained and measured."""

import dataclasses

import numpy as np
import pytest
import tiny_run

from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from train.config.tables import ControlsConfig, MemoryFitConfig, TargetsConfig
from train.files import read_json, write_json
from train.measure.atlas import MeasuredModel, Test
from train.run.stage import StageContext
from train.stages import controls
from train.stages.targets import make_targets

SHAPE = MemoryFitConfig(
    blocks=1, intermediate_size=16, epochs=2, batch=16, processes=1, dtype="float32",
    validation_rows=0,
)  # fmt: skip


@pytest.fixture
def inputs(tmp_path):
    """Return stages with real targets and with the memory's config in its manifest."""
    paths = tiny_run.stages(tmp_path)
    config = TargetsConfig(k=8, easy_share=1.0)
    make_targets(StageContext(paths["targets"], paths, config, 0))
    manifests = {"targets": config, "memory": SHAPE}
    for name, used in manifests.items():
        manifest = read_json(paths[name] / "manifest.json")
        manifest["config"] = dataclasses.asdict(used) | {"seed": 0}
        write_json(paths[name] / "manifest.json", manifest)
    manifest = read_json(paths["datastore"] / "manifest.json")
    write_json(paths["datastore"] / "manifest.json", manifest | {"config": {"depth": -1}})
    return paths


def test_a_control_differs_in_its_named_setting_and_is_measured(inputs, tmp_path, monkeypatch):
    folder = tmp_path / "controls"
    folder.mkdir()
    config = ControlsConfig(memories=({"alpha": 0.0}, {"blocks": 2}), questions=50)
    context = StageContext(folder, inputs, config, 0)
    counts = controls.make_controls(context)
    assert counts["memories"] == 2
    assert "alpha_0/checkpoint.safetensors" in counts["scratch"]
    first, second = read_json(folder / "controls.json")
    assert (first["name"], second["name"]) == ("alpha_0", "blocks_2")
    assert read_json(folder / "alpha_0/job.json")["config"] == dataclasses.asdict(
        dataclasses.replace(SHAPE, alpha=0.0)
    ) | {"trackers": [], "context": [], "optimizer": dataclasses.asdict(SHAPE.optimizer)}
    assert Memory.load(folder / "blocks_2").config.num_layers == 2
    decoder, memory = Decoder.load(inputs["decoder"]), Memory.load(folder / "alpha_0").float()
    test = Test.load(inputs["corpus"], decoder.tokenizer, 50, 0)
    measured = test.measure(MeasuredModel(decoder, memory))
    assert first["ppl_B"] == pytest.approx(measured.perplexity("memory", first["lmbda"])["B"])
    assert first["seconds"] > 0 and first["bytes"] == memory.bytes
    monkeypatch.setattr(controls, "make_memory", lambda context: 1 / 0)
    assert controls.make_controls(context) == counts  # nothing is trained again


def test_targets_do_not_matter_with_alpha_0(inputs, tmp_path):
    weights = []
    for name, scale in (("one", 1.0), ("two", 0.5)):
        probs = np.load(inputs["targets"] / "probs.npy")
        np.save(inputs["targets"] / "probs.npy", (probs * scale).astype(np.float16))
        folder = tmp_path / name
        folder.mkdir()
        config = ControlsConfig(memories=({"alpha": 0.0},), questions=5)
        controls.make_controls(StageContext(folder, inputs, config, 0))
        weights.append(Memory.load(folder / "alpha_0").state_dict())
    assert all((weights[0][key] == weights[1][key]).all() for key in weights[0])


def test_a_text_corpus_has_no_controls(inputs, tmp_path):
    write_json(inputs["corpus"] / "manifest.json", {"config": {"kind": "text"}})
    config = ControlsConfig(memories=({"alpha": 0.0},))
    counts = controls.make_controls(StageContext(tmp_path, inputs, config, 0))
    assert counts["memories"] == 0 and read_json(tmp_path / "controls.json") == []


def test_unknown_memory_fields_are_refused():
    with pytest.raises(MlpMemError, match="controls: memories must .* got unknown alfa"):
        ControlsConfig(memories=({"alfa": 0},))

"""Validation: perplexity of memory and mix on held-out rows, and the training curves."""

import dataclasses
import shutil

import numpy as np
import pytest
import tiny
import tiny_run
import torch

from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory as MlpMemory
from train.config.tables import MemoryFitConfig, TargetsConfig
from train.files import read_json, write_json
from train.fit.validation import Validation, draw_training
from train.run.stage import StageContext
from train.stages.memory import TargetRows, make_memory
from train.stages.targets import make_targets


@pytest.mark.parametrize("lmbda", [0.0, 0.3, 1.0])
def test_perplexities_equal_those_of_single_passages(lmbda):
    decoder = tiny.decoder()
    documents, memory = tiny.documents(), tiny.memory(decoder)
    positions = np.array([3, 9, int(documents.offsets[2]) + 5])
    found = Validation.of(decoder, documents, positions, lmbda).measure(memory)
    memory_nll, mix_nll = [], []
    for position in positions:
        passage = int(documents.passage_at(np.int64(position)))
        ids = torch.tensor([documents.tokens[documents.offsets[passage] : position].tolist()])
        output = decoder.forward(ids)
        token = int(documents.tokens[position])
        lm = output.logits[0, -1].double().softmax(-1)[token]
        own = memory(output.hidden[0, -1]).double().softmax(-1)[token]
        memory_nll.append(float(-own.log()))
        mix_nll.append(float(-((1 - lmbda) * lm + lmbda * own).log()))
    assert found["val_nll"] == pytest.approx(np.mean(memory_nll), rel=1e-4)
    assert found["val_ppl"] == pytest.approx(np.exp(np.mean(memory_nll)), rel=1e-4)
    assert found["mix_ppl"] == pytest.approx(np.exp(np.mean(mix_nll)), rel=1e-4)


def test_a_memory_is_validated_at_the_depth_of_its_keys(tmp_path):
    inputs = tiny_run.stages(tmp_path)
    deep = Decoder.load(inputs["decoder"], depth=-2)
    shutil.rmtree(inputs["datastore"])
    tiny.datastore(deep).save(inputs["datastore"])
    targets = TargetsConfig(k=12, temperature=20.0, nll_floor=-1.0)
    make_targets(StageContext(inputs["targets"], inputs, targets, 0))
    for name, config in (("targets", dataclasses.asdict(targets)), ("datastore", {"depth": -2})):
        write_json(inputs[name] / "manifest.json", {"config": config})
    recipe = MemoryFitConfig(
        blocks=1, intermediate_size=48, epochs=2, batch=32, processes=1, dtype="float32",
        validation_rows=40,
    )  # fmt: skip
    folder = tmp_path / "deep"
    folder.mkdir()
    make_memory(StageContext(folder, inputs, recipe, 0))
    logged = read_json(folder / "history.json")[-1]["val_nll"]
    rows = TargetRows(inputs["datastore"], inputs["targets"], recipe, 0)
    nll = {}
    for depth in (-1, -2):
        decoder = Decoder.load(inputs["decoder"], depth=depth)
        held = Validation.of(decoder, rows.documents, rows.held_out, recipe.lmbda)
        nll[depth] = held.measure(MlpMemory.load(folder))["val_nll"]
    assert logged == pytest.approx(nll[-2], rel=2e-3)
    assert abs(nll[-1] - nll[-2]) > 0.01


def test_a_diverged_memory_has_infinite_perplexity():
    decoder = tiny.decoder()
    memory, positions = tiny.memory(decoder), np.array([3, 9])
    memory.lm_head.weight.data *= 1e6
    found = Validation.of(decoder, tiny.documents(), positions, 0.5).measure(memory)
    assert found["val_nll"] > 1000 and found["val_ppl"] == np.inf and found["mix_ppl"] < 1e9


@pytest.mark.parametrize("more", [{}, {"kl": 2.0, "ce": 3.0, "val_ppl": 9.0, "mix_ppl": 4.0}])
def test_training_curves_are_written(more, tmp_path):
    history = [{"step": s, "loss": 5.0 / s, "lr": 0.1, **more} for s in (10, 20)]
    draw_training(history, tmp_path / "training.png", "memory")
    head = (tmp_path / "training.png").read_bytes()[:8]
    assert head == b"\x89PNG\r\n\x1a\n"
